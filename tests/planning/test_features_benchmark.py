import pytest

from selfflow.planning.features_benchmark import features_rates
from selfflow.prepare import prepare


def test_extraction_is_timed_beside_the_forward_pass_on_all_clips_of_a_round(tiny_experiment, tiny_run, data_dir):
    experiment = tiny_experiment.resolved()
    rates = features_rates(experiment, prepare(experiment, data_dir)[0], rounds=1)
    assert [(rate.set, rate.clips, rate.batch_size) for rate in rates] == [("joint", 24, 2), ("image", 24, 4)]
    for rate in rates:
        assert 0 < rate.ratio and rate.ratio * rate.bare_per_second == pytest.approx(rate.clips_per_second)
