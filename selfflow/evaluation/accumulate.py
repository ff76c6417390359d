"""Streaming accumulation of features: their moments and the first features, in memory independent of their number."""

import zipfile
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Float

from selfflow.encoders.config import FID
from selfflow.errors import UserError
from selfflow.evaluation.distances import check_features
from selfflow.evaluation.extractors import Extractor
from selfflow.representation.moments import Moments
from selfflow.storage.atomic import atomic_write


class Accumulator:
    """Features of a set of samples.

    Attributes:
      features: name of the Frechet distance of these features, such as "FD-EffNet".
      identity: identity of the extractor; only features of one identity are compared.
      samples: n, the number of samples on each side of a Frechet distance.
      first, second: moments of the first n samples, and of the next n, for the Frechet distance between two sets of
        real clips.
      kept: features of the first `keep` samples, float32, for KID, precision and recall.
      count: number of samples.
    """

    def __init__(self, extractor: Extractor, samples: int, keep: int = 10_000):
        """Starts with no samples.

        Args:
          extractor: computes the features.
          samples: n of the Frechet distance.
          keep: number of features that are kept, 4 D bytes each.
        """
        self._start(extractor.distance, extractor.identity, extractor.width, samples, keep)

    def _start(self, features: str, identity: str, width: int, samples: int, keep: int) -> None:
        if samples < 2:
            raise UserError(f"Frechet distances of {samples} samples: give at least 2")
        if keep < 1:
            raise UserError(f"{keep} features to keep: give at least 1")
        self.features, self.identity, self.width = features, identity, width
        self.samples, self.keep, self.count = samples, keep, 0
        self.first, self.second = Moments(width), Moments(width)
        self._kept: list[np.ndarray] = []

    def add(self, features: Float[np.ndarray, "n D"]) -> None:
        """Adds the features of n samples.

        Raises:
          UserError: features of another width or dtype, or values that are not finite.
        """
        check_features(features, f"{self.features}, samples from {self.count} on")
        if features.shape[1] != self.width:
            raise UserError(f"{self.features}: features of {features.shape[1]} channels, but {self.width} are expected")
        start, n = self.count, self.samples
        self.first.add(features[: max(0, n - start)])
        self.second.add(features[max(0, n - start) : max(0, 2 * n - start)])
        room = self.keep - start
        if room > 0:
            # A copy: a view would keep the whole batch in memory.
            self._kept.append(features[:room].astype(np.float32))
        self.count += len(features)

    @property
    def kept(self) -> Float[np.ndarray, "k D"]:
        # Batches are concatenated once, on the first access. The empty array has the width if there are no batches.
        if len(self._kept) != 1:
            self._kept = [np.concatenate([np.empty((0, self.width), np.float32), *self._kept])]
        return self._kept[0]

    def save(self, path: Path) -> None:
        """Writes a `.npz` without pickles, atomically.

        Raises:
          UserError: if its folder is missing.
        """
        if not path.parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.parent}; create it first")
        arrays = {"features": self.features, "identity": self.identity, "kept": self.kept}
        arrays |= {"samples": self.samples, "keep": self.keep, "count": self.count}
        for name, moments in (("first", self.first), ("second", self.second)):
            arrays[f"{name}_count"] = moments.count
            arrays[f"{name}_mean"] = moments.mean
            arrays[f"{name}_scatter"] = moments.scatter
        with atomic_write(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def _from_arrays(cls, arrays: dict[str, np.ndarray]) -> Self:
        """Restores an accumulator from the arrays of `save`; ValueError, KeyError or TypeError if they disagree."""
        self = object.__new__(cls)
        kept = arrays["kept"]
        whole = {name: int(arrays[name]) for name in ("samples", "keep", "count")}
        width = kept.shape[1]
        if whole["samples"] < 2 or whole["keep"] < len(kept) or whole["count"] < len(kept):
            raise ValueError("impossible numbers of samples")
        self._start(str(arrays["features"]), str(arrays["identity"]), width, whole["samples"], whole["keep"])
        self.count = whole["count"]
        for name, moments in (("first", self.first), ("second", self.second)):
            moments.count = int(arrays[f"{name}_count"])
            moments.mean, moments.scatter = arrays[f"{name}_mean"], arrays[f"{name}_scatter"]
            if moments.mean.shape != (width,) or moments.scatter.shape != (width, width):
                raise ValueError(f"{name} has another width than the features")
        self._kept = [kept.astype(np.float32)]
        for values in (kept, self.first.scatter, self.second.scatter):
            if not np.isfinite(values).all():
                raise ValueError("values that are not finite")
        return self


class Statistics(NamedTuple):
    """Mean [D] and covariance [D, D] of a reference set whose features are not stored, as in ADM's `.npz` files."""

    mean: np.ndarray
    covariance: np.ndarray


def load_reference(path: Path, extractor: Extractor) -> Accumulator | Statistics:
    """Reads a reference set: a file of `Accumulator.save`, or a file of statistics with `mu` and `sigma`.

    Args:
      path: a `.npz` file; pickles in it are not read.
      extractor: extractor of the generated set.

    Raises:
      UserError: a missing or damaged file, another format, or features of another extractor. Files of statistics (ADM,
        pytorch-fid, TTUR) do not name their features, which are assumed to be the Inception features of FID.
    """
    arrays = _read(path)
    try:
        if {"mu", "sigma"} <= set(arrays):
            return _statistics(path, arrays, extractor)
        if "identity" not in arrays:
            names = ", ".join(sorted(arrays)) or "nothing"
            raise UserError(f"{path} has {names}, and neither mu and sigma nor features: give another reference")
        reference = Accumulator._from_arrays(arrays)
    except (KeyError, ValueError, TypeError, IndexError, OverflowError) as error:
        raise UserError(f"{path} is damaged ({error}); save it again") from None
    if reference.identity != extractor.identity:
        raise UserError(
            f"{path} has features of {reference.identity}, and the generated set of {extractor.identity}: save the "
            "reference with the same extractor"
        )
    return reference


def _read(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a `.npz` file."""
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a reference as .npz")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array")
            # Files of ADM also have 10 000 images and spatial statistics, which are not used.
            known = [name for name in archive.files if name not in ("arr_0", "arr_1", "mu_s", "sigma_s")]
            return {name: archive[name] for name in known}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile):
        # numpy's own message may advise loading pickles, so it is not shown.
        raise UserError(f"{path} is damaged, or not a .npz of plain arrays; copy or save it again") from None


def _statistics(path: Path, arrays: dict[str, np.ndarray], extractor: Extractor) -> Statistics:
    if extractor.distance != FID:
        raise UserError(
            f"{path} has mu and sigma of FID's Inception, and the generated set features of {extractor.identity}: save "
            "a reference with the same extractor, or use FID's Inception"
        )
    mean, covariance = np.float64(arrays["mu"]), np.float64(arrays["sigma"])
    if mean.shape != (extractor.width,) or covariance.shape != mean.shape * 2:
        raise UserError(
            f"{path}: mu has shape {list(mean.shape)} and sigma {list(covariance.shape)}, but FID's Inception has "
            f"{extractor.width} channels: give statistics of its features"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: mu or sigma has NaN or infinity; compute it again")
    return Statistics(mean, covariance)
