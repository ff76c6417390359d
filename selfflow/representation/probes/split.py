"""What every probe is given and gives: splits and their check, predictions and their scores."""

import warnings
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from selfflow.errors import UserError

_LARGEST = 1e18  # squares of larger features overflow float32
_BLOCK = 1024


class Split(NamedTuple):
    """Features and targets of one split, one row per sample.

    Attributes:
      x: features [n, D], or tokens [n, N, D], of which all probes but the attentive one take the mean; read as float32.
      y: classes [n] (whole numbers, booleans or strings), or numbers [n] or [n, K].
      ids: [n], what names a sample; splits that hold the same one are refused. None where samples have no names.
    """

    x: np.ndarray
    y: np.ndarray
    ids: np.ndarray | None = None


class Score(NamedTuple):
    """A probe's score on the test split, and on the validation split, by which layers and settings are chosen."""

    test: float
    validation: float


class Classified(NamedTuple):
    """What a probe of classes found.

    Attributes:
      balanced: balanced accuracy: the mean over classes of the part found; chance is one over the number of classes.
      plain: accuracy.
      predicted: classes of the test samples [n], which `bootstrap` takes beside those that are true.
      chosen: the setting that validation chose (a strength, a number of neighbours); None where there is no choice.
    """

    balanced: Score
    plain: Score
    predicted: np.ndarray
    chosen: float | None = None


def classified(validation: Split, test: Split, predicted: tuple[np.ndarray, np.ndarray], chosen=None) -> Classified:
    """The scores of what was predicted for validation and for test."""
    scores = [
        Score(score(test.y, predicted[1]), score(validation.y, predicted[0])) for score in (balanced_accuracy, accuracy)
    ]
    return Classified(*scores, predicted=predicted[1], chosen=chosen)


def accuracy(y: np.ndarray, predicted: np.ndarray) -> float:
    """The part of the samples whose class was found."""
    return float(np.mean(y == predicted))


def balanced_accuracy(y: np.ndarray, predicted: np.ndarray) -> float:
    """The mean over the classes of y of the part of their samples that was found."""
    _, index = np.unique(y, return_inverse=True)
    return float(np.mean(np.bincount(index, y == predicted) / np.bincount(index)))


def unit_vectors(x_ND: np.ndarray) -> np.ndarray:
    """The rows scaled to length 1; those of zeros stay."""
    length_N1 = np.sqrt(np.einsum("nd,nd->n", x_ND, x_ND, dtype=np.float64))[:, None]
    return (x_ND / np.where(length_N1 > 0, length_N1, 1)).astype(np.float32)


def checked_classes(*, tokens: bool = False, **splits: Split) -> list[Split]:
    """The splits with features [n, D] (or all their tokens) in float32, for a probe of classes.

    Warns where a split shows a class that the first one, train, does not.

    Args:
      tokens: whether the probe needs tokens [n, N, D].
      **splits: by name, which messages tell.

    Raises:
      UserError: if lengths or widths differ, features are NaN, infinite or no numbers, targets are no classes, all of
        one, or more than the samples, or two splits share samples.
    """
    found = {}
    for name, split in splits.items():
        split = _features(name, split, tokens)
        if split.y.ndim != 1 or split.y.dtype.kind not in "biuUS":
            raise UserError(
                f"{name}: targets are {split.y.dtype} of shape {list(split.y.shape)}: give classes [n] as whole "
                "numbers or strings, or use the ridge probe for numbers"
            )
        found[name] = split
    _alike(found)
    first, *others = found
    strings = {name: split.y.dtype.kind in "US" for name, split in found.items()}
    if differs := [name for name in others if strings[name] != strings[first]]:
        raise UserError(
            f"{differs[0]}: classes are {found[differs[0]].y.dtype} and those of {first} {found[first].y.dtype}: "
            "name them alike"
        )
    classes = len(np.unique(np.concatenate([split.y for split in found.values()])))
    for name, split in found.items():
        if len(shown := np.unique(split.y)) == 1:
            raise UserError(f"{name}: all {len(split.y)} samples are of class {shown[0]}: give samples of at least two")
        if len(split.y) < classes:
            raise UserError(f"{name}: {len(split.y)} samples of {classes} classes: give at least as many as classes")
        if len(unseen := np.setdiff1d(split.y, found[first].y)):
            shown = ", ".join(map(str, unseen[:5])) + (", ..." if len(unseen) > 5 else "")
            warnings.warn(f"{name}: {first} shows no sample of class {shown}: none can be found", stacklevel=3)
    return list(found.values())


