"""Access to the data that a run was trained on."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
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
from selfflow.run.prepare_data import RunData, latents_hash, prepare_data
from selfflow.storage.paths import bucket_url, data_folder


def open_data(
    setup: FlowSetup, provenance: Mapping[str, Any], path: str, own: Path, data_dir: str | Path | None
) -> RunData:
    """Opens the data that a run was trained on.

    Args:
      setup: setup of the run.
      provenance: content of the run's `provenance.json`.
      path: path or URL of the run, for messages.
      own: folder of the run's copies of its autoencoders.
      data_dir: folder for data sets and latents; by default the folder of the run's last session, if it still exists.

    Raises:
      UserError: if the run has no data, or the latents differ from those that it was trained on.
    """
    if not setup.experiment.data:
        raise UserError(f"{path} has no data: its weights were imported; give arrays of latents instead")
    if not data_dir:
        sessions = provenance.get("sessions") or [{}]
        last = sessions[-1].get("data_dir", "")
        if last and (bucket_url(last) or Path(last).is_dir()):
            data_dir = last
    recorded = {name: entry["dataset"] for name, entry in provenance["datasets"].items()}
    data = prepare_data(setup, data_folder(data_dir), own=own, recorded=recorded)
    identity, expected = latents_hash(data.source.latents), provenance.get("data")
    if identity != expected:
        raise UserError(
            f"{path} was trained on other latents ({expected}, now {identity}): the data set was rebuilt; give the "
            "--data-dir of that time"
        )
    return data


def held_out_reader(source: BatchSource, component: str, splits: Sequence[str]) -> Reader:
    """Returns a reader of the full-length clips of a component, from the first split that has any.

    Raises:
      UserError: if no split has a full-length clip.
    """
    latents = source.latents[source.mixture[component].data]
    for split in splits:
        if split not in latents.records:
            continue
        reader = source.reader(component, split)
        complete = np.ones(len(reader.records), bool)
        for m, modality in reader.modalities.items():
            if modality.period:
                complete &= reader.source.index[f"frames/{m}"][reader.records] >= modality.latent[0]
        if complete.any():
            return dataclasses.replace(reader, records=reader.records[complete])
    raise UserError(
        f"mixture.{component}: no split has a clip of its full length; give a file, as in --context video=clip.mp4"
    )


class Clips:
    """Clips of a component of the mixture in one split of its data, in the order of their records.

    Iteration yields the latents of each clip. Unreadable clips are skipped, and their number is printed in a warning.

    Args:
      data: data of the run.
      split: split of the component's data set.
      component: name of the component; by default the first of the mixture.

    Attributes:
      component: name of the component.
      split: split of its data set.
      modalities: streams of the component, for clips of its length.
      ids: id of each clip.
      labels: {field: int32 [n]}, the labels of the data set; -1 for none.
      identity: string that is unique to these clips and their latents.

    Raises:
      UserError: if the component or the split does not exist, or the split has no clip of the component.
    """

    def __init__(self, data: RunData, split: str, component: str | None = None):
        source = data.source
        self.component, self.split = next(iter(source.mixture)) if component is None else component, split
        if self.component not in source.mixture:
            raise UserError(f"component {self.component!r}: this run has {', '.join(source.mixture)}")
        self._data = source.mixture[self.component].data
        latents = source.latents[self._data]
        if split not in latents.records:
            raise UserError(f"split {split!r}: {self._data} has {', '.join(latents.records)}")
        self._reader = source.reader(self.component, split)
        self._built: BuiltDataset | None = data.built.get(self._data)
        self.modalities = self._reader.modalities
        records, index = self._reader.records, self._reader.source.index
        if not len(records):
            raise UserError(f"no clip of the {split} split of {self._data} has {' and '.join(self.modalities)}")
        self.ids = [self._reader.source.id(int(i)) for i in records]
        self.labels = {}
        for name, values in index.items():
            if name.startswith("label/"):
                self.labels[name.removeprefix("label/")] = values[records].astype(np.int32)
        self.identity = f"{latents.hash} {self.component} {split}"
        kind = latents.manifest.get("settings", {}).get("kind")
        self._latents_only = kind in DATASETS and DATASETS[kind].holds_latents
        self._records: Any = None  # records of the raw data, opened on first use

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the latents of one clip, {modality: shape}."""
        return {m: modality.latent for m, modality in self.modalities.items()}

    def latents(self, i: int) -> dict[str, np.ndarray]:
        """Returns the latents of clip i, {modality: [...]}, cut to the component's length and without padding.

        Raises:
          BadRecord: if the latents cannot be read.
        """
        sample = self._sample(i)
        frames = sample.get("frames", {})
        return {m: x[: frames[m]] if m in frames else x for m, x in sample["latents"].items()}

    def features(self, i: int) -> dict[str, np.ndarray]:
        """Returns features of the frozen encoders for each token of clip i, {modality: [N, E]}; {} if none are stored.

        Raises:
          BadRecord: if the features cannot be read.
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
        """Returns the raw record of clip i: its media at full length, labels and other fields of the data set.

        Raises:
          UserError: if the raw data does not exist.
          BadRecord: if the record cannot be read.
        """
        if self._built is None and self._latents_only:
            raise UserError(f"{self._data} has latents alone: there are no media of its clips")
        if self._built is None:
            raise UserError(
                f"the raw data of {self._data} does not exist here: its latents were encoded elsewhere; remove "
                f"latents.{self._data} from a copy of the experiment and run `selfflow data build`"
            )
        if self._records is None:
            self._records = self._built.records(self.split)
        return self._records[int(self._reader.records[i])]
