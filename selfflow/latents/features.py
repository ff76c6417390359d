"""Features of frozen encoders: their stored form beside the latents, and the alignment targets of tokens.

The target of a token is the mean of the encoder's feature map over the area and time of the token. A cell of the map
that lies partly in the area is weighted by its share in it. The mean of means over equal parts is the mean over the
whole, so stored features may be coarser than the map, but not than the tokens: they are stored for each latent frame,
at most at the resolution of the latent. Patch sizes can therefore change, and clips can be cropped.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from selfflow.data.built import BuiltDataset
from selfflow.data.shards import BadRecord
from selfflow.encoders.config import Encoder
from selfflow.encoders.load import load_encoder
from selfflow.errors import UserError
from selfflow.latents.store import Latents
from selfflow.modality import Modality
from selfflow.progress import Progress
from selfflow.serialization import to_json


def features_key(m: str) -> str:
    """Returns the key of a modality's features in a record of latents."""
    return f"{m}.features"


def overlap_shares(size: int, parts: int) -> Float[np.ndarray, "parts size"]:
    """Returns the weights of `size` equal cells of an axis in each of its `parts` equal parts; rows sum to 1."""
    # All bounds are integers in units of 1 / (size * parts) of the axis.
    part, cell = np.arange(parts)[:, None] * size, np.arange(size)[None] * parts
    shared = np.minimum(part + size, cell + parts) - np.maximum(part, cell)
    return (np.maximum(shared, 0) / size).astype(np.float32)


def mean_over_grid(features: Float[np.ndarray, "... E"], grid: tuple[int, ...]) -> Float[np.ndarray, "... E"]:
    """Averages features over the cells of a grid: [*axes, E] -> float32 [*grid, E]."""
    features = np.asarray(features, np.float32)
    for axis, parts in enumerate(grid):
        if features.shape[axis] != parts:
            mean = np.tensordot(overlap_shares(features.shape[axis], parts), features, (1, axis))
            features = np.moveaxis(mean, 0, axis)
    return features


def token_features(features: Float[np.ndarray, "... E"], modality: Modality) -> Float[np.ndarray, "N E"]:
    """Returns the target of each token, float16, from the features of its clip or image."""
    return mean_over_grid(features, modality.grid).reshape(modality.tokens, -1).astype(np.float16)


def encode_features(
    encoder: Encoder, m: str, media: np.ndarray, id: str, latent: tuple[int, ...], modality: Modality
) -> Float[np.ndarray, "... E"]:
    """Computes the features of a sample in their stored form, float16.

    Args:
      encoder: config of the encoder.
      m: the modality.
      media: raw media of the sample.
      id: id of the sample.
      latent: shape of its latent.
      modality: stream of the sample; a first latent frame that spans less time than the others is averaged over that
        time.

    Raises:
      UserError: naming encoder and sample, if the features have another shape, or are not finite in float16.
    """
    features = load_encoder(encoder)(media, id)
    who = f"alignment.encoders.{m}: the features of {id!r}"
    if features.ndim != len(latent) or features.shape[-1] != encoder.width or not features.size:
        axes = {4: "T, h, w", 3: "h, w", 2: "T"}[len(latent)]
        raise UserError(f"{who} have shape {list(features.shape)}, not [{axes}, {encoder.width}]; give others")
    # No finer than the latent, as tokens are no finer.
    grid = [min(size, most) for size, most in zip(features.shape, latent[:-1])]
    if modality.period:
        grid[0] = latent[0]
        # A shorter first latent frame: repeat the first features so that all latent frames span equal times.
        duration = latent[0] * modality.period + modality.offset[0]
        repeats = round(-modality.offset[0] * len(features) / duration)
        features = np.concatenate([np.repeat(features[:1], repeats, axis=0), features])
    with np.errstate(over="ignore"):  # overflow is infinite, and refused below
        # C order, because safetensors stores the bytes as they lie in memory.
        stored = mean_over_grid(features, tuple(grid)).astype(np.float16, order="C")
    if not np.isfinite(stored).all():
        raise UserError(f"{who} are not finite in float16; give others")
    return stored


