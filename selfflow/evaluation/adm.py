"""Samples in the format of ADM's evaluator: one uint8 array [N, H, W, 3], `arr_0` of a `.npz`."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from selfflow.errors import UserError
from selfflow.storage.atomic import atomic_write


def write_adm(path: Path, batches: Iterable[np.ndarray], count: int) -> None:
    """Writes images batch by batch, holding one batch in memory. No file remains after an error.

    Args:
      path: the `.npz`, which is replaced if it exists.
      batches: uint8 images [B, H, W, 3] of one size.
      count: number of images, for the header of the array.

    Raises:
      UserError: images of another format or size, another number of images, or a missing folder.
    """
    if path.suffix.lower() != ".npz":
        raise UserError(f"{path}: ADM's evaluator reads .npz files; give a name with this suffix")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; create it first")
    if count < 1:
        raise UserError(f"{path}: {count} images; give at least 1")
    with atomic_write(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        # The header of the entry precedes its size, and entries above 2 GiB have wider fields in it.
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            shape, written = None, 0
            for batch in batches:
                if shape is None:
                    shape = _checked(path, batch).shape[1:]
                    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                if _checked(path, batch).shape[1:] != shape:
                    raise UserError(f"{path}: an image of {batch.shape[1:]} after images of {shape}")
                written += len(batch)
                file.write(np.ascontiguousarray(batch).data)
            if written != count:
                raise UserError(f"{path}: {written} images, expected {count}; the file is not written")


def _checked(path: Path, batch: np.ndarray) -> np.ndarray:
    """Returns the batch; raises `UserError` unless it consists of uint8 images."""
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[-1] != 3:
        raise UserError(
            f"{path}: images of {batch.dtype} {list(batch.shape)}; ADM's evaluator reads uint8 [B, H, W, 3]"
        )
    return batch
