import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.representation.probes.attentive import attentive_probe
from selfflow.representation.probes.linear import linear_probe
from selfflow.representation.probes.logistic import few_shot, logistic_probe, tree_probe
from selfflow.representation.probes.neighbours import knn_probe
from selfflow.representation.probes.split import Split, checked_classes, checked_numbers

PROBES = {
    "logistic": logistic_probe,
    "trees": tree_probe,
    "linear": linear_probe,
    "attentive": attentive_probe,
    "neighbours": knn_probe,
    "few shots": lambda train, validation, test: few_shot(train, test),
}


def given(n=12, classes=3, **changes):
    random = np.random.default_rng(n)
    return Split(random.standard_normal((n, 4, 6)).astype(np.float32), np.arange(n) % classes)._replace(**changes)


def check(train=None, validation=None, test=None, **options):
    return checked_classes(train=train or given(), validation=validation or given(), test=test or given(), **options)


@pytest.mark.parametrize("probe", PROBES)
def test_every_probe_checks_what_it_is_given(probe):
    broken = given().x.copy()
    broken[5, 0, 0] = np.nan
    with pytest.raises(UserError, match="test: features of sample 5 hold NaN, infinity"):
        PROBES[probe](given(), given(), given(x=broken))


def test_what_is_checked_is_float32_and_pooled_unless_tokens_are_asked_for():
    import ml_dtypes

    for kind in (np.float64, np.float16, np.uint8, ml_dtypes.bfloat16):
        x = (given().x * 4 + 20).astype(kind)
        (found, *_) = check(train=given(x=x))
        assert found.x.dtype == np.float32
        np.testing.assert_allclose(found.x, x.astype(np.float32).mean(axis=1), rtol=1e-6)
    assert check(tokens=True)[0].x.shape == (12, 4, 6)
    numbers = checked_numbers(train=given(y=np.arange(12)))[0]
    assert numbers.y.shape == (12, 1) and numbers.y.dtype == np.float64


def test_hostile_features_are_named():
    x = given().x
    for value, shown in ((np.inf, "infinity"), (-1e30, "beyond 1e\\+18")):
        broken = x.astype(np.float64)
        broken[[2, 4], 1, 1] = value
        with pytest.raises(UserError, match=f"validation: features of sample 2 .*{shown}.*, and 2 of 12 samples do"):
            check(validation=given(x=broken))
    with pytest.raises(UserError, match="train: features of sample 0 hold"):
        check(train=given(x=np.full((12, 3), 1e300)))
    with pytest.raises(UserError, match=r"features of different shapes, train \[6\], validation \[6\], test \[5\]"):
        check(test=given(x=x[..., :5]))
    with pytest.raises(UserError, match="train: 11 samples and targets of shape \\[12\\]"):
        check(train=given(x=x[:11]))
    with pytest.raises(UserError, match="test: 12 samples and ids of shape \\[3\\]"):
        check(test=given(ids=np.arange(3)))
    for shape in ((12,), (12, 2, 2, 2)):
        with pytest.raises(UserError, match="train: features have shape .* this probe takes"):
            check(train=given(x=np.ones(shape)))
    with pytest.raises(UserError, match=r"train: features have shape \[12, 6\], and this probe takes tokens"):
        check(train=given(x=x[:, 0]), tokens=True)
    for shape in ((0, 6), (12, 0), (12, 0, 6)):
        with pytest.raises(UserError, match="hold nothing"):
            check(train=given(x=np.ones(shape), y=np.zeros(shape[0], int)))
    for x in (np.full((12, 2), "a"), np.full((12, 2), None), np.ones((12, 2), complex), [[1.0], [1.0, 2.0]], None):
        with pytest.raises(UserError, match="train: features are no array of numbers"):
            check(train=given(x=x))


def test_hostile_classes_are_named():
    for y in (np.linspace(0, 1, 12), np.zeros((12, 2), int), np.full(12, None)):
        with pytest.raises(UserError, match="validation: targets are .* give classes"):
            check(validation=given(y=y))
    with pytest.raises(UserError, match="test: classes are <U1 and those of train int64"):
        check(test=given(y=np.array(list("abcabcabcabc"))))
    with pytest.raises(UserError, match="train: all 12 samples are of class 7"):
        check(train=given(y=np.full(12, 7)))
    with pytest.raises(UserError, match="test: 12 samples of 14 classes"):
        check(train=given(28, classes=14), validation=given(28, classes=14))
    with pytest.warns(UserWarning, match="test: train shows no sample of class 3, 4: none can be found"):
        check(test=given(classes=5))


def test_splits_that_share_samples_are_refused():
    names = lambda first: np.array([f"clip {i}" for i in range(first, first + 12)])
    check(given(ids=names(0)), given(ids=names(12)), given(ids=names(24)))
    with pytest.raises(UserError, match="validation and test share 2 samples, clip 22 among them"):
        check(given(ids=names(0)), given(ids=names(12)), given(ids=names(22)))
    with pytest.raises(UserError, match="train and test share 12 samples"):
        check(train=given(ids=names(0)), test=given(ids=names(0)))
