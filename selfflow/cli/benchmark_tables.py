"""Tables of `selfflow benchmark`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from selfflow.benchmark.autoencoders import AutoencoderRate
from selfflow.benchmark.features import FeaturesRate
from selfflow.benchmark.input import InputRate, Waiting
from selfflow.benchmark.sampling import SamplingRate
from selfflow.benchmark.step import StepRate
from selfflow.data.workers import cores
from selfflow.input.batches import LoaderOptions
from selfflow.media import medium_of


def print_steps(rates: Sequence[StepRate], mean: Mapping[str, Any], peak: float, rounds: int, dtype: str) -> None:
    """Prints the speed of the compiled step of each component, and the mean of the mixture.

    Args:
      rates: rates of each component of the mixture.
      mean: mean of the mixture, from `mixture_mean`.
      peak: measured FLOP/s of a matrix product.
      rounds: timed steps of each component.
      dtype: dtype of the model.
    """
    print(f"\nThe compiled step, {rounds} rounds, {_device()}, {dtype}:")
    print(
        f"  {'component':<18} {'s/step':>8} {'spread':>8} {'tokens/s':>10} {'GFLOP':>9} {'of jaxpr':>9} {'MFU':>6} "
        f"{'ratio':>6} {'peak GB':>8}"
    )
    for rate in rates:
        _print_step(rate.component, dataclasses.asdict(rate))
    if len(rates) > 1:
        _print_step("mixture", mean)
    print(f"  measured matmul peak {peak / 1e9:,.0f} GFLOP/s; ratio: to the same step without alignment")
    print("  GFLOP: from the shapes, and of the compiled program; MFU: the former as a share of the measured peak")
    for rate in rates:
        if rate.per_token_ratio is not None:
            print(f"  {rate.component}: with modulation for every token {rate.per_token_ratio:.2f} times as long")
    print(f"  compiled in {mean['compile_seconds']:.0f} s")


def _print_step(name: str, row: Mapping[str, Any]) -> None:
    """Prints one row: a `StepRate` as a dict, or the mean of the mixture, which has no spread."""
    spread = f"{row['spread_seconds']:.3f}" if "spread_seconds" in row else ""
    ratio = "-" if row["alignment_ratio"] is None else f"{row['alignment_ratio']:.2f}"
    print(
        f"  {name:<18} {row['step_seconds']:>8.3f} {spread:>8} {row['tokens_per_second']:>10,.0f} "
        f"{row['model_flops'] / 1e9:>9.1f} {row['flops'] / 1e9:>9.1f} {row['mfu']:>6.0%} {ratio:>6} "
        f"{row['peak_memory_bytes'] / 1e9:>8.2f}"
    )


def print_sampling(rates: Sequence[SamplingRate], rounds: int, dtype: str) -> None:
    """Prints the speed of each solver on each component."""
    print(f"\nSampling, {rounds} rounds, {_device()}, {dtype}:")
    print(
        f"  {'component':<12} {'solver':<15} {'together':>8} {'evaluations':>11} {'samples/s':>10} "
        f"{'eval./s':>9} {'loop':>6}"
    )
    for rate in rates:
        print(
            f"  {rate.component:<12} {rate.solver:<15} {rate.samples:>8} {rate.evaluations:>11} "
            f"{rate.samples_per_second:>10.2f} {rate.evaluations_per_second:>9.1f} {rate.overhead:>6.1%}"
        )
    print("  together: samples in a batch; eval./s: evaluations of the network, counted per sample")
    print("  loop: time in addition to that of as many bare evaluations; below 0 if the bare ones take longer to start")
    print("  medians; of more rounds if the machine is shared")


def print_features(rates: Sequence[FeaturesRate], rounds: int, dtype: str) -> None:
    """Prints the speed of feature extraction from each component."""
    print(f"\nFeatures, {rounds} rounds, {_device()}, {dtype}:")
    print(f"  {'component':<12} {'clips':>7} {'together':>8} {'clips/s':>9} {'bare/s':>9} {'ratio':>6}")
    for rate in rates:
        print(
            f"  {rate.component:<12} {rate.clips:>7} {rate.batch_size:>8} {rate.clips_per_second:>9.1f} "
            f"{rate.bare_per_second:>9.1f} {rate.ratio:>6.2f}"
        )
    print("  clips/s: from latents on disk to files of all layers; bare/s: the compiled forward pass alone")
    print("  ratio: of these two in one round; the median")


def print_autoencoders(rates: Sequence[AutoencoderRate], rounds: int) -> None:
    """Prints the speed, bfloat16 error and memory of each autoencoder."""
    print(f"\nAutoencoders, {rounds} rounds, {_device()}:")
    print(
        f"  {'modality':<9} {'autoencoder':<27} {'encoded/s':>10} {'decoded/s':>10} {'torch':>12} {'bf16':>5} "
        f"{'error':>8} {'decoded':>8}"
    )
    for rate in rates:
        torch, half = "-", f"{'-':>5} {'-':>8} {'-':>8}"
        if rate.torch_encode_ratio is not None:
            torch = f"{rate.torch_encode_ratio:.2f}, {rate.torch_decode_ratio:.2f}"
        if rate.bfloat16_error is not None:
            half = f"{rate.bfloat16_encode_ratio:>5.2f} {rate.bfloat16_error:>8.1e} {rate.bfloat16_decoded_db:>5.1f} dB"
        encoded, decoded = _rate(rate.encoded_per_second), _rate(rate.decoded_per_second)
        print(f"  {rate.modality:<9} {rate.identity:<27} {encoded:>10} {decoded:>10} {torch:>12} {half}")
    print("  encoded/s: images, video frames, audio samples; torch: time of diffusers divided by ours, to encode")
    print("  and to decode; bf16: time to encode in float32 divided by that in bfloat16, the relative error of")
    print("  its latents, and the PSNR (audio: SNR) of its decoded media relative to float32")
    for rate in rates:
        for length, extra_bytes in rate.memory or ():
            unit = medium_of(rate.modality).unit
            print(f"  memory, {rate.modality}: a clip of {length:,} {unit} takes {extra_bytes / 1e6:+,.0f} MB")
    if any(rate.memory for rate in rates):
        print("  in addition to the clip, its latents and its reconstruction, and to what the shortest clip takes")


def print_input(
    rates: Sequence[InputRate],
    waiting: Waiting,
    generated: Mapping[str, float],
    loader: LoaderOptions,
    seconds: float,
) -> None:
    """Prints the speed of reading, the share of training time spent waiting for data, and the speed of generators.

    Args:
      rates: rates of reading with different numbers of workers.
      waiting: time that training steps wait for data.
      generated: frames per second of each generated data set.
      loader: loader settings of the experiment.
      seconds: duration of each measurement of reading.
    """
    print(f"\nReading batches and nothing else, {seconds:g} s a row, {cores()} cores:")
    print(f"  {'':<22} {'samples/s':>12} {'tokens/s':>14} {'first batch after':>19}")
    for rate in rates:
        name = f"{loader.threads} threads, no worker"
        if rate.workers:
            name = f"{rate.workers} worker process{'es' if rate.workers > 1 else ''}"
        print(
            f"  {name:<22} {rate.samples_per_second:>12,.0f} {rate.tokens_per_second:>14,.0f} "
            f"{rate.start_seconds:>17.2f} s"
        )
    print(
        f"\nTraining, {waiting.steps} steps with loader.workers {loader.workers}: "
        f"{waiting.step_seconds:.3f} s a step, {waiting.waiting_share:.2%} of it spent waiting for data"
    )
    for name, frames_per_second in generated.items():
        print(f"\nGenerating {name}: {frames_per_second:,.0f} frames/s with their audio in one process")


def _rate(per_second: float) -> str:
    """Formats a rate, with two decimals below 100."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:,.2f}"


def _device() -> str:
    return jax.devices()[0].device_kind
