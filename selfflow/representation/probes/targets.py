"""Probe targets: per clip (class or number), per time step, or per token."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from selfflow.data.dataset import Dataset, TargetKind
from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.media import MEDIA
from selfflow.modality import frames_of_tokens
from selfflow.representation.features.arrays import Arrays
from selfflow.representation.features.extract import Features
from selfflow.representation.probes.split import Split
from selfflow.representation.protocols import LabelledClips, OpenRun, RecordedClips


class Target(NamedTuple):
    """A probe target.

    Attributes:
      name: a label of the data, or a target of the data set's ground truth.
      kind: a class or a number of each clip, a number of each time step, or a vector of each token.
    """

    name: str
    kind: TargetKind

    def applies_to(self, source: tuple[str, ...]) -> bool:
        """Whether the target can be probed from these modalities; targets of tokens need a single modality."""
        if self.kind == "token":
            return source == ("video",)
        if self.kind == "time_step":
            return len(source) == 1 and source[0] in MEDIA and MEDIA[source[0]].has_time
        return True


def targets_of(run: OpenRun, clips: LabelledClips) -> dict[str, Target]:
    """Returns all targets of clips by name: labels of the data, and targets of the data set's ground truth."""
    targets: dict[str, Target] = {}
    for field, values in clips.labels.items():
        if (values >= 0).any():
            targets[field] = Target(field, "class")
    dataset = dataset_of(run, clips)
    if dataset is not None and dataset.ground_truth is not None:
        for name, kind in dataset.ground_truth.kinds.items():
            targets[name] = Target(name, kind)
    return targets


def select_targets(run: OpenRun, clips: LabelledClips, names: tuple[str, ...]) -> list[Target]:
    """Returns the targets with these names.

    Raises:
      UserError: an unknown target, with a list of the known ones; or cropped clips, for a target of their content.
    """
    known = targets_of(run, clips)
    targets = []
    for name in names:
        if name not in known:
            raise UserError(f"target {name!r}: the data has {', '.join(known) or 'none'}")
        if name not in clips.labels and known[name].kind != "class":
            refuse_cropped(run, clips, f"target {name!r}")
        targets.append(known[name])
    return targets


def refuse_cropped(run: OpenRun, clips: LabelledClips, what: str) -> None:
    """Raises `UserError`, beginning with `what`, if clips are cropped: the ground truth describes whole records."""
    truth, seconds = dataset_of(run, clips).ground_truth, run.experiment.mixture[clips.component].seconds
    if truth is not None and seconds not in (None, truth.seconds):
        raise UserError(
            f"{what}: mixture.{clips.component}.seconds is {seconds:g}, and the truth is that of whole clips of "
            f"{truth.seconds:g} s: take a component without seconds"
        )


def dataset_of(run: OpenRun, clips: LabelledClips) -> Dataset | None:
    """Returns the settings of the clips' data set; None for `Arrays`, which have none."""
    if isinstance(clips, Arrays):
        return None
    return run.experiment.data[run.experiment.mixture[clips.component].data]


