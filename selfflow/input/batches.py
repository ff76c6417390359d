"""Batches from latents: a pure function of seed, step and mixture, whoever reads them and from wherever on."""

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from selfflow.data.shards import BadRecord
from selfflow.data.workers import start_reader
from selfflow.errors import UserError
from selfflow.input.controls import delays, shuffled
from selfflow.input.mixture import Component, MixturePlan, Pool, Stage
from selfflow.input.options import LoaderOptions
from selfflow.input.reader import Reader, labels_of
from selfflow.latents.store import Latents
from selfflow.modality import Modality

# Which rows of a batch of a size one process reads.
Rows = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class BatchSource:
    """What all components of a mixture are read from.

    Attributes:
      latents: by data set.
      mixture: components by name, each with its data set.
      modalities: per component the modalities as they stand in its batches.
      curriculum: changes of the mixture.
      label: field with the class label, or "" for none.
      classes: number of classes that the model knows.
      caption: (L, C) of the captions' embeddings, or None where the model takes none.
      features: channels of the features of frozen encoders, by modality, where they are the target.
      seed: `seed.data` of the experiment.
      loader: how records are read.
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
        """The batches of steps `start` to `steps`.

        Args:
          start: number of batches to pass over, at no cost.
          steps: length of the run.
          rows: size of a batch -> the rows of it that this process reads; by default all.

        Raises:
          UserError: if a component has no record, or a label is none of the classes.
        """
        return Batches(self, start, steps, rows)

    def reader(self, name: str, split: str, quality: float = 0.0) -> "Reader":
        """Reads the records of a component of the mixture, from a split of its data set."""
        component = self.mixture[name]
        source = self.latents[component.data].source(split)
        records = source.having(component.modalities, quality)
        labels = labels_of(source, self.label, self.classes)
        modalities = {m: self.modalities[name][m] for m in component.modalities}
        # Whether a component is ever padded decides about the shape of its batches: look at all of its records.
        whole = source.having(component.modalities)
        padded = tuple(
            m for m, x in modalities.items() if x.period and (source.index[f"frames/{m}"][whole] < x.latent[0]).any()
        )
        caption = self.caption if len(whole) and (source.index["caption"][whole] > 0).any() else None
        features = {m: self.features[m] for m in modalities if m in self.features}
        return Reader(source, records, labels, modalities, padded, caption, features)

    def held_out(self, splits: tuple[str, ...], size: int | None = None) -> dict[str, tuple[str, dict[str, Any]]]:
        """One unlabelled batch of each component, always the same, without captions: {component: (split, batch)}.

        Args:
          splits: where to look, in this order; a component takes the first split that has it, in the end train.
          size: samples in a batch, if there are so many; by default those of the component.
        """
        found = {}
        for name, component in self.mixture.items():
            for split in (s for s in (*splits, "train") if s in self.latents[component.data].records):
                reader = self.reader(name, split)
                if len(reader.records):
                    samples = [reader(int(i)) for i in reader.records[: size or component.batch_size]]
                    batch = _stacked(samples)
                    batch["label"] = np.full(len(samples), -1, np.int32)
                    batch.pop("caption", None), batch.pop("record")
                    found[name] = split, batch
                    break
        return found


class Batches:
    """Iterates over (batch, facts); see `Feed.batches`.

    A batch is {"latents", "label", "weight"} and, where a component has them, "frames", "features" and "caption", as
    `SelfFlowObjective.draw` takes it. Facts are {"component", "tokens"}, the tokens of the whole batch, and the ids of
    those records that were to be read here and could not be.
    """

    def __init__(self, feed: BatchSource, start: int, steps: int, rows: Rows | None = None):
        self._feed, self._start = feed, start
        self._check_label()
        self.plan = MixturePlan(feed.mixture, feed.curriculum, steps, feed.seed)
        self._readers = [self._reader(pool) for pool in self.plan.pools]
        self._rows = rows
        self._told: set[tuple[str, str]] = set()
        self._bad: dict[str, set[int]] = {name: set() for name in feed.mixture}
        self._sizes = {pool.component: 0 for pool in self.plan.pools}
        for pool, reader in zip(self.plan.pools, self._readers):
            self._sizes[pool.component] = max(self._sizes[pool.component], len(reader.records))

    def _check_label(self) -> None:
        label, known = self._feed.label, set()
        for latents in self._feed.latents.values():
            known |= {name for name in latents.source("train").index if name.startswith("label/")}
        if label and f"label/{label}" not in known:
            names = ", ".join(sorted(name.removeprefix("label/") for name in known)) or "no labels"
            raise UserError(f"label {label!r}: no data set has such a field; there are {names}")

    def _reader(self, pool: Pool) -> Reader:
        reader = self._feed.reader(pool.component, "train", pool.quality)
        component = self._feed.mixture[pool.component]
        floor = f" of quality {pool.quality:g} or more" if pool.quality > 0 else ""
        if not len(reader.records):
            raise UserError(
                f"mixture.{pool.component}: no record{floor} of the training split of {component.data} has "
                f"{' and '.join(component.modalities)} together; remove the component or give it other modalities"
            )
        if component.shuffled and len(reader.records) < 2:
            raise UserError(
                f"mixture.{pool.component}.shuffled: one record{floor} of the training split of {component.data} has "
                f"{' and '.join(component.modalities)} together, and no other; empty it or give more data"
            )
        return reader

    def dataset(self):
        """The grain.MapDataset whose element n is the batch of step n, counted from 0."""
        import grain

        pools = []
        for number, (pool, reader) in enumerate(zip(self.plan.pools, self._readers)):
            size = self._feed.mixture[pool.component].batch_size
            records, component = self._records(number), self._feed.mixture[pool.component]
            reader = replace(reader, delayed=delays(component, reader.modalities, f"mixture.{pool.component}"))
            samples = records.random_map(reader)
            if component.shuffled:
                samples = shuffled(samples, records, self._records(number, "others"), reader, component.shuffled)
            if self._rows is not None:
                rows = self._rows(size)
                samples, size = grain.MapDataset.source(_RowsOf(samples, rows, size)), len(rows)
            pools.append(samples.batch(size))
        return grain.MapDataset.select_from_datasets(pools, self.plan)

    def _records(self, number: int, purpose: str = ""):
        """The grain.MapDataset of the records that a pool draws, in their order, or in that of another purpose."""
        import grain

        pool, reader = self.plan.pools[number], self._readers[number]
        size = self._feed.mixture[pool.component].batch_size
        seed = self._feed.seed ^ zlib.crc32((pool.component + purpose).encode())
        # As many epochs as the run needs: lengths near the largest integer overflow in `batch`.
        epochs = self.plan.batches(number) * size // len(reader.records) + 1
        return grain.MapDataset.source(reader.records).seed(seed).shuffle().repeat(epochs)

    def ids(self, step: int) -> list[str]:
        """The ids of the samples in the batch of step `step`, counted from 0, whoever reads them; reads nothing."""
        number, batch = self.plan[step]
        size, records = self._feed.mixture[self.plan.pools[number].component].batch_size, self._records(number)
        source = self._readers[number].source
        return [source.id(int(records[i])) for i in range(batch * size, (batch + 1) * size)]

    def __iter__(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        import grain

        loader = self._feed.loader
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
        size = self._feed.mixture[name].batch_size
        facts = {"component": name, "tokens": size * sum(x.tokens for x in self._feed.modalities[name].values())}
        bad = records[batch["weight"] == 0]
        if len(bad):
            facts["unreadable"] = self._count(name, self._readers[number], bad)
        return facts

    def _count(self, name: str, reader: Reader, bad: np.ndarray) -> list[str]:
        known, size = self._bad[name], self._feed.mixture[name].batch_size
        read_here = 1.0 if self._rows is None else len(self._rows(size)) / size
        for record in (int(i) for i in bad if int(i) not in known):
            known.add(record)
            shard = reader.source.shard_of(record)
            if (name, shard) in self._told:
                continue
            self._told.add((name, shard))
            reason = reader.why(record)[1]
            where = f"{self._feed.mixture[name].data}: {reader.source.id(record)!r} in {shard}"
            more = "others of this file stand in metrics.jsonl alone" if read_here == 1 else "others are not told"
            print(f"warning: {where} cannot be read and weighs nothing: {reason}; {more}", file=sys.stderr)
        share, limit = len(known) / self._sizes[name] / read_here, self._feed.loader.unreadable_share
        if share > limit:
            shard, reason = reader.why(int(bad[-1]))
            raise UserError(
                f"mixture.{name}: {len(known)} of {self._sizes[name]} records of {self._feed.mixture[name].data} "
                f"cannot be read (loader.unreadable_share is {limit:g}), the last in {reader.source.folder / shard} "
                f"({reason}): {reader.source.remedy}"
            )
        return [reader.source.id(int(i)) for i in bad]


class _RowsOf:
    """Some rows of each batch of `size` samples, one batch after the other, as Grain reads a source."""

    def __init__(self, samples: Any, rows: np.ndarray, size: int):
        self._samples, self._rows, self._size = samples, rows, size

    def __len__(self) -> int:
        return len(self._samples) // self._size * len(self._rows)

    def __getitem__(self, i: int) -> Any:
        batch, place = divmod(int(i), len(self._rows))
        return self._samples[batch * self._size + int(self._rows[place])]


def _stacked(samples: list[dict[str, Any]]) -> dict[str, Any]:
    import jax

    return jax.tree.map(lambda *parts: np.stack(parts), *samples)


def readable_clips(
    clips: Any, numbers: Iterable[int], left_out: list[int]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(i, latents) of those clips of these numbers that can be read.

    Args:
      clips: has `latents(i)`, as `Arrays` and a run's clips.
      numbers: which.
      left_out: to which the others are added.
    """
    for i in numbers:
        try:
            latents = clips.latents(i)
        except BadRecord:
            left_out.append(i)
            continue
        yield i, latents


def warn_left_out(clips: Any, left_out: list[int]) -> None:
    """Says on stderr how many clips were left out, and of the first why; nothing where none was."""
    if not left_out:
        return
    first, reason = left_out[0], "it can be read now"
    try:
        clips.latents(first)
    except BadRecord as error:
        reason = str(error)
    print(
        f"warning: {len(left_out)} clips cannot be read and are left out, the first is {clips.ids[first]!r} "
        f"({reason}); `selfflow data verify` tells of all",
        file=sys.stderr,
    )
