from selfflow.benchmark.sampling import SOLVERS, sampling_rates
from selfflow.config.resolve import resolve


def test_every_solver_is_timed_beside_the_network(tiny_experiment):
    rates = sampling_rates(resolve(tiny_experiment), rounds=1, samples=4)
    assert [(rate.component, rate.solver) for rate in rates] == [
        (s, solver) for s in ("joint", "image") for solver in SOLVERS
    ]
    assert [rate.evaluations for rate in rates] == [2, 3, 2] * 2
    for rate in rates:
        assert rate.samples == 4 and rate.samples_per_second > 0 and rate.overhead > -1
        assert rate.evaluations_per_second == rate.samples_per_second * rate.evaluations
