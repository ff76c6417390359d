import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.evaluation.accumulate import Accumulator, Statistics
from selfflow.evaluation.compare import compare
from selfflow.evaluation.distances import frechet, kid, precision_recall
from tests.conftest import mentions
from tests.evaluation.test_accumulate import Drawn, gathered


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((90, 5)).astype(np.float32)


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(axis=0, dtype=np.float64), np.cov(x.astype(np.float64), rowvar=False)


def test_every_number_is_of_as_many_samples_as_it_states(features):
    real, generated = features[:60], features[60:] * 2
    comparison = compare(gathered(real), gathered(generated, sizes=(11,)))
    values = comparison.values
    assert (values["kid"].value, values["kid"].error) == kid(real[:30], generated)
    assert (values["precision"].value, values["recall"].value) == precision_recall(real[:30], generated)
    assert values["frechet"].value == pytest.approx(frechet(*moments(real[:20]), *moments(generated[:20])), rel=1e-9)
    assert comparison.frechet_real == pytest.approx(frechet(*moments(real[:20]), *moments(real[20:40])), rel=1e-9)
    assert (comparison.real, comparison.generated, comparison.compared, comparison.samples) == (60, 30, (30, 30), 20)
    assert (comparison.features, comparison.identity, comparison.headline) == ("FD-Drawn", "Drawn-1", "kid")


def test_no_distance_is_of_fewer_samples_than_it_states(features):
    comparison = compare(gathered(features[:39]), gathered(features[:19], sizes=()))
    assert "frechet" not in comparison.values and comparison.frechet_real is None and "kid" in comparison.values
    comparison = compare(gathered(features[:3], sizes=()), gathered(features))
    assert comparison.values == {} and comparison.headline is None


def test_the_frechet_distance_leads_from_ten_thousand_on():
    rng = np.random.default_rng(0)
    many = [gathered(rng.standard_normal((20_000, 3)), 10_000, 50) for _ in range(2)]
    comparison = compare(*many)
    assert comparison.headline == "frechet"
    assert 0 < comparison.values["frechet"].value < 0.01 and 0 < comparison.frechet_real < 0.01
    few = gathered(rng.standard_normal((9_999, 3)), 10_000, 50)
    assert compare(many[0], few).headline == "kid"
    small = [gathered(rng.standard_normal((20_000, 3)), 5_000, 50) for _ in range(2)]
    assert compare(*small).headline == "kid"  # a Frechet distance of 5 000 leads nowhere


def test_statistics_alone_give_a_frechet_distance_and_no_more(features):
    comparison = compare(Statistics(*moments(features)), gathered(features[:30]))
    distance = comparison.values["frechet"].value
    assert distance == pytest.approx(frechet(*moments(features), *moments(features[:20])), rel=1e-9)
    assert set(comparison.values) == {"frechet"} and (comparison.real, comparison.compared) == (None, (0, 30))
    assert comparison.frechet_real is None and comparison.headline is None


def test_sets_that_cannot_be_compared_are_named(features):
    good = gathered(features)
    for count in (0, 1):
        with pytest.raises(UserError, match=mentions("generated", count, "samples")):
            compare(good, gathered(features[:count], sizes=()))
        with pytest.raises(UserError, match=mentions("real", count, "samples")):
            compare(gathered(features[:count], sizes=()), good)
    other = Accumulator(Drawn(identity="Drawn-2"), 20)
    other.add(features)
    with pytest.raises(UserError, match=mentions("real Drawn-2 Drawn-1")):
        compare(other, good)
    with pytest.raises(UserError, match=mentions("10 real 20 generated")):
        compare(gathered(features, 10), good)
