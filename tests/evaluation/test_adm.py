import tracemalloc
import zipfile

import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.evaluation.adm import write_adm
from tests.conftest import mentions
from tests.evaluation import made


def test_numpy_and_adm_s_reader_find_the_images(tmp_path):
    images, path = made.images(10), tmp_path / "samples.npz"
    path.write_bytes(b"old")
    write_adm(path, iter(np.split(images, [3, 3, 9])), 10)
    with np.load(path, allow_pickle=False) as archive:
        assert archive.files == ["arr_0"]
        np.testing.assert_array_equal(archive["arr_0"], images)
    # ADM's evaluator streams arrays of version 1 or 2 only.
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file) == (images.shape, False, np.dtype("u1"))
    assert [p.name for p in tmp_path.iterdir()] == ["samples.npz"]


def test_images_are_never_in_memory_together(tmp_path):
    batch = made.images(16)
    tracemalloc.start()
    write_adm(tmp_path / "many.npz", (batch for _ in range(200)), 3200)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000  # of 10 MB
    tracemalloc.stop()


@pytest.mark.parametrize(
    "name, batches, count, words",
    [
        ("a.npy", [made.images(2)], 2, ".npz"),
        ("none/a.npz", [made.images(2)], 2, "folder"),
        ("a.npz", [], 0, "0 1"),
        ("a.npz", [], 2, "0 2"),
        ("a.npz", [made.images(2)], 3, "2 3"),
        ("a.npz", [made.images(2), made.images(1, 16)], 3, "(16, 19, 3) (32, 35, 3)"),
        ("a.npz", [made.images(2) / 255], 2, "uint8 float64"),
        ("a.npz", [made.videos(2, 2)], 2, "uint8 [2, 2, 32, 35, 3]"),
    ],
)
def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, name, batches, count, words):
    with pytest.raises(UserError, match=mentions(tmp_path / name, words)):
        write_adm(tmp_path / name, batches, count)
    assert not list(tmp_path.iterdir())
