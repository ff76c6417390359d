"""`selfflow benchmark`: how fast an experiment's parts are on this machine."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfflow.cli.parse import parse
from selfflow.config.resolve import resolve
from selfflow.config.setup import FlowSetup
from selfflow.data.workers import cores
from selfflow.errors import check_above_zero
from selfflow.media import medium_of

_EXAMPLE = "selfflow benchmark experiments/quickstart.py --only input"


@dataclass(frozen=True)
class Options:
    """Flags of `selfflow benchmark` that are no fields of the experiment."""

    only: Literal["step", "input", "sampling", "features", "autoencoders", "all"] = "all"
    """The part to measure: `step`, the compiled update on random numbers, on one device; `input`, from latents on disk
    to batches; `sampling`, each solver beside bare evaluations of the network; `features`, from latents on disk to
    files of features, beside bare forward passes; on one device; `autoencoders`, encoding and decoding, in bfloat16
    too, beside diffusers where it can run them, and the memory that long clips take."""
    rounds: int = 10
    """Timed steps, each beside one without alignment; and how often each solver, and the features of each
    component, are
    timed."""
    per_token: bool = False
    """Also time the step of a SiT with its modulation computed for every token, as in the released code."""
    seconds: float = 5.0
    """How long each way of reading is measured."""
    timed_steps: int = 40
    """Training steps whose waiting for data is measured."""
    json: bool = False
    """Print one JSON object and no table."""

    def __post_init__(self):
        check_above_zero(self, "--", "rounds", "seconds", "timed_steps")


def main(arguments: list[str]) -> None:
    """Parses `EXPERIMENT [--only PART] [--per-token] [--json] [--FIELD VALUE ...]` and measures."""
    parsed = parse("benchmark", arguments, _EXAMPLE, lambda file: Options())
    if parsed is None:
        return
    experiment, options, data_dir = parsed
    setup = resolve(experiment)
    found: dict[str, Any] = {}
    if options.only in ("step", "all"):
        found |= _step(setup, options)
    if options.only in ("sampling", "all"):
        found |= {"sampling": _sampling(setup, options)}
    if options.only in ("features", "all"):
        found |= {"features": _features(setup, options, data_dir)}
    if options.only in ("autoencoders", "all"):
        found |= {"autoencoders": _autoencoders(setup, options, data_dir)}
    if options.only in ("input", "all"):
        found |= {"input": _input(setup, options, data_dir)}
    if options.json:
        print(json.dumps(found, indent=1))


def _step(setup: FlowSetup, options: Options) -> dict[str, Any]:
    import jax

    from selfflow.benchmark.step import matmul_peak, mixture_mean, step_rates

    setup.experiment.model.execution.check(jax.default_backend())
    peak = matmul_peak(setup.experiment.model.dtype)
    rates = step_rates(setup, options.rounds, peak, options.per_token)
    mean = mixture_mean(setup, rates)
    device = jax.devices()[0].device_kind
    if not options.json:
        print(f"\nThe compiled step, {options.rounds} rounds, {device}, {setup.experiment.model.dtype}:")
        heads = (
            ("s/step", 8),
            ("spread", 8),
            ("tokens/s", 10),
            ("GFLOP", 9),
            ("of jaxpr", 9),
            ("MFU", 6),
            ("ratio", 6),
            ("peak GB", 8),
        )
        print(f"  {'component':<18} " + " ".join(f"{head:>{width}}" for head, width in heads))
        rows = [(r.component, dataclasses.asdict(r)) for r in rates]
        rows += [("mixture", mean)] if len(rates) > 1 else []
        for name, row in rows:
            spread = f"{row['spread_seconds']:.3f}" if "spread_seconds" in row else ""
            ratio = "-" if row["alignment_ratio"] is None else f"{row['alignment_ratio']:.2f}"
            print(
                f"  {name:<18} {row['step_seconds']:>8.3f} {spread:>8} {row['tokens_per_second']:>10,.0f} "
                f"{row['model_flops'] / 1e9:>9.1f} "
                f"{row['flops'] / 1e9:>9.1f} {row['mfu']:>6.0%} {ratio:>6} {row['peak_memory_bytes'] / 1e9:>8.2f}"
            )
        print(f"  measured matmul peak {peak / 1e9:,.0f} GFLOP/s; ratio: to the same step without alignment")
        print("  GFLOP: what the shapes demand, and what the program does; MFU: the former over what the peak would do")
        for rate in rates if options.per_token else ():
            print(f"  {rate.component}: with modulation for every token {rate.per_token_ratio:.2f} times as long")
        print(f"  compiled in {mean['compile_seconds']:.0f} s")
    return mean | {"matmul_peak": peak, "device": device, "components": [dataclasses.asdict(r) for r in rates]}


def _sampling(setup: FlowSetup, options: Options) -> list[dict[str, Any]]:
    import jax

    from selfflow.benchmark.sampling import sampling_rates

    setup.experiment.model.execution.check(jax.default_backend())
    rates = sampling_rates(setup, options.rounds)
    if not options.json:
        print(f"\nSampling, {options.rounds} rounds, {jax.devices()[0].device_kind}, {setup.experiment.model.dtype}:")
        print(
            f"  {'component':<12} {'solver':<15} {'together':>8} {'evaluations':>11} {'samples/s':>10} "
            f"{'eval./s':>9} {'loop':>6}"
        )
        for r in rates:
            print(
                f"  {r.component:<12} {r.solver:<15} {r.samples:>8} {r.evaluations:>11} {r.samples_per_second:>10.2f} "
                f"{r.evaluations_per_second:>9.1f} {r.overhead:>6.1%}"
            )
        print("  eval./s: evaluations of the network, a sample each; loop: time beyond as many bare evaluations,")
        print("  below 0 where these take longer to start; medians, of more rounds where the machine is shared")
    return [dataclasses.asdict(rate) for rate in rates]


def _features(setup: FlowSetup, options: Options, data_dir: Path) -> list[dict[str, Any]]:
    import jax

    from selfflow.benchmark.features import features_rates
    from selfflow.run.prepare_data import prepare_data

    setup.experiment.model.execution.check(jax.default_backend())
    feed, _ = prepare_data(setup, data_dir)
    rates = features_rates(setup, feed, options.rounds)
    if not options.json:
        print(f"\nFeatures, {options.rounds} rounds, {jax.devices()[0].device_kind}, {setup.experiment.model.dtype}:")
        print(f"  {'component':<12} {'clips':>7} {'together':>8} {'clips/s':>9} {'bare/s':>9} {'ratio':>6}")
        for r in rates:
            print(
                f"  {r.component:<12} {r.clips:>7} {r.batch_size:>8} {r.clips_per_second:>9.1f} "
                f"{r.bare_per_second:>9.1f} {r.ratio:>6.2f}"
            )
        print("  clips/s: from latents on disk to files of all layers; bare/s: the compiled forward pass alone")
        print("  ratio: of these two in one round; the median")
    return [dataclasses.asdict(rate) for rate in rates]


def _autoencoders(setup: FlowSetup, options: Options, data_dir: Path) -> list[dict[str, Any]]:
    import jax

    from selfflow.benchmark.autoencoders import autoencoder_rates
    from selfflow.run.prepare_data import prepare_data

    feed, _ = prepare_data(setup, data_dir)
    rates = autoencoder_rates(setup, feed, options.rounds)
    if not options.json:
        print(f"\nAutoencoders, {options.rounds} rounds, {jax.devices()[0].device_kind}:")
        print(
            f"  {'modality':<9} {'autoencoder':<27} {'encoded/s':>10} {'decoded/s':>10} {'torch':>12} {'bf16':>5} "
            f"{'error':>8} {'decoded':>8}"
        )
        for r in rates:
            torch = "-" if r.torch_encode_ratio is None else f"{r.torch_encode_ratio:.2f}, {r.torch_decode_ratio:.2f}"
            half = f"{'-':>5} {'-':>8} {'-':>8}"
            if r.bfloat16_error is not None:
                half = f"{r.bfloat16_encode_ratio:>5.2f} {r.bfloat16_error:>8.1e} {r.bfloat16_decoded_db:>5.1f} dB"
            each = [f"{rate:,.{0 if rate >= 100 else 2}f}" for rate in (r.encoded_per_second, r.decoded_per_second)]
            print(f"  {r.modality:<9} {r.identity:<27} {each[0]:>10} {each[1]:>10} {torch:>12} {half}")
        print("  encoded/s: images, video frames, audio samples; torch: the time of diffusers over ours, to")
        print(
            "  encode and to decode; bf16: the time to encode in float32 over that in bfloat16, the relative error of"
        )
        print("  latents in it, and its PSNR beside float32, of sound the SNR, when it decodes")
        for r in rates:
            for length, more in r.memory or ():
                unit = medium_of(r.modality).unit
                print(f"  memory, {r.modality}: a clip of {length:,} {unit} takes {more / 1e6:+,.0f} MB")
        if any(r.memory for r in rates):
            print("  beyond the clip, its latents and what comes back, and beyond the shortest")
    return [dataclasses.asdict(rate) for rate in rates]


def _input(setup: FlowSetup, options: Options, data_dir: Path) -> dict[str, Any]:
    from selfflow.benchmark.input import generation_rate, input_rate, waiting
    from selfflow.data.collisions import Collisions
    from selfflow.run.prepare_data import prepare_data

    feed, _ = prepare_data(setup, data_dir)
    rates = [input_rate(feed, workers, options.seconds) for workers in (0, 1, 2)]
    waited = waiting(setup, feed, options.timed_steps)
    generated = {
        name: generation_rate(settings)
        for name, settings in setup.experiment.data.items()
        if isinstance(settings, Collisions)
    }
    if not options.json:
        print(f"\nReading batches and nothing else, {options.seconds:g} s a row, {cores()} cores:")
        print(f"  {'':<22} {'samples/s':>12} {'tokens/s':>14} {'first batch after':>19}")
        for rate in rates:
            plural = "es" * (rate.workers > 1)
            name = (
                f"{rate.workers} worker process{plural}"
                if rate.workers
                else f"{feed.loader.threads} threads, no worker"
            )
            print(
                f"  {name:<22} {rate.samples_per_second:>12,.0f} {rate.tokens_per_second:>14,.0f} "
                f"{rate.start_seconds:>17.2f} s"
            )
        print(
            f"\nTraining, {waited.steps} steps with loader.workers {feed.loader.workers}: "
            f"{waited.step_seconds:.3f} s a step, {waited.waiting_share:.2%} of it spent waiting for data"
        )
        for name, rate in generated.items():
            print(f"\nGenerating {name}: {rate:,.0f} frames/s with their sound in one process")
    return {
        "readers": [rate._asdict() for rate in rates],
        "waiting_share": waited.waiting_share,
        "step_seconds": waited.step_seconds,
        "generated_frames_per_second": generated,
    }