def check_encoder_ids(built: BuiltDataset, encoders: Mapping[str, Encoder]) -> None:
    """Checks that feature files hold features of all samples of a data set.

    Raises:
      UserError: naming the first missing sample and the number of missing samples.
    """
    known = {}
    for m, encoder in encoders.items():
        ids = load_encoder(encoder).ids
        if ids is not None:
            known[m] = ids
    if not known:
        return
    missing: dict[str, list[str]] = {m: [] for m in known}
    present = dict.fromkeys(known, 0)
    name = built.name.split("/")[0]
    with Progress(f"look for features of {name}", sum(built.splits.values()), unit="record") as shown:
        for split in built.splits:
            for record in _readable(built, split, shown.advance):
                for m, ids in known.items():
                    if m in record and record["present"][m]:
                        present[m] += 1
                        if record["id"] not in ids:
                            missing[m].append(record["id"])
    for m, ids in missing.items():
        if ids:
            raise UserError(
                f"alignment.encoders.{m}: {encoders[m].path} lacks features of {len(ids)} of {present[m]} samples "
                f"of {built.name}, the first {ids[0]!r}: add them"
            )


def _readable(built: BuiltDataset, split: str, advance: Callable[[], None]) -> Iterator[dict[str, Any]]:
    records = built.records(split)
    for i in range(len(records)):
        try:
            yield records[i]
        except BadRecord:
            pass  # encoding counts and lists unreadable records
        advance()


def encoder_identities(encoders: Mapping[str, Encoder]) -> dict[str, str]:
    """Returns the identity of each encoder: equal identities imply equal features."""
    return {m: load_encoder(encoder).identity for m, encoder in sorted(encoders.items())}


def encoder_metadata(encoders: Mapping[str, Encoder]) -> dict[str, Any]:
    """Returns the entry `features` of a manifest."""
    entries = {}
    for m, encoder in encoders.items():
        identity = load_encoder(encoder).identity
        entries[m] = {"identity": identity, "settings": to_json(encoder), "width": encoder.width}
    return entries


def check_features(latents: Latents, encoders: Mapping[str, Encoder], identities: Mapping[str, str]) -> None:
    """Checks that latents from another machine hold the features that an experiment needs.

    Args:
      latents: the folder.
      encoders: encoders of the modalities whose features are needed.
      identities: identities of the encoders on this machine.

    Raises:
      UserError: naming what is missing or differs.
    """
    entries = latents.manifest["features"]
    for m, encoder in encoders.items():
        if m not in entries:
            raise UserError(
                f"{latents.path} holds no features of {m}, which alignment.encoders needs: encode again with this "
                "experiment where the raw data is, or set it to None"
            )
        stored = entries[m]["identity"], entries[m]["settings"]["kind"], entries[m]["width"]
        expected = identities.get(m, stored[0]), encoder.kind, encoder.width
        if stored != expected:
            raise UserError(
                f"{latents.path}: its features of {m} are of {stored[0]} ({stored[1]}, {stored[2]} channels), those of "
                f"alignment.encoders.{m} of {expected[0]} ({expected[1]}, {expected[2]} channels): encode again or "
                "change the experiment"
            )


def features_fault(stored: Mapping[str, np.ndarray], m: str, timed: bool, width: int) -> str:
    """Describes a wrong shape of a modality's features in a record of latents; "" if the shape is right.

    Args:
      stored: arrays of the record.
      m: the modality.
      timed: whether the first axis is time.
      width: number of channels of the encoder.
    """
    key = features_key(m)
    features, latent = stored.get(key), stored[m]
    if features is None:
        return f"{key} is missing"
    if features.ndim != latent.ndim or features.shape[-1] != width or not features.size:
        return f"{key} has shape {features.shape}, {m} has {latent.shape} and its encoder {width} channels"
    if timed and len(features) != len(latent):
        return f"{key} has {len(features)} frames, {m} has {len(latent)}"
    return ""
