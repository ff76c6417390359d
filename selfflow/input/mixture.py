"""The mixture: which set of modalities a batch holds, and which records."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfflow.errors import UserError
from selfflow.input.latents import Latents, LatentSource


@dataclass(frozen=True)
class Set:
    """Modalities that stand together in a batch."""

    modalities: tuple[str, ...] = ("image",)
    """Those in one sequence."""
    weight: float = 1.0
    """Share of the steps, relative to the other sets."""
    batch_size: int = 64
    """Samples in a batch."""


def batches(
    source: LatentSource, mixture: dict[str, Set], label: str, classes: int, seed: int, start: int
) -> Iterator[dict[str, Any]]:
    """Batches {"latents": {modality: [B, ...]}, "label": [B]} from step `start` on, without end.

    What a step sees is a function of seed, step and mixture alone. Each epoch of a set has its own
    order; every record of it comes once an epoch.

    Args:
      source: latents of the training split.
      mixture: sets by name.
      label: field with the class label, or "" for none; records without a label get -1.
      classes: number of classes that the model knows.
      seed: `seed.data` of the experiment.
      start: number of batches to pass over, at no cost.

    Raises:
      UserError: if no record has all modalities of a set, or a label is none of the classes.
    """
    import grain

    labels = _labels(source, label, classes)
    datasets = []
    for name, chosen in mixture.items():
        records = source.having(chosen.modalities)
        if not len(records):
            raise UserError(
                f"mixture.{name}: no record of the training split has {' and '.join(chosen.modalities)} together; "
                "remove the set or give it other modalities"
            )

        def read(record: int, modalities=chosen.modalities) -> dict[str, Any]:
            latents = source[record]
            return {"latents": {m: latents[m] for m in modalities}, "label": labels[record]}

        dataset = grain.MapDataset.source(records).seed(seed ^ zlib.crc32(name.encode())).shuffle().repeat()
        datasets.append(dataset.map(read).batch(chosen.batch_size))
    weights = [chosen.weight for chosen in mixture.values()]
    mixed = grain.MapDataset.mix(datasets, [w / sum(weights) for w in weights])
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(mixed[start:].to_iter_dataset(options))


def _labels(source: LatentSource, label: str, classes: int) -> np.ndarray:
    """The class label of every record, int32; -1 for none."""
    if not label:
        return np.full(len(source), -1, np.int32)
    if f"label/{label}" not in source.index:
        known = sorted(name.removeprefix("label/") for name in source.index if name.startswith("label/"))
        raise UserError(f"label {label!r}: the data has no such field; it has {', '.join(known) or 'no labels'}")
    labels = source.index[f"label/{label}"].astype(np.int32)
    if labels.max() >= classes:
        raise UserError(
            f"label {label!r} goes up to {labels.max()}, so model.labels must be at least {labels.max() + 1}"
        )
    return labels


def held_out_batches(
    latents: Latents, mixture: dict[str, Set], splits: tuple[str, ...], size: int | None = None
) -> dict[str, tuple[str, dict[str, Any]]]:
    """One unlabelled batch of each set, always the same: {set: (split, batch)}.

    Args:
      latents: of a data set.
      mixture: sets by name.
      splits: where to look, in this order; a set takes the first split that has it, in the end train.
      size: samples in a batch, if there are so many; by default those of the set.
    """
    found = {}
    for name, chosen in mixture.items():
        for split in (s for s in (*splits, "train") if s in latents.manifest["records"]):
            source = latents.source(split)
            records = source.having(chosen.modalities)[: size or chosen.batch_size]
            if len(records):
                samples = [source[i] for i in records]
                stacked = {m: np.stack([sample[m] for sample in samples]) for m in chosen.modalities}
                found[name] = split, {"latents": stacked, "label": np.full(len(records), -1, np.int32)}
                break
    return found
