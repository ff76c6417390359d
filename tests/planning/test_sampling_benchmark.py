import dataclasses

from selfflow.planning.sampling_benchmark import SOLVERS, sampling_rates


def test_every_solver_is_timed_beside_the_network(tiny_experiment):
    image = {"image": dataclasses.replace(tiny_experiment.mixture["image"], weight=1.0)}
    rates = sampling_rates(dataclasses.replace(tiny_experiment, mixture=image).resolved(), rounds=1)
    assert [rate.solver for rate in rates] == [*SOLVERS]
    assert [rate.evaluations for rate in rates] == [2, 3, 2]
    for rate in rates:
        assert rate.samples == 4 and rate.samples_per_second > 0 and rate.overhead > -1
        assert rate.evaluations_per_second == rate.samples_per_second * rate.evaluations