class ProbeLabels:
    """Values of targets for the clips of one split.

    Args:
      clips: clips of the split. Their raw records are read for targets of the ground truth.
      dataset: settings of their data set; None for clips with labels only.
    """

    def __init__(self, clips: LabelledClips | RecordedClips, dataset: Dataset | None):
        self.clips, self._dataset = clips, dataset
        self._indices = {name: i for i, name in enumerate(clips.ids)}
        self._records: dict[str, Mapping | None] = {}  # None for unreadable ones

    def only_class(self, target: Target, limit: int | None = None) -> str:
        """Why a label cannot be probed: fewer than two classes among the first `limit` clips. Empty if it can."""
        labels = self.clips.labels.get(target.name, np.arange(2))[:limit]
        classes = np.unique(labels[labels >= 0])
        if len(classes) > 1:
            return ""
        if len(classes) == 1:
            return f"all {(labels >= 0).sum()} samples are of class {classes[0]}"
        return "no sample has a label"

    def of(self, target: Target, features: Features, layer: int, source: tuple[str, ...]) -> list[Split]:
        """Returns features and values of a target, for a probe.

        Args:
          target: the target.
          features: features of clips: means, or for time steps and tokens all tokens.
          layer: layer of the features.
          source: modalities. Means of several are concatenated along channels, tokens along the sequence.

        Returns:
          One `Split` per part of the target, see `ProbeTargets.of_clip`; most targets have one part.

        Raises:
          UserError: if none of the raw records can be read; unreadable ones are left out with a warning.
        """
        ids = np.array(features.ids)
        taps = features.layers[layer]
        if target.kind in ("class", "number"):
            # Axis 1 is channels for means [n, D], and the sequence for tokens [n, N, D], whose N depends on modality.
            x = np.concatenate([taps[m] for m in source], axis=1)
            parts = self.of_clips(target, features.ids, features.labels)
            return [Split(x[known], y, ids[known]) for y, known in parts]

        # Rows are time steps or tokens, whose sample is their clip, so that splits that share clips are refused.
        (m,) = source
        xs, ys, repeated = [], [], []
        for i, record in enumerate(self._read(features.ids)):
            if record is None:
                continue
            if target.kind == "time_step":
                x, y = self._time_steps(target, record, features, m, taps[m][i])
            else:
                tokens, values = self._dataset.ground_truth.of_tokens(record, features.grids[m])
                x, y = taps[m][i][tokens], values[target.name]
            xs.append(x)
            ys.append(y)
            repeated += [ids[i]] * len(x)
        return [Split(np.concatenate(xs), np.concatenate(ys), np.array(repeated))]

    def of_clips(
        self, target: Target, ids: Sequence[str], labels: Mapping[str, np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Values of a target of kind `class` or `number`.

        Args:
          target: a label, or a target of the ground truth.
          ids: ids of n clips.
          labels: labels of the same clips, {field: [n]}.

        Returns:
          One (values [k], mask [n] of the k clips that have one) per part of the target, sorted by its name.

        Raises:
          UserError: if the ground truth has no such target.
        """
        if target.name in labels:
            y = labels[target.name]
            return [(y[y >= 0], y >= 0)]
        records = self._read(ids)
        is_readable_n = np.array([record is not None for record in records])
        values = [self._dataset.ground_truth.of_clip(record) for record in records if record is not None]
        parts = sorted(name for name in values[0] if name.split("/")[0] == target.name)
        if not parts:
            raise UserError(
                f"target {target.name!r}: {self._dataset.kind}.ground_truth.of_clip returns {', '.join(values[0])}: "
                "name one of them"
            )
        return [(np.array([of_clip[part] for of_clip in values]), is_readable_n) for part in parts]

    def _time_steps(
        self, target: Target, record: Mapping, features: Features, m: str, x_ND: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns means of tokens over each time step, [W, D], and values, [W, 1]."""
        rows, frames = features.grids[m][0], self._dataset.media_shapes()["video"][0]
        # Bounds of the time steps in frames: the first latent frame of video may be shorter than the others.
        bounds = frames_of_tokens(frames, rows) if m == "video" else np.arange(rows + 1) * frames / rows
        values = self._dataset.ground_truth.of_time_steps(record, bounds / self._dataset.frames_per_second)
        x_WND = x_ND.reshape(rows, -1, x_ND.shape[-1])  # time is the first axis of the grid
        return x_WND.mean(axis=1), values[target.name][:, None]

    def _read(self, ids: Sequence[str]) -> list[Mapping[str, Any] | None]:
        """The features of raw records that targets are computed from, read once; None for unreadable records."""
        unreadable, reason = [], ""
        for name in ids:
            if name in self._records:
                continue
            try:
                record = self.clips.record(self._indices[name])
            except BadRecord as error:
                unreadable.append(name)
                reason = reason or str(error)
                self._records[name] = None
                continue
            self._records[name] = {feature: record[feature] for feature in self._dataset.ground_truth.features}
        if unreadable:
            print(
                f"warning: {len(unreadable)} raw records are unreadable and have no targets, the first is "
                f"{unreadable[0]!r} ({reason})",
                file=sys.stderr,
            )
        records = [self._records[name] for name in ids]
        if not any(records):
            raise UserError(f"none of the raw records of {len(ids)} clips can be read: build the data set again")
        return records
