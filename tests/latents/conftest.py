"""What the tests of verification and deletion share."""

from pathlib import Path

import pytest

from selfflow.data.built import BuiltDataset
from tests.latents.home import make_home


@pytest.fixture(scope="session")
def original(tiny_experiment, tmp_path_factory) -> tuple[BuiltDataset, Path]:
    """What `make_home` makes: to be copied, never changed."""
    return make_home(tiny_experiment, tmp_path_factory.mktemp("home"))
