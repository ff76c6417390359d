import tracemalloc

import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.evaluation.accumulate import Accumulator, Statistics, load_reference
from selfflow.representation.moments import Moments
from tests.conftest import mentions


class Drawn:
    """The identity of an extractor whose features are drawn from a distribution."""

    name, medium = "Drawn", "image"

    def __init__(self, width: int = 5, identity: str = "Drawn-1", distance: str = "FD-Drawn"):
        self.width, self.identity, self.distance = width, identity, distance


def gathered(features: np.ndarray, samples: int = 20, keep: int = 30, sizes=(7, 1, 0, 50)) -> Accumulator:
    """Features in batches of these sizes, and the rest."""
    accumulator = Accumulator(Drawn(features.shape[1]), samples, keep)
    for part in np.split(features, np.cumsum(sizes)):
        accumulator.add(part)
    return accumulator


@pytest.fixture
def features() -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((90, 5)) * 3 + 1000).astype(np.float32)


def test_moments_are_those_of_all_samples_whatever_the_batches(features):
    moments = Moments(5)
    for part in np.split(features, [1, 40, 40, 63]):
        moments.add(part)
    exact = features.astype(np.float64)
    assert moments.count == 90
    np.testing.assert_allclose(moments.mean, exact.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(exact, rowvar=False), rtol=1e-10, atol=1e-10)


def test_a_set_is_cut_at_its_n_and_keeps_what_it_should(features):
    accumulator, exact = gathered(features), features.astype(np.float64)
    np.testing.assert_allclose(accumulator.first.covariance, np.cov(exact[:20], rowvar=False), rtol=1e-9)
    np.testing.assert_allclose(accumulator.second.covariance, np.cov(exact[20:40], rowvar=False), rtol=1e-9)
    np.testing.assert_array_equal(accumulator.kept, features[:30])
    assert (accumulator.first.count, accumulator.second.count, accumulator.count) == (20, 20, 90)


def test_memory_does_not_grow_with_the_samples():
    batch = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)

    def peak(batches: int) -> int:
        tracemalloc.start()
        accumulator = Accumulator(Drawn(32), samples=100, keep=200)
        for _ in range(batches):
            accumulator.add(batch)
        assert accumulator.kept.shape == (200, 32)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(4)
    assert peak(400) < peak(8) + 20_000  # 400 batches are 3 MB


def test_a_saved_reference_is_read_back_and_refused_for_another_extractor(tmp_path, features):
    path = tmp_path / "real.npz"
    saved = gathered(features)
    saved.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["real.npz"]
    with pytest.raises(UserError, match=mentions("folder", tmp_path / "none")):
        saved.save(tmp_path / "none" / "real.npz")
    read = load_reference(path, Drawn())
    np.testing.assert_array_equal(read.kept, saved.kept)
    np.testing.assert_array_equal(read.second.scatter, saved.second.scatter)
    assert (read.count, read.samples, read.features, read.identity) == (90, 20, "FD-Drawn", "Drawn-1")
    with pytest.raises(UserError, match=mentions(path, "Drawn-1 Other-2")):
        load_reference(path, Drawn(identity="Other-2"))


def test_damaged_and_foreign_references_are_named(tmp_path, features):
    path = tmp_path / "real.npz"
    gathered(features).save(path)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=mentions(path, "damaged")):
            load_reference(path, Drawn())
    gathered(features).save(path)
    whole = dict(np.load(path))
    wrong = [{"samples": 1}, {"keep": 3}, {"count": 5}, {"kept": np.zeros((3, 4))}, {"kept": np.zeros(3)}]
    wrong += [{"first_scatter": np.full((5, 5), np.nan)}, {"first_mean": np.zeros(4)}, {"keep": "x"}]
    for arrays in wrong:
        np.savez(path, **whole | arrays)
        with pytest.raises(UserError, match=mentions(path, "damaged")):
            load_reference(path, Drawn())
    for arrays, words in [
        ({"arr_0": np.zeros(3)}, "mu sigma"),
        ({"identity": np.array("Drawn-1")}, "damaged kept"),
        ({"identity": np.array([object()], object)}, "damaged .npz"),
    ]:
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=mentions(path, words)):
            load_reference(path, Drawn())
    with pytest.raises(UserError, match=mentions(tmp_path / "absent.npz")):
        load_reference(tmp_path / "absent.npz", Drawn())
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UserError, match=mentions(tmp_path / "one.npy", "damaged .npz")):
        load_reference(tmp_path / "one.npy", Drawn())


def test_statistics_of_adm_are_for_fid_s_inception_alone(tmp_path, features):
    path = tmp_path / "VIRTUAL_imagenet.npz"
    exact = features.astype(np.float64)
    statistics = {"mu": exact.mean(axis=0), "sigma": np.cov(exact, rowvar=False)}
    np.savez(path, arr_0=np.zeros((3, 4, 4, 3), np.uint8), mu_s=np.zeros(7), **statistics)
    inception = Drawn(identity="Inception-6726825d0af5", distance="FID")
    read = load_reference(path, inception)
    assert isinstance(read, Statistics)
    np.testing.assert_array_equal(read.covariance, statistics["sigma"])
    with pytest.raises(UserError, match=mentions(path, "mu sigma Inception Drawn-1")):
        load_reference(path, Drawn())
    with pytest.raises(UserError, match=mentions(path, "mu [5] sigma [5, 5] 6 channels")):
        load_reference(path, Drawn(6, distance="FID"))
    np.savez(path, mu=statistics["mu"] * np.nan, sigma=statistics["sigma"])
    with pytest.raises(UserError, match=mentions(path, "mu sigma NaN")):
        load_reference(path, inception)


def test_features_that_do_not_fit_are_refused(features):
    accumulator = gathered(features)
    with pytest.raises(UserError, match=mentions("FD-Drawn 4 channels 5")):
        accumulator.add(features[:, :4])
    broken = features[:3].copy()
    broken[2] = np.inf
    with pytest.raises(UserError, match=mentions("FD-Drawn 90 sample 2 NaN")):
        accumulator.add(broken)
    with pytest.raises(UserError, match=mentions("Frechet 1 2")):
        Accumulator(Drawn(), 1)
    with pytest.raises(UserError, match=mentions("keep 0 1")):
        Accumulator(Drawn(), 2, 0)
    with pytest.raises(UserError, match=mentions("covariance 1 2")):
        gathered(features[:1]).first.covariance
