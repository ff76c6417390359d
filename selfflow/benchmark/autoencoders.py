"""Benchmark of autoencoders: speed, error in bfloat16, and memory for long clips."""

import dataclasses
import importlib.util
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from selfflow.autoencoders.config import AnyAutoencoder, Autoencoder, can_decode
from selfflow.autoencoders.load import load_autoencoder
from selfflow.autoencoders.quality import METRICS
from selfflow.config.setup import FlowSetup
from selfflow.data.shards import one_line
from selfflow.data.workers import cores, start_worker
from selfflow.input.batches import BatchSource
from selfflow.latents.pretrained_weights import find_weights
from selfflow.media import medium_of
from selfflow.progress import Progress

_TORCH = {"sd_vae": "AutoencoderKL", "flux2_vae": "AutoencoderKLFlux2"}
_CLIPS = 4  # minimum number of clips per round
_TIMES = (1, 4, 16)  # sizes of clips, in units of `_LONG` elements
_LONG = 2**21


@dataclass(frozen=True)
class AutoencoderRate:
    """Measurements of the autoencoder of one modality.

    Attributes:
      modality: name of the modality.
      identity: identity of the autoencoder.
      clips: number of clips in a round.
      shape: shape of one clip.
      encoded_per_second: images, frames or audio samples encoded per second, in the median round.
      decoded_per_second: images, frames or audio samples decoded per second, in the median round.
      torch_encode_ratio: encoding time of diffusers on the same cores divided by ours, median over rounds; None without
        a reference.
      torch_decode_ratio: decoding time of diffusers divided by ours, in the same way.
      bfloat16_encode_ratio: encoding time in float32 divided by that in bfloat16, median over rounds.
      bfloat16_error: relative root mean square error of latents in bfloat16.
      bfloat16_decoded_db: PSNR, for audio SNR, of media decoded in bfloat16 with those in float32 as reference.
      memory: (frames or samples, bytes) for clips of several lengths: peak memory of encoding and decoding, without the
        clip, its latents and its reconstruction, minus the same of the shortest clip.
    """

    modality: str
    identity: str
    clips: int
    shape: tuple[int, ...]
    encoded_per_second: float
    decoded_per_second: float
    torch_encode_ratio: float | None
    torch_decode_ratio: float | None
    bfloat16_encode_ratio: float | None
    bfloat16_error: float | None
    bfloat16_decoded_db: float | None
    memory: list[tuple[int, int]] | None


def autoencoder_rates(setup: FlowSetup, feed: BatchSource, rounds: int) -> list[AutoencoderRate]:
    """Benchmarks the autoencoder of each modality on noise in the shape of the mixture's media.

    Args:
      setup: setup of the experiment.
      feed: data of the experiment.
      rounds: number of timed repetitions.
    """
    rates: dict[str, AutoencoderRate] = {}
    experiment = setup.experiment
    for name, component in experiment.mixture.items():
        latents = feed.latents[component.data]
        for m, media in setup.media[name].items():
            config = experiment.autoencoders[m]
            # Each modality is measured once, with the clip shape of its first component.
            if m not in rates and can_decode(config):
                path = latents.autoencoder_path(m)
                rates[m] = _rate(m, config, path, latents.autoencoder(m, config), media.shape, rounds)
    return list(rates.values())


def _rate(
    m: str, config: AnyAutoencoder, path: Path, autoencoder: Autoencoder, shape: tuple[int, ...], rounds: int
) -> AutoencoderRate:
    media = _noise(m, (max(_CLIPS, autoencoder.batch_size), *shape))
    latents = autoencoder.encode(media)
    units = len(media) * (shape[0] if medium_of(m).has_time else 1)
    # The dtype of autoencoders of diffusers is fixed by their config.
    half = None
    if config.kind != "diffusers" and getattr(config, "dtype", "") == "float32":
        half = load_autoencoder(dataclasses.replace(config, dtype="bfloat16"), path)
    calls: dict[str, Callable[[], Any]] = {
        "encode": partial(autoencoder.encode, media),
        "decode": partial(autoencoder.decode, latents),
    }
    if half:
        calls["half"] = partial(half.encode, media)
    calls |= _diffusers_calls(config, media, autoencoder.batch_size)
    seconds = _round_seconds(calls, rounds, f"{m} autoencoder")

    def ratio(above: str, below: str) -> float | None:
        if above not in seconds or below not in seconds:
            return None
        return float(np.median(seconds[above] / seconds[below]))

    error = decoded_db = None
    if half:
        half_latents = half.encode(media)
        error = float(np.sqrt(np.mean(np.square(half_latents - latents)) / np.mean(np.square(latents))))
        decoded_db = METRICS[medium_of(m).metrics[0]](autoencoder.decode(latents), half.decode(latents))
    return AutoencoderRate(
        modality=m,
        identity=autoencoder.identity,
        clips=len(media),
        shape=shape,
        encoded_per_second=units / float(np.median(seconds["encode"])),
        decoded_per_second=units / float(np.median(seconds["decode"])),
        torch_encode_ratio=ratio("torch_encode", "encode"),
        torch_decode_ratio=ratio("torch_decode", "decode"),
        bfloat16_encode_ratio=ratio("encode", "half"),
        bfloat16_error=error,
        bfloat16_decoded_db=decoded_db,
        memory=_memory(m, config, path, shape) if medium_of(m).has_time else None,
    )


