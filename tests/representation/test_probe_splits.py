import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.representation.probes.attentive import attentive_probe
from selfflow.representation.probes.linear import linear_probe
from selfflow.representation.probes.logistic import few_shot, logistic_probe, tree_probe
from selfflow.representation.probes.neighbours import knn_probe
from selfflow.representation.probes.split import Split, checked_classes, checked_numbers
from tests.conftest import mentions

PROBES = {
    "logistic": logistic_probe,
    "trees": tree_probe,
    "linear": linear_probe,
    "attentive": attentive_probe,
    "neighbours": knn_probe,
    "few shots": lambda train, validation, test: few_shot(train, test),
}


def split(n=12, classes=3, **changes):
    random = np.random.default_rng(n)
    return Split(random.standard_normal((n, 4, 6)).astype(np.float32), np.arange(n) % classes)._replace(**changes)


def check(train=None, validation=None, test=None, **options):
    return checked_classes(train=train or split(), validation=validation or split(), test=test or split(), **options)


@pytest.mark.parametrize("probe", PROBES)
def test_every_probe_checks_its_splits(probe):
    broken = split().x.copy()
    broken[5, 0, 0] = np.nan
    with pytest.raises(UserError, match=mentions("test sample 5 NaN")):
        PROBES[probe](split(), split(), split(x=broken))


def test_checked_features_are_float32_and_pooled_unless_tokens_are_requested():
    import ml_dtypes

    for kind in (np.float64, np.float16, np.uint8, ml_dtypes.bfloat16):
        x = (split().x * 4 + 20).astype(kind)
        (checked, *_) = check(train=split(x=x))
        assert checked.x.dtype == np.float32
        np.testing.assert_allclose(checked.x, x.astype(np.float32).mean(axis=1), rtol=1e-6)
    assert check(tokens=True)[0].x.shape == (12, 4, 6)
    numbers = checked_numbers(train=split(y=np.arange(12)))[0]
    assert numbers.y.shape == (12, 1) and numbers.y.dtype == np.float64


def with_value(value):
    x = split().x.astype(np.float64)
    x[[2, 4], 1, 1] = value
    return x


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("validation", {"x": with_value(np.inf)}, "sample 2 infinity 2 12"),
        ("validation", {"x": with_value(-1e30)}, "sample 2 1e+18 2 12"),
        ("train", {"x": np.full((12, 3), 1e300)}, "sample 0 1e+18 12"),
        ("test", {"x": split().x[..., :5]}, "train [6] validation [6] [5]"),
        ("train", {"x": split().x[:11]}, "11 targets [12]"),
        ("test", {"ids": np.arange(3)}, "12 ids [3]"),
        ("train", {"x": np.ones(12)}, "[12] [n, D]"),
        ("train", {"x": np.ones((12, 2, 2, 2))}, "[12, 2, 2, 2] [n, D]"),
        ("train", {"x": np.ones((0, 6)), "y": np.zeros(0, int)}, "[0, 6] nothing"),
        ("train", {"x": np.ones((12, 0)), "y": np.zeros(12, int)}, "[12, 0] nothing"),
        ("train", {"x": np.ones((12, 0, 6)), "y": np.zeros(12, int)}, "[12, 0, 6] nothing"),
        ("train", {"x": np.full((12, 2), "a")}, "features numbers [n, D]"),
        ("train", {"x": np.full((12, 2), None)}, "features numbers [n, D]"),
        ("train", {"x": np.ones((12, 2), complex)}, "features numbers [n, D]"),
        ("train", {"x": [[1.0], [1.0, 2.0]]}, "features numbers [n, D]"),
        ("train", {"x": None}, "features numbers [n, D]"),
    ],
)
def test_hostile_features_are_named(name, changes, words):
    with pytest.raises(UserError, match=mentions(name, words)):
        check(**{name: split(**changes)})


def test_features_without_tokens_are_refused_by_probes_of_tokens():
    with pytest.raises(UserError, match=mentions("train features [12, 6] tokens [n, N, D]")):
        check(train=split(x=split().x[:, 0]), tokens=True)


@pytest.mark.parametrize(
    "name, y, words",
    [
        ("validation", np.linspace(0, 1, 12), "float64 [12] classes"),
        ("validation", np.zeros((12, 2), int), "int64 [12, 2] classes"),
        ("validation", np.full(12, None), "object [12] classes"),
        ("test", np.array(list("abcabcabcabc")), "<U1 train int64"),
        ("train", np.full(12, 7), "12 class 7"),
    ],
)
def test_hostile_classes_are_named(name, y, words):
    with pytest.raises(UserError, match=mentions(name, words)):
        check(**{name: split(y=y)})


def test_classes_without_enough_samples_are_named():
    with pytest.raises(UserError, match=mentions("test 12 14 classes")):
        check(train=split(28, classes=14), validation=split(28, classes=14))
    with pytest.warns(UserWarning, match=mentions("test train class 3, 4")):
        check(test=split(classes=5))


def test_splits_that_share_samples_are_refused():
    names = lambda first: np.array([f"clip-{i}" for i in range(first, first + 12)])
    check(split(ids=names(0)), split(ids=names(12)), split(ids=names(24)))
    with pytest.raises(UserError, match=mentions("validation test 2 clip-22")):
        check(split(ids=names(0)), split(ids=names(12)), split(ids=names(22)))
    with pytest.raises(UserError, match=mentions("train test 12 clip-0")):
        check(train=split(ids=names(0)), test=split(ids=names(0)))
