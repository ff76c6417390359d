"""Latents from which features are computed: arrays, and clips of a run."""

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from selfflow.errors import UserError
from selfflow.input.clips import readable_clips, warn_left_out

_BYTES_AT_ONCE = 1 << 24


class Arrays:
    """Latents of samples in arrays, which may be memory-mapped, with the interface of a run's clips.

    Args:
      latents: {modality: [n, ...]}.
      ids: ids of the samples; by default a hash of each sample's latents, so that ids differ between splits.
      labels: {field: [n]}, integers.

    Attributes:
      ids: ids of the samples.
      labels: {field: [n]}.
      shapes: {modality: shape of one latent}.

    Raises:
      UserError: if there are no samples, or lengths differ.
    """

    def __init__(
        self,
        latents: Mapping[str, np.ndarray],
        ids: Iterable[str] | None = None,
        labels: Mapping[str, np.ndarray] | None = None,
    ):
        self._latents = dict(latents)
        self.labels: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        lengths: dict[str, int] = {}
        for m, x in self._latents.items():
            self.shapes[m] = x.shape[1:]
            lengths[m] = len(x)
        first, count = next(iter(lengths.items()), ("", 0))
        if not count:
            raise UserError("Arrays: there is no latent; give {modality: [n, ...]}")
        if ids is not None:
            ids = [str(i) for i in ids]
            lengths["ids"] = len(ids)
        for field, values in (labels or {}).items():
            self.labels[field] = np.asarray(values)
            lengths[f"labels of {field}"] = len(self.labels[field])
        for what, length in lengths.items():
            if length != count:
                raise UserError(f"Arrays: {what} are {length}, and {first} {count}: give equal numbers")
        self.ids = [self._hash(i) for i in range(count)] if ids is None else ids

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def identity(self) -> str:
        """Hash of all latents."""
        digest = hashlib.sha256()
        for m, x in sorted(self._latents.items()):
            digest.update(f"{m} {x.dtype.str} {x.shape}".encode())
            # Hash in parts, since the arrays may be memory-mapped and larger than memory.
            rows = max(1, _BYTES_AT_ONCE // max(1, x[0].nbytes))
            for start in range(0, len(x), rows):
                digest.update(np.ascontiguousarray(x[start : start + rows]).tobytes())
        return digest.hexdigest()[:16]

    def latents(self, i: int) -> dict[str, np.ndarray]:
        """Returns the latents of sample i, {modality: [...]}."""
        return {m: x[i] for m, x in self._latents.items()}

    def _hash(self, i: int) -> str:
        digest = hashlib.sha256()
        for _, x in sorted(self._latents.items()):
            digest.update(np.ascontiguousarray(x[i]).tobytes())
        return digest.hexdigest()[:16]


def read_labelled(path: str | Path, modality: str = "image", seed: int = 0) -> dict[str, Arrays]:
    """Reads `latents` [n, ...] and `labels` [n] of an .npz file, split at random into train, validation and test.

    Half of the samples is train, a quarter each validation and test.

    Args:
      path: the file.
      modality: modality of the latents.
      seed: seed of the split.

    Raises:
      UserError: if the file is missing, damaged, or holds other data.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            latents, labels = file["latents"], file["labels"]
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} holds no `latents` [n, ...] and `labels` [n] ({error}): write it with numpy.savez"
        ) from error
    if (
        latents.dtype.kind != "f"
        or latents.ndim < 2
        or labels.shape != latents.shape[:1]
        or labels.dtype.kind not in "iu"
    ):
        raise UserError(
            f"{path}: latents are {latents.dtype} {list(latents.shape)} and labels {labels.dtype} "
            f"{list(labels.shape)}; give floats [n, ...] and integers [n]"
        )
    if len(latents) < 4:
        raise UserError(f"{path}: {len(latents)} samples cannot be split into train, validation and test: give more")
    if not np.isfinite(latents).all():
        raise UserError(f"{path}: latents hold NaN or infinity: leave those samples out")
    order, n = np.random.default_rng(seed).permutation(len(latents)), len(latents)
    parts = dict(zip(("train", "validation", "test"), np.split(order, [n // 2, n // 2 + n // 4])))
    arrays = {}
    for split, rows in parts.items():
        x, label = latents[rows].astype(np.float32), labels[rows].astype(np.int32)
        arrays[split] = Arrays({modality: x}, map(str, rows), {"label": label})
    return arrays


def readable_and_whole(clips: Any, numbers: Iterable[int]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields clips as `readable_clips`, but requires the component's full length; warns of unreadable clips.

    Raises:
      UserError: if a clip is shorter, or none can be read.
    """
    left_out: list[int] = []
    i = None
    for i, latents in readable_clips(clips, numbers, left_out):
        for m, x in latents.items():
            if x.shape != clips.shapes[m]:
                raise UserError(
                    f"clip {clips.ids[i]!r} is shorter than the component has them ({m} {list(x.shape)}, and not "
                    f"{list(clips.shapes[m])}): take a component or a split of whole clips"
                )
        yield i, latents
    warn_left_out(clips, left_out)
    if left_out and i is None:
        raise UserError(f"none of {len(left_out)} clips can be read")
