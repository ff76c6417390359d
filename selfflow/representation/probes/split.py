"""Inputs and outputs of probes: splits and their validation, predictions and their scores."""

import warnings
from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np

from selfflow.errors import UserError

_LARGEST = 1e18  # squares of larger features overflow float32
_BLOCK = 1024


class Split(NamedTuple):
    """Features and targets of one split, one row per sample.

    Attributes:
      x: features [n, D], or tokens [n, N, D], of which all probes except the attentive probe use the mean; converted to
        float32.
      y: classes [n] (integers, booleans or strings), or numbers [n] or [n, K].
      ids: ids [n]; splits that share a sample are refused. None for samples without ids.
    """

    x: np.ndarray
    y: np.ndarray
    ids: np.ndarray | None = None


class Score(NamedTuple):
    """Scores on the test split, and on the validation split, on which layers and settings are chosen."""

    test: float
    validation: float


class Classified(NamedTuple):
    """Result of a probe of classes.

    Attributes:
      balanced: balanced accuracy, the mean recall over classes; chance is one over the number of classes.
      plain: accuracy.
      predicted: classes of the test samples [n], for `bootstrap`.
      chosen: setting chosen on validation (a strength, a number of neighbours); None if there is no choice.
    """

    balanced: Score
    plain: Score
    predicted: np.ndarray
    chosen: float | None = None


def classified(
    validation: Split, test: Split, predicted: tuple[np.ndarray, np.ndarray], chosen: float | None = None
) -> Classified:
    """Scores the predictions for validation and test."""
    on_validation, on_test = predicted
    return Classified(
        balanced=Score(balanced_accuracy(test.y, on_test), balanced_accuracy(validation.y, on_validation)),
        plain=Score(accuracy(test.y, on_test), accuracy(validation.y, on_validation)),
        predicted=on_test,
        chosen=chosen,
    )


def accuracy(y: np.ndarray, predicted: np.ndarray) -> float:
    """Share of samples whose class is predicted."""
    return float(np.mean(y == predicted))


