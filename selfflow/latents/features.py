"""Features of frozen encoders beside the latents: what of them is stored, and how it becomes a target of tokens.

A token's target is the mean of the encoder's map over the area of the token and over its time. Areas need not be those
of whole cells: a cell counts with the share of it that lies within. Means over parts of equal size make the mean over
the whole, so that what is stored may be coarser than the map, as long as it is finer than tokens: features are kept for
each latent frame, and within it nowhere finer than the latent itself. Patches may then change, and clips be cropped.
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


def stored_as(m: str) -> str:
    """Under which name the features of a modality stand in a record of latents."""
    return f"{m}.features"


def overlaps(size: int, parts: int) -> Float[np.ndarray, "parts size"]:
    """What share of each of `parts` equal parts of an axis lies in each of its `size` equal cells; rows sum to 1."""
    # In units of 1 / (size * parts) of the axis all bounds are whole numbers.
    part, cell = np.arange(parts)[:, None] * size, np.arange(size)[None] * parts
    shared = np.minimum(part + size, cell + parts) - np.maximum(part, cell)
    return (np.maximum(shared, 0) / size).astype(np.float32)


def averaged(features: Float[np.ndarray, "... E"], grid: tuple[int, ...]) -> Float[np.ndarray, "... E"]:
    """Means over the cells of a coarser or finer grid that covers the same: [*axes, E] -> float32 [*grid, E]."""
    features = np.asarray(features, np.float32)
    for axis, parts in enumerate(grid):
        if features.shape[axis] != parts:
            mean = np.tensordot(overlaps(features.shape[axis], parts), features, (1, axis))
            features = np.moveaxis(mean, 0, axis)
    return features


def token_features(features: Float[np.ndarray, "... E"], modality: Modality) -> Float[np.ndarray, "N E"]:
    """The target of each token, float16, of features that cover the tokens' clip or picture."""
    return averaged(features, modality.grid).reshape(modality.tokens, -1).astype(np.float16)


def encoded_features(
    encoder: Encoder, m: str, media: np.ndarray, id: str, latent: tuple[int, ...], modality: Modality
) -> Float[np.ndarray, "... E"]:
    """What is stored of a sample's features, float16.

    Args:
      encoder: settings of the encoder.
      m: the modality.
      media: the sample, before it was encoded.
      id: of the sample.
      latent: shape of its latent.
      modality: its stream; where a first latent frame stands for less than the others, so does its mean.

    Raises:
      UserError: naming encoder and sample, if the features have another shape, or are not finite in float16.
    """
    features = load_encoder(encoder)(media, id)
    who = f"alignment.encoders.{m}: the features of {id!r}"
    if features.ndim != len(latent) or features.shape[-1] != encoder.width or not features.size:
        axes = {4: "T, h, w", 3: "h, w", 2: "T"}[len(latent)]
        raise UserError(f"{who} have shape {list(features.shape)}, not [{axes}, {encoder.width}]; give others")
    grid = [min(size, most) for size, most in zip(features.shape, latent[:-1])]
    if modality.period:
        grid[0] = latent[0]
        # What the first latent frame lacks is as if its first features had lasted so long.
        lasting = latent[0] * modality.period + modality.offset[0]
        lacking = round(-modality.offset[0] * len(features) / lasting)
        features = np.concatenate([np.repeat(features[:1], lacking, axis=0), features])
    with np.errstate(over="ignore"):
        # In this order: safetensors write the bytes as they lie in memory.
        kept = averaged(features, tuple(grid)).astype(np.float16, order="C")
    if not np.isfinite(kept).all():
        raise UserError(f"{who} are not finite in float16; give others")
    return kept


def check_ids(built: BuiltDataset, encoders: Mapping[str, Encoder]) -> None:
    """Raises `UserError`, naming the first and how many there are, where an encoder lacks samples of a data set."""
    asked = {m: ids for m, encoder in encoders.items() if (ids := load_encoder(encoder).ids) is not None}
    if not asked:
        return
    missing: dict[str, list[str]] = {m: [] for m in asked}
    having = dict.fromkeys(asked, 0)
    with Progress(
        f"look for features of {built.name.split('/')[0]}", sum(built.splits.values()), unit="record"
    ) as shown:
        for split in built.splits:
            for record in _readable(built, split, shown.advance):
                for m, ids in asked.items():
                    if m in record and record["present"][m]:
                        having[m] += 1
                        missing[m] += [record["id"]] * (record["id"] not in ids)
    for m, lacking in missing.items():
        if lacking:
            raise UserError(
                f"alignment.encoders.{m}: {encoders[m].path} lacks features of {len(lacking)} of {having[m]} samples "
                f"of {built.name}, the first {lacking[0]!r}: add them"
            )


def _readable(built: BuiltDataset, split: str, advance: Callable[[], None]) -> Iterator[dict[str, Any]]:
    records = built.records(split)
    for i in range(len(records)):
        try:
            yield records[i]
        except BadRecord:
            pass  # it will be left out
        advance()


def identities_of(encoders: Mapping[str, Encoder]) -> dict[str, str]:
    """What tells the features of some encoders from others, by modality."""
    return {m: load_encoder(encoder).identity for m, encoder in sorted(encoders.items())}


def encoder_metadata(encoders: Mapping[str, Encoder]) -> dict[str, Any]:
    """What a manifest says of features."""
    return {
        m: {"identity": load_encoder(encoder).identity, "settings": to_json(encoder), "width": encoder.width}
        for m, encoder in encoders.items()
    }


def check_features(latents: Latents, encoders: Mapping[str, Encoder], identities: Mapping[str, str]) -> None:
    """Raises `UserError` unless latents from elsewhere hold the features that an experiment asks for.

    Args:
      latents: the folder.
      encoders: of the modalities that are asked of it.
      identities: of those encoders that are there.
    """
    made = latents.manifest.get("features", {})
    for m, encoder in encoders.items():
        if m not in made:
            raise UserError(
                f"{latents.path} holds no features of {m}, which alignment.encoders asks for: encode again with this "
                "experiment where the raw data is, or set it to None"
            )
        theirs = made[m]["identity"], made[m]["settings"]["kind"], made[m]["width"]
        ours = identities.get(m, theirs[0]), encoder.kind, encoder.width
        if theirs != ours:
            raise UserError(
                f"{latents.path}: its features of {m} are of {theirs[0]} ({theirs[1]}, {theirs[2]} channels), those of "
                f"alignment.encoders.{m} of {ours[0]} ({ours[1]}, {ours[2]} channels): encode again or change the "
                "experiment"
            )


def encoder_fault(stored: Mapping[str, np.ndarray], m: str, timed: bool, width: int) -> str:
    """What is wrong with the shape of a modality's features, in a record that has its latents; empty: nothing."""
    features, latent = stored.get(stored_as(m)), stored[m]
    if features is None:
        return f"{stored_as(m)} is missing"
    if features.ndim != latent.ndim or features.shape[-1] != width or not features.size:
        return f"{stored_as(m)} has shape {features.shape}, {m} has {latent.shape} and its encoder {width} channels"
    if timed and len(features) != len(latent):
        return f"{stored_as(m)} has {len(features)} frames, {m} has {len(latent)}"
    return ""
