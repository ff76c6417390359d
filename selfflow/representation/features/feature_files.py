"""Features on disk: one folder per layer, which exists only if it is complete.

`FOLDER/layer_004/` holds `MODALITY.npy`, float32 [n, D] or [n, N, D], and `metadata.json`: the settings, the ids of the
n samples, and the numbers of unreadable samples. During writing its name ends in `.partial`; folders with such a name
that a killed process leaves are never read and may be deleted.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfflow.errors import UserError

_METADATA = "metadata.json"


class Stored(NamedTuple):
    """The features of one layer.

    Attributes:
      arrays: {modality: float32 [n, ...]}, memory-mapped and read-only.
      ids: ids of the samples.
      left_out: numbers of the samples that could not be read.
    """

    arrays: dict[str, np.ndarray]
    ids: list[str]
    left_out: list[int]


class LayerWriter:
    """Writes the features of one layer, batch by batch; memory does not grow with their number.

    Files are not memory-mapped for writing, since a full disk would then kill the process.

    Args:
      folder: parent of the layer's folder.
      layer: number of the block.

    Raises:
      UserError: from the constructor and every method, if the folder cannot be written.
    """

    def __init__(self, folder: Path, layer: int):
        self._path = layer_path(folder, layer)
        self._partial = self._path.with_name(f"{self._path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
        self._files: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        with _writing(folder):
            self._partial.mkdir(parents=True)

    def add(self, features: Mapping[str, np.ndarray]) -> None:
        """Appends {modality: float32 [B, ...]}."""
        with _writing(self._path.parent):
            for m, x in features.items():
                if m not in self._files:
                    self._files[m] = (self._partial / f"{m}.npy").open("wb")
                    self._shapes[m] = (0, *x.shape[1:])
                    _write_header(self._files[m], self._shapes[m])
                self._files[m].write(np.ascontiguousarray(x, np.float32))
                self._shapes[m] = (self._shapes[m][0] + len(x), *x.shape[1:])

    def finish(self, metadata: dict[str, Any]) -> None:
        """Renames the folder to its final name, unless another process has already written it."""
        with _writing(self._path.parent):
            for m, file in self._files.items():
                file.seek(0)
                _write_header(file, self._shapes[m])
                file.close()
            (self._partial / _METADATA).write_text(json.dumps(metadata, indent=1), encoding="utf-8")
            try:
                self._partial.rename(self._path)
            except OSError:
                if not self._path.exists():
                    raise
                self.drop()

    def drop(self) -> None:
        """Removes the partial folder."""
        for file in self._files.values():
            try:
                file.close()
            except OSError:  # the rest of the buffer does not fit on a full disk
                pass
        shutil.rmtree(self._partial, ignore_errors=True)


def layer_path(folder: Path, layer: int) -> Path:
    """Returns the folder of a layer."""
    return folder / f"layer_{layer:03d}"


def read_layer(folder: Path, layer: int, modalities: tuple[str, ...]) -> Stored | None:
    """Reads the features of a layer; None if they do not exist.

    Raises:
      UserError: if the files are damaged.
    """
    path = layer_path(folder, layer)
    if not path.exists():
        return None
    try:
        metadata = json.loads((path / _METADATA).read_text(encoding="utf-8"))
        ids, left_out = list(metadata["ids"]), list(metadata["left_out"])
        arrays = {m: np.load(path / f"{m}.npy", mmap_mode="r") for m in modalities}
        if any(len(x) != len(ids) for x in arrays.values()):
            raise ValueError("another number of features than of ids")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it, and its features will be computed again") from error
    return Stored(arrays, ids, left_out)


def _write_header(file: Any, shape: tuple[int, ...]) -> None:
    # NumPy pads the header to the same length for any number of rows, so it can be overwritten at the end.
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: features cannot be written there ({error.strerror or error}): make room or give the right to "
            "write, or take cache=False, which writes to a temporary folder (TMPDIR)"
        ) from error
