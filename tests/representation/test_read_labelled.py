"""Latents of a user: split, or refused by name."""

import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.representation.features.arrays import read_labelled
from tests.conftest import mentions


def test_samples_are_split_and_each_keeps_its_label(tmp_path):
    latents = np.arange(16, dtype=np.float16)[:, None, None, None] * np.ones((1, 2, 2, 3), np.float16)
    np.savez(tmp_path / "a.npz", latents=latents, labels=np.arange(16) * 3)
    parts = read_labelled(tmp_path / "a.npz")
    assert {split: len(part) for split, part in parts.items()} == {"train": 8, "validation": 4, "test": 4}
    seen = []
    for part in parts.values():
        for i, name in enumerate(part.ids):
            x = part.latents(i)["image"]
            assert x.dtype == np.float32 and (x == int(name)).all() and part.labels["label"][i] == 3 * int(name)
            seen.append(int(name))
    assert sorted(seen) == list(range(16)) and seen != sorted(seen)
    assert read_labelled(tmp_path / "a.npz")["test"].ids == parts["test"].ids
    assert read_labelled(tmp_path / "a.npz", seed=1)["test"].ids != parts["test"].ids


GOOD = {"latents": np.zeros((8, 2, 2, 3), np.float32), "labels": np.zeros(8, int)}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"latents": np.zeros((8, 2, 2, 3), np.uint8)}, "latents uint8 [8, 2, 2, 3]"),
        ({"latents": np.zeros(8, np.float32)}, "latents float32 [8] [n, ...]"),
        ({"labels": np.zeros(7, int)}, "latents [8, 2, 2, 3] labels int64 [7]"),
        ({"labels": np.zeros(8, np.float32)}, "labels float32 [8]"),
        ({"labels": np.array(["a"] * 8, object)}, "labels Object arrays"),
        ({"latents": np.full((8, 2, 2, 3), np.nan, np.float32)}, "latents NaN"),
        ({"latents": np.zeros((2, 2, 2, 3), np.float32), "labels": np.zeros(2, int)}, "2 train validation test"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, changes, words):
    np.savez(tmp_path / "odd.npz", **GOOD | changes)
    with pytest.raises(UserError, match=mentions(tmp_path / "odd.npz", words)):
        read_labelled(tmp_path / "odd.npz")


def test_files_that_cannot_be_read_are_named(tmp_path):
    np.savez(tmp_path / "whole.npz", **GOOD)
    whole = (tmp_path / "whole.npz").read_bytes()
    np.save(tmp_path / "array.npy", GOOD["latents"])
    np.savez(tmp_path / "lacks.npz", latents=GOOD["latents"])
    contents = {"empty": b"", "cut": whole[: len(whole) // 2], "text": b"no archive", "array": None, "lacks": None}
    for name, content in contents.items():
        path = tmp_path / (f"{name}.npy" if name == "array" else f"{name}.npz")
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=mentions(path, "latents labels")):
            read_labelled(path)
    with pytest.raises(UserError, match=mentions(tmp_path / "none.npz", "No such file")):
        read_labelled(tmp_path / "none.npz")
