"""The mixture: which set of modalities a batch holds, and which records."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfflow.errors import UserError
from selfflow.input.latents import LatentSource


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
    source: LatentSource, mixture: dict[str, Set], label: str, seed: int, start: int
) -> Iterator[dict[str, Any]]:
    """Batches {"latents": {modality: [B, ...]}, "label": [B]} from step `start` on, without end.

    What a step sees is a function of seed, step and mixture alone. Each epoch of a set has its own
    order; every record of it comes once an epoch.

    Args:
      source: latents of the training split.
      mixture: sets by name.
      label: field with the class label, or "" for none; records without a label get -1.
      seed: `seed.data` of the experiment.
      start: number of batches to pass over, at no cost.

    Raises:
      UserError: if no record has all modalities of a set.
    """
    import grain

    labels = source.index.get(f"label/{label}")
    if label and labels is None:
        known = sorted(name.removeprefix("label/") for name in source.index if name.startswith("label/"))
        raise UserError(f"label {label!r}: the data has no such field; it has {', '.join(known) or 'no labels'}")
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
            number = -1 if labels is None else labels[record]
            return {"latents": {m: latents[m] for m in modalities}, "label": np.int32(number)}

        dataset = grain.MapDataset.source(records).seed(seed ^ zlib.crc32(name.encode())).shuffle().repeat()
        datasets.append(dataset.map(read).batch(chosen.batch_size))
    weights = [chosen.weight for chosen in mixture.values()]
    mixed = grain.MapDataset.mix(datasets, [w / sum(weights) for w in weights])
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(mixed[start:].to_iter_dataset(options))