def checked_numbers(**splits: Split) -> list[Split]:
    """The splits with features [n, D] in float32 and targets [n, K] in float64, for a probe of numbers.

    Raises:
      UserError: if lengths or widths differ, features or targets are NaN, infinite or no numbers, or two splits share
        samples.
    """
    found = {}
    for name, split in splits.items():
        split = _features(name, split, tokens=False)
        y = split.y.reshape(len(split.y), -1) if split.y.ndim < 3 else split.y
        if y.ndim != 2 or y.dtype.kind not in "biuf" or not np.isfinite(y := y.astype(np.float64)).all():
            raise UserError(
                f"{name}: targets are {split.y.dtype} of shape {list(split.y.shape)}, or hold NaN or infinity: give "
                "finite numbers [n] or [n, K]"
            )
        found[name] = split._replace(y=y)
    _alike(found)
    counts = {name: split.y.shape[1] for name, split in found.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"targets of different widths, {_by_split(counts)}: give all splits the same numbers")
    return list(found.values())


def _features(name: str, split: Split, tokens: bool) -> Split:
    try:
        given, y, ids = np.asarray(split.x), np.asarray(split.y), None if split.ids is None else np.asarray(split.ids)
        if given.dtype.kind not in "biufV":
            raise TypeError
        with np.errstate(over="ignore"):
            x = given.astype(np.float32)
    except (TypeError, ValueError):
        raise UserError(f"{name}: features are no array of numbers: give floats [n, D] or tokens [n, N, D]") from None
    if x.ndim != 3 and (tokens or x.ndim != 2):
        wanted = "tokens [n, N, D]" if tokens else "[n, D] or tokens [n, N, D]"
        raise UserError(f"{name}: features have shape {list(x.shape)}, and this probe takes {wanted}")
    if not x.size:
        raise UserError(f"{name}: features have shape {list(x.shape)} and hold nothing: give samples")
    for what, rows in (("targets", y), ("ids", ids)):
        if rows is not None and (not rows.ndim or len(rows) != len(x)):
            raise UserError(f"{name}: {len(x)} samples and {what} of shape {list(rows.shape)}: give one per sample")
    flat = x.reshape(len(x), -1)
    blocks = [flat[start : start + _BLOCK] for start in range(0, len(x), _BLOCK)]
    sound_n = np.concatenate([(np.abs(block) < _LARGEST).all(axis=1) for block in blocks])  # false for NaN, too
    if not sound_n.all():
        raise UserError(
            f"{name}: features of sample {int(np.argmin(sound_n))} hold NaN, infinity or numbers beyond {_LARGEST:g}, "
            f"and {int((~sound_n).sum())} of {len(x)} samples do: look at the samples, and at the numbers of the run"
        )
    if x.ndim == 3 and not tokens:
        x = x.mean(axis=1)
    return Split(x, y, ids)


def _alike(splits: dict[str, Split]) -> None:
    shapes = {name: split.x.shape[1:] for name, split in splits.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(f"features of different shapes, {_by_split(shapes)}: take all splits from the same layer")
    refuse_shared({name: set(split.ids.tolist()) for name, split in splits.items() if split.ids is not None})


def refuse_shared(ids: dict[str, set]) -> None:
    """Raises `UserError` if two splits, given as sets of ids by name, hold the same sample."""
    for (a, in_a), (b, in_b) in combinations(ids.items(), 2):
        if shared := in_a & in_b:
            raise UserError(
                f"{a} and {b} share {len(shared)} samples, {min(shared, key=str)} among them: leave them out of one"
            )


def _by_split(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {list(x) if isinstance(x, tuple) else x}" for name, x in found.items())
