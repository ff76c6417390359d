"""Features of a set, gathered batch by batch: moments and the first few features, whatever the number of samples."""

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
    """What evaluation keeps of a set of samples.

    Attributes:
      features: name of the features, such as "FD-EffNet": what a Frechet distance on them is called.
      identity: of the extractor; only features of one identity are compared.
      samples: n, the samples on either side of a Frechet distance.
      first, second: moments of the first n samples, and of the n after them, of which a real set makes the
        real-against-real distance.
      kept: features of the first `keep` samples, float32, for KID, precision and recall.
      count: samples seen.
    """

    def __init__(self, extractor: Extractor, samples: int, keep: int = 10_000):
        """Starts with no samples.

        Args:
          extractor: whose features these are.
          samples: n of the Frechet distance.
          keep: how many features are kept, 4 D bytes each.
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
          UserError: if they are of another width, no floats, or not finite.
        """
        check_features(features, f"{self.features}, samples from {self.count} on")
        if features.shape[1] != self.width:
            raise UserError(f"{self.features}: features of {features.shape[1]} channels, but {self.width} are expected")
        start, n = self.count, self.samples
        self.first.add(features[: max(0, n - start)])
        self.second.add(features[max(0, n - start) : max(0, 2 * n - start)])
        if (room := self.keep - start) > 0:
            # A copy, so that no larger array stays alive behind it.
            self._kept.append(features[:room].astype(np.float32))
        self.count += len(features)

    @property
    def kept(self) -> Float[np.ndarray, "k D"]:
        if len(self._kept) != 1:
            self._kept = [np.concatenate([np.empty((0, self.width), np.float32), *self._kept])]
        return self._kept[0]

    def joined(self, other: "Accumulator") -> "Accumulator":
        """Both together, as if their first n samples made the first n + n, and so on: for parts of a set.

        Raises:
          UserError: if they hold features of different extractors.
        """
        check_same(self, other, "the other part")
        both = object.__new__(Accumulator)
        both._start(self.features, self.identity, self.width, self.samples + other.samples, self.keep + other.keep)
        for part in (self, other):
            both.first.join(part.first)
            both.second.join(part.second)
            both._kept.append(part.kept)
            both.count += part.count
        return both

    def save(self, path: Path) -> None:
        """Writes a .npz without pickles, whole or not at all.

        Raises:
          UserError: if its folder is missing.
        """
        if not path.parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.parent}; make it first")
        arrays = {"features": self.features, "identity": self.identity, "kept": self.kept}
        arrays |= {name: getattr(self, name) for name in ("samples", "keep", "count")}
        for name, moments in (("first", self.first), ("second", self.second)):
            arrays |= {f"{name}_{part}": getattr(moments, part) for part in ("count", "mean", "scatter")}
        with atomic_write(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def _of(cls, arrays: dict[str, np.ndarray]) -> Self:
        self = object.__new__(cls)
        kept = arrays["kept"]
        whole = {name: int(arrays[name]) for name in ("samples", "keep", "count")}
        width = kept.shape[1]
        if whole["samples"] < 2 or whole["keep"] < len(kept) or whole["count"] < len(kept):
            raise ValueError("numbers of samples that cannot be")
        self._start(str(arrays["features"]), str(arrays["identity"]), width, whole["samples"], whole["keep"])
        self.count = whole["count"]
        for name, moments in (("first", self.first), ("second", self.second)):
            moments.count = int(arrays[f"{name}_count"])
            moments.mean, moments.scatter = arrays[f"{name}_mean"], arrays[f"{name}_scatter"]
            if moments.mean.shape != (width,) or moments.scatter.shape != (width, width):
                raise ValueError(f"{name} of other widths than the features kept")
        self._kept = [kept.astype(np.float32)]
        if not all(np.isfinite(x).all() for x in (kept, self.first.scatter, self.second.scatter)):
            raise ValueError("numbers that are not finite")
        return self


class Statistics(NamedTuple):
    """Mean and covariance of a reference of which no features are at hand, as ADM's `.npz` files hold them."""

    mean: np.ndarray
    covariance: np.ndarray


def load_reference(path: Path, extractor: Extractor) -> Accumulator | Statistics:
    """A reference set: what `Accumulator.save` wrote, or a file of statistics with `mu` and `sigma`.

    Args:
      path: a `.npz` file, of which no pickle is read.
      extractor: with which the set that it is for is looked at.

    Raises:
      UserError: if the file is missing, damaged or of another format, or was made with other features. Statistics name
        no features: they are ADM's, pytorch-fid's and TTUR's, and so taken for those of FID's Inception alone.
    """
    arrays = _read(path)
    try:
        if {"mu", "sigma"} <= set(arrays):
            return _statistics(path, arrays, extractor)
        if "identity" not in arrays:
            raise UserError(
                f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}, and neither mu and sigma nor features"
            )
        found = Accumulator._of(arrays)
    except (KeyError, ValueError, TypeError, IndexError, OverflowError) as error:
        raise UserError(f"{path} is damaged ({error}); make it again") from None
    if found.identity != extractor.identity:
        raise UserError(
            f"{path} was made with {found.identity}, and the features here are {extractor.identity}: "
            "make the reference again with the same extractor"
        )
    return found


def check_same(a: Accumulator, b: Accumulator, what: str) -> None:
    """Raises `UserError` unless both hold features of one extractor."""
    if a.identity != b.identity:
        raise UserError(
            f"{what} was made with {b.identity}, and not with {a.identity}: use the same extractor for both"
        )
    if a.width != b.width:
        raise UserError(f"{what} has features of {b.width} channels, and not of {a.width}: use the same extractor")


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path} is no file: give a reference as .npz")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array")
            # Files of ADM also hold 10 000 images, which are not read.
            known = [name for name in archive.files if name not in ("arr_0", "arr_1", "mu_s", "sigma_s")]
            return {name: archive[name] for name in known}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile):
        # Without numpy's reason, which may be advice to unpickle.
        raise UserError(f"{path} is damaged, or no .npz of plain arrays; copy or make it again") from None


def _statistics(path: Path, arrays: dict[str, np.ndarray], extractor: Extractor) -> Statistics:
    if extractor.distance != FID:
        raise UserError(
            f"{path} holds mu and sigma of FID's Inception, and the features here are {extractor.identity}: make a "
            "reference with the same extractor, or give FID's Inception"
        )
    mean, covariance = np.float64(arrays["mu"]), np.float64(arrays["sigma"])
    if mean.shape != (extractor.width,) or covariance.shape != mean.shape * 2:
        raise UserError(
            f"{path}: mu has shape {list(mean.shape)} and sigma {list(covariance.shape)}, and FID's Inception has "
            f"{extractor.width} channels: it was made with other features"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: mu or sigma holds NaN or infinity; make it again")
    return Statistics(mean, covariance)
