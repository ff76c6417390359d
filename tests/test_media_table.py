"""The description of each medium, and that the functions that it names exist."""

import subprocess
import sys

import numpy as np
import pytest

from selfflow.autoencoders.quality import METRICS
from selfflow.data.collisions import Collisions
from selfflow.errors import UserError
from selfflow.media import MEDIA, from_unit_range, images_only, medium_of, to_unit_range
from tests.conftest import mentions

SIZES = {"T": 5, "H": 4, "W": 6, "3": 3, "samples": 7, "channels": 2}


def clips(medium, count=2):
    shape = (count, *(SIZES[axis] for axis in medium.axes))
    return (np.random.default_rng(0).uniform(-1, 1, shape) * 100).astype(medium.dtype)


def test_importing_it_imports_numpy_alone():
    code = "import sys, selfflow.media; sys.exit(any(m in sys.modules for m in ('jax', 'av', 'matplotlib', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("medium", MEDIA.values(), ids=list(MEDIA))
class TestEveryMedium:
    def test_matches_its_own_clips_alone(self, medium):
        media = clips(medium)
        assert medium.matches(media) and medium.matches(media[0])
        assert not medium.matches(media.astype(np.float64)) and not medium.matches(list(media))
        assert not medium.matches(np.zeros((), medium.dtype))
        if medium.is_visual:
            assert not medium.matches(media[..., :1])

    def test_sequences_have_a_time_and_a_channel_axis(self, medium):
        media = clips(medium)
        sequence = medium.to_sequence(media)
        assert sequence.ndim == (5 if medium.is_visual else 3)
        np.testing.assert_array_equal(medium.from_sequence(sequence), media)

    def test_the_unit_range_and_back(self, medium):
        media = clips(medium)
        x = to_unit_range(media)
        assert x.dtype == np.float32
        back = from_unit_range(x, medium)
        assert back.dtype == medium.dtype
        np.testing.assert_array_equal(back, media)

    def test_its_errors_are_those_of_the_reconstruction(self, medium):
        assert medium.metrics and set(medium.metrics) <= set(METRICS)

    def test_its_rate_is_a_field_of_the_data(self, medium):
        data = Collisions(frames_per_second=12.5, sample_rate=8000)
        expected = {"": 0, "frames_per_second": 12.5, "sample_rate": 8000}[medium.rate_field]
        assert medium.rate(data) == expected and medium.has_time == (expected > 0)


def test_values_outside_of_the_unit_range_are_clipped():
    x = np.array([-3.0, -1.0, 0.0, 1.0, 3.0])
    assert from_unit_range(x, MEDIA["image"]).tolist() == [0, 0, 128, 255, 255]
    assert from_unit_range(x, MEDIA["audio"]).tolist() == [-32768, -32768, 0, 32767, 32767]


def test_streams_are_of_the_medium_before_the_colon():
    assert medium_of("image:reference") is MEDIA["image"]
    assert images_only(["image", "image:reference"]) and not images_only(["image", "audio"])
    with pytest.raises(UserError, match=mentions("smell image, video, audio, action")):
        medium_of("smell")
