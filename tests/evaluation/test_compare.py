import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.evaluation.accumulate import Accumulator, Statistics
from selfflow.evaluation.compare import compare
from selfflow.evaluation.distances import frechet, kid, precision_recall
from tests.evaluation.test_accumulate import Drawn, gathered


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((90, 5)).astype(np.float32)


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(axis=0, dtype=np.float64), np.cov(x.astype(np.float64), rowvar=False)


def test_every_number_is_of_the_samples_that_it_says(features):
    real, generated = features[:60], features[60:] * 2
    found = compare(gathered(real), gathered(generated, sizes=(11,)))
    values = found.values
    assert (values["kid"].value, values["kid"].error) == kid(real[:30], generated)
    assert (values["precision"].value, values["recall"].value) == precision_recall(real[:30], generated)
    assert values["frechet"].value == pytest.approx(frechet(*moments(real[:20]), *moments(generated[:20])), rel=1e-9)
    assert found.frechet_real == pytest.approx(frechet(*moments(real[:20]), *moments(real[20:40])), rel=1e-9)
    assert (found.real, found.generated, found.compared, found.samples) == (60, 30, (30, 30), 20)
    assert (found.features, found.identity, found.headline) == ("FD-Drawn", "Drawn-1", "kid")


def test_no_distance_is_of_fewer_samples_than_it_says(features):
    found = compare(gathered(features[:39]), gathered(features[:19], sizes=()))
    assert "frechet" not in found.values and found.frechet_real is None and "kid" in found.values
    found = compare(gathered(features[:3], sizes=()), gathered(features))
    assert found.values == {} and found.headline is None


def test_the_frechet_distance_leads_from_ten_thousand_on():
    rng = np.random.default_rng(0)
    many = [gathered(rng.standard_normal((20_000, 3)), 10_000, 50) for _ in range(2)]
    found = compare(*many)
    assert found.headline == "frechet" and 0 < found.values["frechet"].value < 0.01 and 0 < found.frechet_real < 0.01
    few = gathered(rng.standard_normal((9_999, 3)), 10_000, 50)
    assert compare(many[0], few).headline == "kid"
    small = [gathered(rng.standard_normal((20_000, 3)), 5_000, 50) for _ in range(2)]
    assert compare(*small).headline == "kid"  # a Frechet distance of 5 000 leads nowhere


def test_statistics_alone_give_a_frechet_distance_and_no_more(features):
    found = compare(Statistics(*moments(features)), gathered(features[:30]))
    distance = found.values["frechet"].value
    assert distance == pytest.approx(frechet(*moments(features), *moments(features[:20])), rel=1e-9)
    assert set(found.values) == {"frechet"} and (found.real, found.compared) == (None, (0, 30))
    assert found.frechet_real is None and found.headline is None


def test_sets_that_cannot_be_compared_are_named(features):
    good = gathered(features)
    for count in (0, 1):
        with pytest.raises(UserError, match=f"generated: {count} samples are too few"):
            compare(good, gathered(features[:count], sizes=()))
        with pytest.raises(UserError, match=f"real: {count} samples are too few"):
            compare(gathered(features[:count], sizes=()), good)
    other = Accumulator(Drawn(identity="Drawn-2"), 20)
    other.add(features)
    with pytest.raises(UserError, match="the real set was made with Drawn-2, and not with Drawn-1"):
        compare(other, good)
    with pytest.raises(UserError, match="10 real and 20 generated"):
        compare(gathered(features, 10), good)
