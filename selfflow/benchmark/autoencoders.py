"""Speed of autoencoders on this machine, their error in bfloat16, and their memory for long clips."""

import dataclasses
import importlib.util
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
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
_TIMES = (1, 4, 16)  # lengths of clips, in units of `_LONG` elements
_LONG = 2**21


@dataclass(frozen=True)
class AutoencoderRate:
    """One modality.

    Attributes:
      modality: its name.
      identity: of its autoencoder.
      clips: in a round.
      shape: of one clip.
      encoded_per_second, decoded_per_second: images, frames or audio samples, in the median round.
      torch_encode_ratio, torch_decode_ratio: time of diffusers on the same cores divided by ours, median over rounds;
        None without a reference.
      bfloat16_encode_ratio: time in float32 divided by that in bfloat16.
      bfloat16_error: relative root mean square error of latents in bfloat16.
      bfloat16_decoded_db: PSNR, for audio SNR, of media decoded in bfloat16 against float32.
      memory: (frames or samples, bytes) of clips of several lengths: the peak while they are encoded and decoded,
        beyond the clip, its latents and its reconstruction, and beyond the peak of the shortest.
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
    """Times the autoencoder of each modality on noise of the shape in the mixture.

    Args:
      setup: of the experiment.
      feed: its data.
      rounds: timed repetitions.
    """
    found = {}
    experiment = setup.experiment
    for name, component in experiment.mixture.items():
        latents = feed.latents[component.data]
        for m, media in setup.media[name].items():
            config = experiment.autoencoders[m]
            if m not in found and can_decode(config):
                path = latents.autoencoder_path(m)
                found[m] = _rate(m, config, path, latents.autoencoder(m, config), media.shape, rounds)
    return list(found.values())


def _rate(
    m: str, config: AnyAutoencoder, path: Path, autoencoder: Autoencoder, shape: tuple[int, ...], rounds: int
) -> AutoencoderRate:
    media = _noise(m, (max(_CLIPS, autoencoder.batch_size), *shape))
    latents = autoencoder.encode(media)
    units = len(media) * (shape[0] if medium_of(m).has_time else 1)
    # Autoencoders of diffusers are pinned to the dtype of their config.
    half = None
    if config.kind != "diffusers" and getattr(config, "dtype", "") == "float32":
        half = load_autoencoder(dataclasses.replace(config, dtype="bfloat16"), path)
    theirs = _torch(config, media, autoencoder.batch_size)
    timed: dict[str, Callable[[], Any]] = {
        "encode": lambda: autoencoder.encode(media),
        "decode": lambda: autoencoder.decode(latents),
    }
    if half:
        timed["half"] = lambda: half.encode(media)
    if theirs:
        timed |= {"torch_encode": theirs[0], "torch_decode": theirs[1]}
    for run in timed.values():
        run()  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    with Progress(f"{m} autoencoder", rounds, unit="round") as shown:
        for _ in range(rounds):
            for name, run in timed.items():
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
            shown.advance()
    ratio = lambda a, b: float(np.median(np.divide(seconds[a], seconds[b]))) if a in seconds and b in seconds else None
    error = made = None
    if half:
        coded = half.encode(media)
        error = float(np.sqrt(np.mean(np.square(coded - latents)) / np.mean(np.square(latents))))
        made = METRICS[medium_of(m).metrics[0]](autoencoder.decode(latents), half.decode(latents))
    return AutoencoderRate(
        m,
        autoencoder.identity,
        len(media),
        shape,
        units / float(np.median(seconds["encode"])),
        units / float(np.median(seconds["decode"])),
        ratio("torch_encode", "encode"),
        ratio("torch_decode", "decode"),
        ratio("encode", "half"),
        error,
        made,
        _memory(m, config, path, shape) if medium_of(m).has_time else None,
    )


def _noise(m: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(0)
    if medium_of(m).is_visual:
        return rng.integers(0, 256, shape, np.uint8)
    return (3000 * rng.standard_normal(shape, np.float32)).astype(np.int16)


def _torch(config: AnyAutoencoder, media: np.ndarray, together: int) -> tuple[Callable, Callable] | None:
    """Encoding and decoding by diffusers; None if it is not installed or the weights are not in its folder layout."""
    folder = find_weights(config).parent if config.kind in _TORCH and config.path else None
    if not folder or not (folder / "config.json").exists() or not importlib.util.find_spec("diffusers"):
        return None
    import torch

    from selfflow.autoencoders.diffusers_model import load_model

    torch.set_num_threads(cores())
    model, _ = load_model(_TORCH[config.kind], str(folder), "", config.dtype)
    images = np.moveaxis(media.reshape(-1, *media.shape[-3:]).astype(np.float32) / 127.5 - 1, -1, 1)
    x = torch.as_tensor(np.ascontiguousarray(images)).to(model.device, model.dtype)
    with torch.inference_mode():
        z = model.encode(x[:1]).latent_dist.mode()
        z = z.new_zeros(len(x), *z.shape[1:]).normal_()

    def by(network: Callable, given: Any) -> Callable:
        def run() -> None:
            with torch.inference_mode():
                for i in range(0, len(given), together):
                    network(given[i : i + together])
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        return run

    return by(model.encode, x), by(model.decode, z)


def _memory(m: str, config: AnyAutoencoder, path: Path, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Peak memory of each length, measured in a separate process."""
    hop, lead = config.temporal_stride, config.causal_padding
    each = int(np.prod(shape[1:]))
    lengths = [max(1, times * _LONG // each // hop) * hop - lead for times in _TIMES]
    found = []
    with Progress(f"memory of the {m} autoencoder", len(lengths), unit="clip") as shown:
        for length in lengths:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=start_worker) as pool:
                try:
                    found.append(pool.submit(_peak, m, config, path, (length, *shape[1:])).result())
                except (MemoryError, RuntimeError) as error:  # out of memory shows in several ways
                    print(f"note: a clip of {length:,} does not fit in memory ({one_line(error)})", file=sys.stderr)
                    break
            shown.advance()
    return [(length, peak - found[0]) for length, peak in zip(lengths, found)]


def _peak(m: str, config: AnyAutoencoder, path: Path, shape: tuple[int, ...]) -> int:
    autoencoder, media = load_autoencoder(config, path), _noise(m, shape)
    mean, deviation = autoencoder.encode_distribution(media)
    made = autoencoder.decode(mean)
    import jax

    statistics = jax.devices()[0].memory_stats()
    if statistics:  # of an accelerator; it holds only pieces of the clip
        return statistics["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024
    own = media.nbytes + mean.nbytes + (0 if deviation is None else deviation.nbytes) + made.nbytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - own
