"""Batches from latents: a pure function of seed, step and mixture, independent of reading processes and of resuming."""

import mmap
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from selfflow.data.workers import start_reader
from selfflow.errors import UserError, check_at_least, check_fraction
from selfflow.input.controls import delays, shuffled
from selfflow.input.mixture import Component, MixturePlan, Pool, Stage
from selfflow.input.reader import Reader, SampleReader, class_labels
from selfflow.input.shared_memory import check_shared_memory
from selfflow.latents.store import Latents
from selfflow.modality import Modality

# Batch size -> numbers of the rows of a batch that this process reads.
Rows = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class LoaderOptions:
    """Settings of the readers of batches; they do not change the content, and may differ when a run is resumed."""

    workers: int = 0
    """Reader processes; 0 reads in threads of the main process, which is enough for latents on a local disk."""
    threads: int = 2
    """Threads of each reader process."""
    prefetch: int = 4
    """Number of batches to read ahead."""
    unreadable_share: float = 0.01
    """Stop when more than this share of a component's records was unreadable since the start of the process; until then
    such records have weight 0."""

    def __post_init__(self):
        check_at_least(self, "loader.", workers=0, threads=1, prefetch=1)
        check_fraction(self, "loader.", "unreadable_share")


class Source(Protocol):
    """The data behind `Batches`: `BatchSource` for latents, or `MediaBatchSource` for raw media."""

    latents: Mapping[str, Latents]
    mixture: Mapping[str, Component]
    modalities: Mapping[str, Mapping[str, Any]]
    curriculum: tuple[Stage, ...]
    label: str
    seed: int
    loader: LoaderOptions

    def reader(self, name: str, split: str, quality: float = 0.0) -> SampleReader:
        """Reads the records of a component of at least this quality, from a split of its data set."""
        ...


@dataclass(frozen=True)
class BatchSource:
    """The latents and settings that batches are drawn from.

    Attributes:
      latents: latents by data set.
      mixture: components by name, each with its data set.
      modalities: streams of each component.
      curriculum: changes of the mixture.
      label: name of the field with the class label; "" for none.
      classes: number of classes of the model.
      caption: (L, C) of the captions' embeddings, or None if the model takes none.
      features: channels of the frozen encoders' features by modality, if alignment uses them as target.
      seed: `seed.data` of the experiment.
      loader: settings of the readers.
    """

    latents: dict[str, Latents]
    mixture: dict[str, Component]
    modalities: dict[str, dict[str, Modality]]
    curriculum: tuple[Stage, ...] = ()
    label: str = ""
    classes: int = 0
    caption: tuple[int, int] | None = None
    features: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    loader: LoaderOptions = LoaderOptions()

    def batches(self, start: int, steps: int, rows: Rows | None = None) -> "Batches":
        """Returns the batches of steps `start` to `steps`.

        Args:
          start: number of batches to skip, at no cost.
          steps: length of the run.
          rows: function from batch size to the numbers of the rows that this process reads; by default all.

        Raises:
          UserError: if a component has no record, or a label is not one of the classes.
        """
        return Batches(self, start, steps, rows)

    def reader(self, name: str, split: str, quality: float = 0.0) -> Reader:
        """Reads the records of a component of at least this quality, from a split of its data set."""
        component = self.mixture[name]
        source = self.latents[component.data].open_split(split)
        records = source.indices_with(component.modalities, quality)
        labels = class_labels(source, self.label, self.classes)
        modalities = {m: self.modalities[name][m] for m in component.modalities}
        # All batches of a component have the same arrays in every stage of the curriculum, so records of any quality
        # count here.
        of_any_quality = source.indices_with(component.modalities)
        padded = []
        for m, modality in modalities.items():
            if modality.period and (source.index[f"frames/{m}"][of_any_quality] < modality.latent[0]).any():
                padded.append(m)
        has_captions = len(of_any_quality) and (source.index["caption"][of_any_quality] > 0).any()
        caption = self.caption if has_captions else None
        features = {m: self.features[m] for m in modalities if m in self.features}
        return Reader(source, records, labels, modalities, tuple(padded), caption, features)

    def held_out(self, splits: tuple[str, ...], size: int | None = None) -> dict[str, tuple[str, dict[str, Any]]]:
        """Returns a fixed batch of each component without labels and captions: {component: (split, batch)}.

        Args:
          splits: splits in order of preference, followed by train; the first that has the component is used.
          size: samples in a batch, if that many exist; by default the batch size of the component.
        """
        batches = {}
        for name, component in self.mixture.items():
            for split in (*splits, "train"):
                if split not in self.latents[component.data].records:
                    continue
                reader = self.reader(name, split)
                if len(reader.records):
                    samples = [reader(int(i)) for i in reader.records[: size or component.batch_size]]
                    batch = _stacked(samples)
                    batch["label"] = np.full(len(samples), -1, np.int32)
                    batch.pop("caption", None)
                    batch.pop("record")
                    batches[name] = split, batch
                    break
        return batches