def balanced_accuracy(y: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the classes of y of the share of their samples that is predicted."""
    # Only classes of y count: a prediction of another class is an error, not an additional class.
    _, index = np.unique(y, return_inverse=True)
    return float(np.mean(np.bincount(index, y == predicted) / np.bincount(index)))


def unit_vectors(x_ND: np.ndarray) -> np.ndarray:
    """Scales rows to length 1; rows of zeros are unchanged."""
    length_N1 = np.sqrt(np.einsum("nd,nd->n", x_ND, x_ND, dtype=np.float64))[:, None]
    return (x_ND / np.where(length_N1 > 0, length_N1, 1)).astype(np.float32)


def checked_classes(*, tokens: bool = False, **splits: Split) -> list[Split]:
    """Checks splits for a probe of classes; returns them with float32 features [n, D] (or all tokens).

    Warns if a split has a class that the first one, train, lacks.

    Args:
      tokens: whether the probe needs tokens [n, N, D].
      **splits: splits by name, for messages.

    Raises:
      UserError: different lengths or widths; features that are not finite numbers; targets that are not classes, all
        the same, or of more classes than samples; or splits that share samples.
    """
    checked: dict[str, Split] = {}
    for name, split in splits.items():
        checked[name] = split = _checked_features(name, split, tokens)
        if split.y.ndim != 1 or split.y.dtype.kind not in "biuUS":
            raise UserError(
                f"{name}: targets are {split.y.dtype} of shape {list(split.y.shape)}: give classes [n] as integers or "
                "strings, or use the ridge probe for numbers"
            )
    _check_compatible(checked)

    first, train = next(iter(checked.items()))
    for name, split in checked.items():
        # NumPy would compare numbers and strings as strings.
        if (split.y.dtype.kind in "US") != (train.y.dtype.kind in "US"):
            raise UserError(
                f"{name}: classes are {split.y.dtype} and those of {first} {train.y.dtype}: give both the same type"
            )
    classes = len(np.unique(np.concatenate([split.y for split in checked.values()])))
    for name, split in checked.items():
        of_split = np.unique(split.y)
        if len(of_split) == 1:
            raise UserError(
                f"{name}: all {len(split.y)} samples are of class {of_split[0]}: give samples of at least two"
            )
        if len(split.y) < classes:
            raise UserError(f"{name}: {len(split.y)} samples of {classes} classes: give at least one sample per class")
        missing = np.setdiff1d(split.y, train.y)
        if len(missing):
            names = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
            warnings.warn(f"{name}: {first} has no samples of class {names}: it is never predicted", stacklevel=3)
    return list(checked.values())


def checked_numbers(**splits: Split) -> list[Split]:
    """Checks splits for a probe of numbers; returns float32 features [n, D] and float64 targets [n, K].

    Raises:
      UserError: different lengths or widths; features or targets that are not finite numbers; or splits that share
        samples.
    """
    checked: dict[str, Split] = {}
    for name, split in splits.items():
        split = _checked_features(name, split, tokens=False)
        y = split.y.reshape(len(split.y), -1) if split.y.ndim < 3 else split.y
        is_number = y.ndim == 2 and y.dtype.kind in "biuf"
        if not is_number or not np.isfinite(y.astype(np.float64)).all():
            raise UserError(
                f"{name}: targets are {split.y.dtype} of shape {list(split.y.shape)}, or hold NaN or infinity: give "
                "finite numbers [n] or [n, K]"
            )
        checked[name] = split._replace(y=y.astype(np.float64))
    _check_compatible(checked)
    counts = {name: split.y.shape[1] for name, split in checked.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"targets of different widths, {_listed(counts)}: give all splits the same numbers")
    return list(checked.values())


def _checked_features(name: str, split: Split, tokens: bool) -> Split:
    """A split with features in float32, pooled unless all tokens are needed."""
    try:
        raw, y = np.asarray(split.x), np.asarray(split.y)
        ids = None if split.ids is None else np.asarray(split.ids)
        if raw.dtype.kind not in "biufV":
            raise TypeError
        with np.errstate(over="ignore"):
            x = raw.astype(np.float32)
    except (TypeError, ValueError):
        raise UserError(f"{name}: features are not numbers: give floats [n, D] or tokens [n, N, D]") from None
    if x.ndim != 3 and (tokens or x.ndim != 2):
        expected = "tokens [n, N, D]" if tokens else "[n, D] or tokens [n, N, D]"
        raise UserError(f"{name}: features have shape {list(x.shape)}, and this probe takes {expected}")
    if not x.size:
        raise UserError(f"{name}: features have shape {list(x.shape)} and hold nothing: give samples")
    for what, rows in (("targets", y), ("ids", ids)):
        if rows is not None and (not rows.ndim or len(rows) != len(x)):
            raise UserError(f"{name}: {len(x)} samples and {what} of shape {list(rows.shape)}: give one per sample")

    # Check in blocks, so that no second array of all tokens is needed. NaN compares as false.
    flat = x.reshape(len(x), -1)
    finite_n = np.zeros(len(x), bool)
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        finite_n[rows] = (np.abs(flat[rows]) < _LARGEST).all(axis=1)
    if not finite_n.all():
        raise UserError(
            f"{name}: features of sample {int(np.argmin(finite_n))} hold NaN, infinity or numbers beyond {_LARGEST:g}, "
            f"and {int((~finite_n).sum())} of {len(x)} samples do: check the samples and the metrics of the run"
        )
    if x.ndim == 3 and not tokens:
        x = x.mean(axis=1)
    return Split(x, y, ids)


def _check_compatible(splits: dict[str, Split]) -> None:
    """Raises `UserError` unless features have the same shape and no two splits share samples."""
    shapes: dict[str, tuple[int, ...]] = {}
    ids: dict[str, set] = {}
    for name, split in splits.items():
        shapes[name] = split.x.shape[1:]
        if split.ids is not None:
            ids[name] = set(split.ids.tolist())
    if len(set(shapes.values())) > 1:
        raise UserError(f"features of different shapes, {_listed(shapes)}: take all splits from the same layer")
    refuse_shared(ids)


def refuse_shared(ids: dict[str, set]) -> None:
    """Raises `UserError` if two splits, as sets of ids by name, share a sample."""
    for (a, ids_a), (b, ids_b) in combinations(ids.items(), 2):
        shared = ids_a & ids_b
        if shared:
            raise UserError(
                f"{a} and {b} share {len(shared)} samples, {min(shared, key=str)} among them: leave them out of one"
            )


def _listed(values: Mapping[str, tuple | int]) -> str:
    return ", ".join(f"{name} {list(value) if isinstance(value, tuple) else value}" for name, value in values.items())
