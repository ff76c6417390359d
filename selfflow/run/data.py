"""What a run was trained on, and the clips of it that are looked at afterwards."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from selfflow.config.setup import FlowSetup
from selfflow.data.built import BuiltDataset
from selfflow.data.catalogue import DATASETS
from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.input.batches import BatchSource
from selfflow.input.clips import readable_clips, warn_left_out
from selfflow.input.reader import Reader
from selfflow.run.prepare_data import latents_hash, prepare_data
from selfflow.storage.paths import bucket_url, data_folder


def batch_source_of(
    setup: FlowSetup,
    provenance: Callable[[], dict[str, Any]],
    source: str,
    own: Path,
    data_dir: str | Path | None,
) -> tuple[BatchSource, dict[str, BuiltDataset]]:
    """What a run was trained on: its latents, and the data sets whose raw data is available.

    Args:
      setup: of the run.
      provenance: reads `provenance.json`.
      source: path or URL of the run, for messages.
      own: folder of the run's autoencoders.
      data_dir: where the data is; by default where it was when the run was trained.

    Raises:
      UserError: if the run has no data, or the data is another now.
    """
    if not setup.experiment.data:
        raise UserError(f"{source} has no data: its weights were imported; give arrays of latents instead")
    # Where the run's data was, if it still is there.
    recorded = provenance()["sessions"][-1].get("data_dir", "")
    known = Path(recorded) if recorded and (bucket_url(recorded) or Path(recorded).is_dir()) else None
    feed, built = prepare_data(setup, data_folder(data_dir or known), own=own)
    found, trained = latents_hash(feed.latents), provenance()["data"]
    if found != trained:
        raise UserError(
            f"{source} was trained on other latents ({trained}, now {found}): the data set was rebuilt; give the "
            "--data-dir of that time"
        )
    return feed, built


def held_out(feed: BatchSource, name: str, splits: tuple[str, ...]) -> Reader:
    """Reads whole clips of a component, of the first split that has any."""
    latents = feed.latents[feed.mixture[name].data]
    for split in splits:
        if split in latents.records:
            reader = feed.reader(name, split)
            whole = np.ones(len(reader.records), bool)
            for m, modality in reader.modalities.items():
                if modality.period:
                    whole &= reader.source.index[f"frames/{m}"][reader.records] >= modality.latent[0]
            if whole.any():
                return dataclasses.replace(reader, records=reader.records[whole])
    raise UserError(f"mixture.{name}: no split has a whole clip of it; give a file, as in --context video=clip.mp4")


class Clips:
    """The clips of a component of the mixture in one split of its data, numbered as they stand there.

    Iterating gives the latents of one after the other, and leaves out those that cannot be read, with a warning that
    counts them.

    Args:
      feed: what the run reads.
      built: the data sets whose raw data is there.
      split: of the data.
      component: name of the component; by default the first.

    Attributes:
      component: name of the component.
      split: of its data.
      modalities: the streams of the component, as long as its clips are.
      ids: id of each clip.
      labels: {field: int32 [n]}, the labels that the data has; -1 for none.
      identity: tells these latents from others.

    Raises:
      UserError: naming those that there are, if there is no such set or split, or no such clip in it.
    """

    def __init__(self, feed: BatchSource, built: dict[str, BuiltDataset], split: str, component: str | None = None):
        self.component, self.split = next(iter(feed.mixture)) if component is None else component, split
        if self.component not in feed.mixture:
            raise UserError(f"component {self.component!r}: this run has {', '.join(feed.mixture)}")
        config = feed.mixture[self.component]
        latents = feed.latents[config.data]
        if split not in latents.records:
            raise UserError(f"split {split!r}: {config.data} has {', '.join(latents.records)}")
        self._reader, self._data, self._built = feed.reader(self.component, split), config.data, built.get(config.data)
        self.modalities = self._reader.modalities
        records, index = self._reader.records, self._reader.source.index
        if not len(records):
            raise UserError(f"no clip of the {split} split of {config.data} has {' and '.join(self.modalities)}")
        self.ids = [self._reader.source.id(int(i)) for i in records]
        fields = {name.removeprefix("label/"): name for name in index if name.startswith("label/")}
        self.labels = {field: index[name][records].astype(np.int32) for field, name in fields.items()}
        self.identity = f"{latents.hash} {self.component} {split}"
        kind = latents.manifest.get("settings", {}).get("kind")
        self._latents_only = kind in DATASETS and DATASETS[kind].holds_latents
        self._raw: Any = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{modality: shape of one latent} of clips that are as long as the component has them."""
        return {m: modality.latent for m, modality in self.modalities.items()}

    def latents(self, i: int) -> dict[str, np.ndarray]:
        """The latents of clip i, {modality: [...]}: from its start, as long as the component's clips or as it lasts.

        Raises:
          BadRecord: if they cannot be read.
        """
        sample = self._sample(i)
        frames = sample.get("frames", {})
        return {m: x[: frames[m]] if m in frames else x for m, x in sample["latents"].items()}

    def features(self, i: int) -> dict[str, np.ndarray]:
        """What frozen encoders have of clip i, on the grid of its tokens, {modality: [N, E]}; empty without encoders.

        Raises:
          BadRecord: if they cannot be read.
        """
        return self._sample(i).get("features", {})

    def _sample(self, i: int) -> dict[str, Any]:
        record = int(self._reader.records[i])
        sample = self._reader(record)
        if not sample["weight"]:
            raise BadRecord(*self._reader.why(record))
        return sample

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        left_out: list[int] = []
        for _, latents in readable_clips(self, range(len(self)), left_out):
            yield latents
        warn_left_out(self, left_out)

    def record(self, i: int) -> dict[str, Any]:
        """The raw record of clip i, whole: media before they are encoded, labels and what else the data set has.

        Raises:
          UserError: if the raw data is not there.
          BadRecord: if it cannot be read.
        """
        if self._built is None and self._latents_only:
            raise UserError(f"{self._data} has latents alone: there are no media of its clips")
        if self._built is None:
            raise UserError(
                f"the raw data of {self._data} is not there: its latents were encoded elsewhere; take "
                f"latents.{self._data} out of a copy of the experiment and run `selfflow data build` to have it"
            )
        if self._raw is None:
            self._raw = self._built.records(self.split)
        return self._raw[int(self._reader.records[i])]
