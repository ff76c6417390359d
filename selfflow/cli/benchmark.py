"""`selfflow benchmark`: measures the speed of an experiment's parts on this machine."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfflow.cli.parse import parse
from selfflow.config.resolve import resolve
from selfflow.config.setup import FlowSetup
from selfflow.errors import check_above_zero

_EXAMPLE = "selfflow benchmark experiments/quickstart.py --only input"


@dataclass(frozen=True)
class Options:
    """Flags of `selfflow benchmark` that are not fields of the experiment."""

    only: Literal["step", "input", "sampling", "features", "autoencoders", "all"] = "all"
    """The part to measure: `step`, the compiled update on random numbers, on one device; `input`, from latents on disk
    to batches; `sampling`, each solver, and only the network; `features`, from latents on disk to files of features,
    and only the forward pass, on one device; `autoencoders`, encoding and decoding, also in bfloat16 and with diffusers
    if it has the autoencoder, and the memory for long clips."""
    rounds: int = 10
    """Timed steps, each paired with a step without alignment; also the number of repetitions for each solver, component
    and autoencoder."""
    per_token: bool = False
    """Also time the step of a SiT with its modulation computed for every token, as in the released code."""
    seconds: float = 5.0
    """Duration in seconds of each measurement of reading."""
    timed_steps: int = 40
    """Training steps for the measurement of the time spent waiting for data."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def __post_init__(self):
        check_above_zero(self, "--", "rounds", "seconds", "timed_steps")


def main(arguments: list[str]) -> None:
    """Parses `EXPERIMENT [--only PART] [--per-token] [--json] [--FIELD VALUE ...]` and prints the measurements."""
    parsed = parse("benchmark", arguments, _EXAMPLE, lambda file: Options())
    if parsed is None:
        return
    experiment, options, data_dir = parsed
    setup = resolve(experiment)
    results: dict[str, Any] = {}
    if options.only in ("step", "all"):
        results |= _step(setup, options)
    if options.only in ("sampling", "all"):
        results["sampling"] = _sampling(setup, options)
    if options.only in ("features", "all"):
        results["features"] = _features(setup, options, data_dir)
    if options.only in ("autoencoders", "all"):
        results["autoencoders"] = _autoencoders(setup, options, data_dir)
    if options.only in ("input", "all"):
        results["input"] = _input(setup, options, data_dir)
    if options.json:
        print(json.dumps(results, indent=1))


def _step(setup: FlowSetup, options: Options) -> dict[str, Any]:
    import jax

    from selfflow.benchmark.step import matmul_peak, mixture_mean, step_rates
    from selfflow.cli.benchmark_tables import print_steps

    model = setup.experiment.model
    model.execution.check(jax.default_backend())
    peak = matmul_peak(model.dtype)
    rates = step_rates(setup, options.rounds, peak, options.per_token)
    mean = mixture_mean(setup, rates)
    if not options.json:
        print_steps(rates, mean, peak, options.rounds, model.dtype)
    return mean | {
        "matmul_peak": peak,
        "device": jax.devices()[0].device_kind,
        "components": [dataclasses.asdict(rate) for rate in rates],
    }


def _sampling(setup: FlowSetup, options: Options) -> list[dict[str, Any]]:
    import jax

    from selfflow.benchmark.sampling import sampling_rates
    from selfflow.cli.benchmark_tables import print_sampling

    model = setup.experiment.model
    model.execution.check(jax.default_backend())
    rates = sampling_rates(setup, options.rounds)
    if not options.json:
        print_sampling(rates, options.rounds, model.dtype)
    return [dataclasses.asdict(rate) for rate in rates]


def _features(setup: FlowSetup, options: Options, data_dir: Path) -> list[dict[str, Any]]:
    import jax

    from selfflow.benchmark.features import features_rates
    from selfflow.cli.benchmark_tables import print_features
    from selfflow.run.prepare_data import prepare_data

    model = setup.experiment.model
    model.execution.check(jax.default_backend())
    source, _ = prepare_data(setup, data_dir)
    rates = features_rates(setup, source, options.rounds)
    if not options.json:
        print_features(rates, options.rounds, model.dtype)
    return [dataclasses.asdict(rate) for rate in rates]


def _autoencoders(setup: FlowSetup, options: Options, data_dir: Path) -> list[dict[str, Any]]:
    from selfflow.benchmark.autoencoders import autoencoder_rates
    from selfflow.cli.benchmark_tables import print_autoencoders
    from selfflow.run.prepare_data import prepare_data

    source, _ = prepare_data(setup, data_dir)
    rates = autoencoder_rates(setup, source, options.rounds)
    if not options.json:
        print_autoencoders(rates, options.rounds)
    return [dataclasses.asdict(rate) for rate in rates]


def _input(setup: FlowSetup, options: Options, data_dir: Path) -> dict[str, Any]:
    from selfflow.benchmark.input import generation_rate, input_rate, waiting
    from selfflow.cli.benchmark_tables import print_input
    from selfflow.data.collisions import Collisions
    from selfflow.run.prepare_data import prepare_data

    source, _ = prepare_data(setup, data_dir)
    rates = [input_rate(source, workers, options.seconds) for workers in (0, 1, 2)]
    waiting_rate = waiting(setup, source, options.timed_steps)
    generated = {}
    for name, settings in setup.experiment.data.items():
        if isinstance(settings, Collisions):
            generated[name] = generation_rate(settings)
    if not options.json:
        print_input(rates, waiting_rate, generated, source.loader, options.seconds)
    return {
        "readers": [rate._asdict() for rate in rates],
        "waiting_share": waiting_rate.waiting_share,
        "step_seconds": waiting_rate.step_seconds,
        "generated_frames_per_second": generated,
    }
