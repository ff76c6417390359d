from types import SimpleNamespace

from selfflow.benchmark import features as features_benchmark
from selfflow.benchmark.features import FeaturesRate, features_rates
from selfflow.config.resolve import resolve
from selfflow.run.prepare_data import prepare_data


def test_extraction_and_forward_passes_of_a_round_are_timed_in_turns(tiny_experiment, tiny_run, data_dir, monkeypatch):
    # What clocks show: before and after the passes that compile, then of three rounds the extraction and the passes.
    seconds = [1000, 4, 3, 5, 4, 100, 5]
    shown = iter([reading for _ in range(2) for took in seconds for reading in (0, took)])
    monkeypatch.setattr(features_benchmark, "time", SimpleNamespace(perf_counter=lambda: next(shown)))
    setup = resolve(tiny_experiment)
    rates = features_rates(setup, prepare_data(setup, data_dir)[0], rounds=3)
    assert rates == [
        FeaturesRate("joint", 24, 2, 24 / 5, 24 / 4, 3 / 4),
        FeaturesRate("image", 24, 4, 24 / 5, 24 / 4, 3 / 4),
    ]
    assert next(shown, None) is None