class Batches:
    """Iterates over (batch, facts); see `BatchSource.batches`.

    A batch is {"latents", "label", "weight"} and, if a component has them, "frames", "features" and "caption", as
    `SelfFlowObjective.draw` takes it. Facts are {"component", "tokens"}, where tokens are counted over the whole batch;
    "unreadable" lists the ids of unreadable records among the rows that this process read.
    """

    def __init__(self, source: Source, start: int, steps: int, rows: Rows | None = None):
        self._source, self._start = source, start
        self._check_label()
        self.plan = MixturePlan(source.mixture, source.curriculum, steps, source.seed)
        self._readers = [self._reader(pool) for pool in self.plan.pools]
        self._rows = rows
        self._warned: set[tuple[str, str]] = set()  # (component, shard)
        self._unreadable: dict[str, set[int]] = {name: set() for name in source.mixture}
        self._sizes = {pool.component: 0 for pool in self.plan.pools}
        for pool, reader in zip(self.plan.pools, self._readers):
            self._sizes[pool.component] = max(self._sizes[pool.component], len(reader.records))

    def _check_label(self) -> None:
        label = self._source.label
        known: set[str] = set()
        for latents in self._source.latents.values():
            index = latents.open_split("train").index
            known |= {name for name in index if name.startswith("label/")}
        if label and f"label/{label}" not in known:
            names = ", ".join(sorted(name.removeprefix("label/") for name in known)) or "no labels"
            raise UserError(f"label {label!r}: no data set has such a field; choose from {names}")

    def _reader(self, pool: Pool) -> SampleReader:
        reader = self._source.reader(pool.component, "train", pool.quality)
        component = self._source.mixture[pool.component]
        records = f"record of quality {pool.quality:g} or more" if pool.quality > 0 else "record"
        where = f"of the training split of {component.data} has {' and '.join(component.modalities)} together"
        if not len(reader.records):
            raise UserError(
                f"mixture.{pool.component}: no {records} {where}; remove the component or give it other modalities"
            )
        if component.shuffled and len(reader.records) < 2:
            raise UserError(
                f"mixture.{pool.component}.shuffled: only one {records} {where}; empty it or give more data"
            )
        return reader

    def dataset(self):
        """The grain.MapDataset whose element n is the batch of step n, counted from 0."""
        import grain

        pools = []
        for number, (pool, reader) in enumerate(zip(self.plan.pools, self._readers)):
            component = self._source.mixture[pool.component]
            size, records = component.batch_size, self._records(number)
            reader = replace(reader, delayed=delays(component, reader.modalities, f"mixture.{pool.component}"))
            # Grain gives each element its own generator, seeded by the seed of the data set and its number.
            samples = records.random_map(reader)
            if component.shuffled:
                samples = shuffled(samples, records, self._records(number, "others"), reader, component.shuffled)
            if self._rows is not None:
                # This process reads only its rows of each batch.
                rows = self._rows(size)
                samples, size = grain.MapDataset.source(_RowsOf(samples, rows, size)), len(rows)
            pools.append(samples.batch(size))
        return grain.MapDataset.select_from_datasets(pools, self.plan)

    def _records(self, number: int, purpose: str = ""):
        """The grain.MapDataset of the records that a pool draws, in their order; each purpose has its own order."""
        import grain

        pool, reader = self.plan.pools[number], self._readers[number]
        size = self._source.mixture[pool.component].batch_size
        # Components and purposes have independent orders; CRC-32 is equal in all processes, unlike hash().
        seed = self._source.seed ^ zlib.crc32((pool.component + purpose).encode())
        # Repeat only as often as the run needs: lengths near the largest integer overflow in `batch`.
        epochs = self.plan.batches(number) * size // len(reader.records) + 1
        return grain.MapDataset.source(reader.records).seed(seed).shuffle().repeat(epochs)

    def ids(self, step: int) -> list[str]:
        """Returns the ids of the samples of a step, counted from 0, over all processes; reads no records."""
        number, batch = self.plan[step]
        component = self._source.mixture[self.plan.pools[number].component]
        size, records = component.batch_size, self._records(number)
        source = self._readers[number].source
        return [source.id(int(records[i])) for i in range(batch * size, (batch + 1) * size)]

    def check_shared_memory(self) -> None:
        """Raises `UserError` if reader processes need more shared memory than there is; reads a record of each pool."""
        import jax

        if not self._source.loader.workers:
            return
        largest = 0
        for pool, reader in zip(self.plan.pools, self._readers):
            size = self._source.mixture[pool.component].batch_size
            rows = size if self._rows is None else len(self._rows(size))
            sample = reader(int(reader.records[0]))
            # Each array of a batch has memory of its own, in whole pages.
            pages = [-(-rows * np.asarray(x).nbytes // mmap.PAGESIZE) for x in jax.tree.leaves(sample)]
            largest = max(largest, mmap.PAGESIZE * sum(pages))
        check_shared_memory(self._source.loader.workers, largest)

    def __iter__(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        import grain

        loader = self._source.loader
        options = grain.ReadOptions(num_threads=loader.threads, prefetch_buffer_size=loader.prefetch)
        dataset = self.dataset()[self._start :].to_iter_dataset(options)
        if loader.workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags
            processes = grain.MultiprocessingOptions(num_workers=loader.workers)
            dataset = dataset.mp_prefetch(processes, worker_init_fn=start_reader)
        iterator = iter(dataset)
        try:
            for step, batch in enumerate(iterator, self._start):
                yield batch, self._facts(step, batch)
        finally:
            iterator.close()  # ends worker processes

    def _facts(self, step: int, batch: dict[str, Any]) -> dict[str, Any]:
        number = self.plan[step][0]
        name = self.plan.pools[number].component
        records = batch.pop("record")
        size = self._source.mixture[name].batch_size
        tokens = sum(modality.tokens for modality in self._source.modalities[name].values())
        facts: dict[str, Any] = {"component": name, "tokens": size * tokens}
        unreadable = records[batch["weight"] == 0]
        if len(unreadable):
            facts["unreadable"] = self._count_unreadable(name, self._readers[number], unreadable)
        return facts

    def _count_unreadable(self, name: str, reader: SampleReader, records: np.ndarray) -> list[str]:
        """Counts unreadable records of a component, with a warning for each shard, and returns their ids.

        Raises:
          UserError: if there are too many.
        """
        known, size = self._unreadable[name], self._source.mixture[name].batch_size
        share_read_here = 1.0 if self._rows is None else len(self._rows(size)) / size
        for record in map(int, records):
            if record in known:
                continue
            known.add(record)
            shard = reader.source.shard_of(record)
            if (name, shard) not in self._warned:
                self._warned.add((name, shard))
                self._warn(name, reader, record, shard, share_read_here)
        # Estimate the number over all processes from the rows that this process reads.
        share, limit = len(known) / self._sizes[name] / share_read_here, self._source.loader.unreadable_share
        if share > limit:
            shard, reason = reader.why(int(records[-1]))
            raise UserError(
                f"mixture.{name}: {len(known)} of {self._sizes[name]} records of {self._source.mixture[name].data} "
                f"cannot be read (loader.unreadable_share is {limit:g}), the last in {reader.source.folder / shard} "
                f"({reason}): {reader.source.remedy}"
            )
        return [reader.source.id(int(i)) for i in records]

    def _warn(self, name: str, reader: SampleReader, record: int, shard: str, share_read_here: float) -> None:
        where = f"{self._source.mixture[name].data}: {reader.source.id(record)!r} in {shard}"
        # A process that reads all rows also writes the metrics.
        more = "listed only in metrics.jsonl" if share_read_here == 1 else "not listed"
        print(
            f"warning: {where} cannot be read and has weight 0: {reader.why(record)[1]}; further records of this file "
            f"are {more}",
            file=sys.stderr,
        )


class _RowsOf:
    """A Grain source of the given rows of each batch of `size` samples, batch by batch."""

    def __init__(self, samples: Any, rows: np.ndarray, size: int):
        self._samples, self._rows, self._size = samples, rows, size

    def __len__(self) -> int:
        return len(self._samples) // self._size * len(self._rows)

    def __getitem__(self, i: int) -> Any:
        batch, place = divmod(int(i), len(self._rows))
        return self._samples[batch * self._size + int(self._rows[place])]


def _stacked(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stacks samples to a batch: arrays get a leading axis."""
    import jax

    return jax.tree.map(lambda *parts: np.stack(parts), *samples)
