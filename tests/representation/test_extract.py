"""What features are extracted by: the code that kept ones know of, and memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from selfflow.representation.features.arrays import Arrays
from selfflow.representation.features.extract import extract
from selfflow.representation.features.forward import code_hash


@pytest.mark.parametrize("name", ["joint.py", "sit.py", "noise.py", "modality.py", "forward.py"])
def test_the_code_that_decides_the_numbers_is_known(name, monkeypatch):
    own, read = code_hash(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == name))
    assert code_hash.__wrapped__() != own
    monkeypatch.undo()
    assert code_hash.__wrapped__() == own


class Plain:
    """Stands for `Forward`: features are latents."""

    layers, modalities = (1,), ("audio",)
    whole = staticmethod(lambda size: size)
    start = staticmethod(lambda params, latents, seeds, frames: {1: latents})


class Made(Arrays):
    """Of which each is made when it is read."""

    def latents(self, i):
        return {"audio": np.full((64, 64), i, np.float32)}


def test_memory_does_not_grow_with_the_clips(tmp_path):
    def peak(count):
        clips = Made({"audio": np.broadcast_to(np.float32(0), (count, 64, 64))}, range(count))
        tracemalloc.start()
        try:
            extract(Plain(), None, clips, count, tmp_path / str(count), {}, 4, lambda _: None)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(8)
    few, many = peak(64), peak(256)
    assert np.load(tmp_path / "256" / "layer_001" / "audio.npy", mmap_mode="r").shape == (256, 64, 64)
    assert many < 1.5 * few < 64 * 64 * 64 * 4
