"""Files as context of samples."""

from pathlib import Path

import pytest

from selfflow.config.shapes import MediaSpec
from selfflow.errors import UserError
from selfflow.modality import Modality
from selfflow.run.context_files import encode_files
from selfflow.sampling.context_spec import ContextRequest
from tests.conftest import mentions


def test_files_of_actions_are_refused():
    request = ContextRequest("action=controls.npy", "action", file=Path("controls.npy"))
    modalities = {"action": Modality((25, 4), (1,), 8.0)}
    with pytest.raises(UserError, match=mentions("context action=controls.npy image video audio")):
        encode_files([request], modalities, {"action": MediaSpec((25, 4), 12.5)}, {})
