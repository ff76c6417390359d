"""Samples as the evaluator of ADM reads them: one uint8 array [N, H, W, 3], arr_0 of a .npz."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from selfflow.errors import UserError
from selfflow.storage.atomic import atomic_write


def write_adm(path: Path, batches: Iterable[np.ndarray], count: int) -> None:
    """Writes images batch by batch in constant memory; the file appears once it is complete.

    Args:
      path: the `.npz`; what was there is replaced.
      batches: uint8 images [B, H, W, 3], all of one size.
      count: how many there will be in all, which stands at the start of the file.

    Raises:
      UserError: if there are other images, or another number of them, or the file's folder is missing.
    """
    if path.suffix != ".npz":
        raise UserError(f"{path}: what ADM's evaluator reads ends with .npz")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it first")
    if count < 1:
        raise UserError(f"{path}: {count} images; give at least 1")
    with atomic_write(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        # Announced in advance, because a zip past 2 GiB needs wider fields than one that stays below.
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
                raise UserError(f"{path}: {written} images came, and {count} were announced; it is not written")


def _checked(path: Path, batch: np.ndarray) -> np.ndarray:
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[-1] != 3:
        raise UserError(
            f"{path}: ADM's evaluator takes uint8 images [B, H, W, 3], and these are {batch.dtype} {list(batch.shape)}"
        )
    return batch