def _round_seconds(calls: dict[str, Callable[[], Any]], rounds: int, title: str) -> dict[str, np.ndarray]:
    """Measures the times [rounds] of each call; calls alternate, so that load of the machine affects all of them."""
    for call in calls.values():
        call()  # compiles
    seconds = {name: np.empty(rounds) for name in calls}
    with Progress(title, rounds, unit="round") as shown:
        for i in range(rounds):
            for name, call in calls.items():
                start_time = time.perf_counter()
                call()
                seconds[name][i] = time.perf_counter() - start_time
            shown.advance()
    return seconds


def _noise(m: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns noise in the format of raw media: uint8 pixels or int16 samples."""
    rng = np.random.default_rng(0)
    if medium_of(m).is_visual:
        return rng.integers(0, 256, shape, np.uint8)
    return (3000 * rng.standard_normal(shape, np.float32)).astype(np.int16)


def _diffusers_calls(config: AnyAutoencoder, media: np.ndarray, batch_size: int) -> dict[str, Callable[[], None]]:
    """Returns the calls `torch_encode` and `torch_decode`, which encode and decode with diffusers.

    Returns {} if diffusers is not installed or the weights are not in its folder layout.
    """
    folder = find_weights(config).parent if config.kind in _TORCH and config.path else None
    if not folder or not (folder / "config.json").exists() or not importlib.util.find_spec("diffusers"):
        return {}
    import torch

    from selfflow.autoencoders.diffusers_model import load_model

    torch.set_num_threads(cores())
    model, _ = load_model(_TORCH[config.kind], str(folder), "", config.dtype)
    # uint8 [..., H, W, 3] to [B, 3, H, W] in -1 to 1.
    images = np.moveaxis(media.reshape(-1, *media.shape[-3:]).astype(np.float32) / 127.5 - 1, -1, 1)
    x = torch.as_tensor(np.ascontiguousarray(images)).to(model.device, model.dtype)
    with torch.inference_mode():
        # The time of decoding depends only on shape and dtype of the latents.
        z = model.encode(x[:1]).latent_dist.mode()
        z = z.new_zeros(len(x), *z.shape[1:]).normal_()

    def run(network: Callable, inputs: torch.Tensor) -> None:
        with torch.inference_mode():
            for i in range(0, len(inputs), batch_size):
                network(inputs[i : i + batch_size])
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # kernels are launched asynchronously

    return {"torch_encode": partial(run, model.encode, x), "torch_decode": partial(run, model.decode, z)}


def _memory(m: str, config: AnyAutoencoder, path: Path, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Measures (length, bytes) for clips of several lengths: peak memory minus that of the shortest clip."""
    stride, elements = config.temporal_stride, int(np.prod(shape[1:]))  # elements of one frame
    lengths = []
    for times in _TIMES:
        latent_frames = max(1, times * _LONG // elements // stride)
        lengths.append(latent_frames * stride - config.causal_padding)
    peaks = []
    with Progress(f"memory of the {m} autoencoder", len(lengths), unit="clip") as shown:
        for length in lengths:
            # Each length is measured in a new process, because the recorded peak of a process never decreases.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=start_worker) as pool:
                try:
                    peaks.append(pool.submit(_peak, m, config, path, (length, *shape[1:])).result())
                except (MemoryError, RuntimeError) as error:  # out-of-memory errors have several types
                    print(f"note: a clip of {length:,} does not fit in memory ({one_line(error)})", file=sys.stderr)
                    break
            shown.advance()
    return [(length, peak - peaks[0]) for length, peak in zip(lengths, peaks)]


def _peak(m: str, config: AnyAutoencoder, path: Path, shape: tuple[int, ...]) -> int:
    """Returns the peak memory of this process for encoding and decoding a clip, without the clip and both results."""
    import jax

    autoencoder, media = load_autoencoder(config, path), _noise(m, shape)
    mean, std = autoencoder.encode_distribution(media)
    decoded = autoencoder.decode(mean)

    statistics = jax.devices()[0].memory_stats()
    if statistics:  # device memory of an accelerator, which holds only parts of the clip
        return statistics["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB on Linux
    own = media.nbytes + mean.nbytes + (0 if std is None else std.nbytes) + decoded.nbytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - own
