"""What probes are asked of clips: a class, a number, something of each moment or of each token."""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from selfflow.data.dataset import Dataset, TargetKind
from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.modality import frames_of_tokens
from selfflow.representation.features.arrays import Arrays
from selfflow.representation.features.extract import Features
from selfflow.representation.probes.split import Split


class Target(NamedTuple):
    """A probe target.

    Attributes:
      name: a label of the data, or a target of the data set's ground truth.
      kind: a class or a number of each clip, a number of each time step, or a vector of each token.
    """

    name: str
    kind: TargetKind

    def asked_of(self, source: tuple[str, ...]) -> bool:
        """Whether features of these modalities can be asked it: tokens are those of one."""
        if self.kind == "token":
            return source == ("video",)
        return self.kind != "time_step" or source in (("video",), ("audio",))


def targets_of(run: Any, clips: Any) -> dict[str, Target]:
    """All that can be asked of clips, by name.

    Args:
      run: an opened run.
      clips: of its data, or `Arrays`.
    """
    kinds: dict[str, TargetKind] = {field: "class" for field, values in clips.labels.items() if (values >= 0).any()}
    settings = _dataset(run, clips)
    if settings is not None and settings.ground_truth is not None:
        kinds |= settings.ground_truth.kinds
    return {name: Target(name, kind) for name, kind in kinds.items()}


def select_targets(run: Any, clips: Any, names: tuple[str, ...]) -> list[Target]:
    """The targets of these names.

    Raises:
      UserError: listing those that there are; or if clips are cropped, and the target is of what happens in them.
    """
    known = targets_of(run, clips)
    for name in names:
        if name not in known:
            raise UserError(f"target {name!r}: the data has {', '.join(known) or 'none'}")
        if name not in clips.labels and known[name].kind != "class":
            refuse_cropped(run, clips, f"target {name!r}")
    return [known[name] for name in names]


def refuse_cropped(run: Any, clips: Any, what: str) -> None:
    """Raises `UserError`, beginning with `what`, if clips are cropped: the ground truth is that of whole records."""
    truth, seconds = _dataset(run, clips).ground_truth, run.experiment.mixture[clips.component].seconds
    if truth is not None and seconds not in (None, truth.seconds):
        raise UserError(
            f"{what}: mixture.{clips.component}.seconds is {seconds:g}, and the truth is that of whole clips of "
            f"{truth.seconds:g} s: take a component without seconds"
        )


class ProbeLabels:
    """One split, and the truth about it.

    Args:
      run: an opened run.
      clips: of its data, or `Arrays`.
    """

    def __init__(self, run: Any, clips: Any):
        self.clips, self._settings = clips, _dataset(run, clips)
        self._number = {name: i for i, name in enumerate(clips.ids)}
        self._records: dict[str, Mapping | None] = {}  # None of those that cannot be read

    def only_class(self, target: Target, limit: int | None = None) -> str:
        """Why a label is no target of the first `limit` clips, of which fewer than two classes are; else nothing."""
        labels = self.clips.labels.get(target.name, np.arange(2))[:limit]
        shown = np.unique(labels[labels >= 0])
        if len(shown) > 1:
            return ""
        return f"all {(labels >= 0).sum()} samples are of class {shown[0]}" if len(shown) else "no sample has a label"

    def of(self, target: Target, found: Features, layer: int, source: tuple[str, ...]) -> list[Split]:
        """What a probe is given: one split, or of a target that is the mean of several, those.

        Args:
          target: what is asked.
          found: features of clips: means, or for moments and tokens all tokens.
          layer: which of them.
          source: modalities; of several, means stand side by side, and tokens one after the other.

        Raises:
          UserError: if raw records are asked, and none can be read; of some that cannot, a line tells.
        """
        ids = np.array(found.ids)
        taps = found.layers[layer]
        if target.kind in ("class", "number"):
            # Axis 1 is the channels of means [n, D], and the tokens of [n, N, D], of which each modality has its own N.
            x = np.concatenate([taps[m] for m in source], axis=1)
            return [Split(x[keep], y, ids[keep]) for y, keep in self._of_clips(target, found)]
        (m,) = source
        of_each = self._time_steps if target.kind == "time_step" else self._tokens
        records = self._read(found.ids)
        parts = [of_each(target, record, found, m, taps[m][i]) for i, record in enumerate(records) if record]
        ids = ids[[record is not None for record in records]]
        x, y = (np.concatenate(column) for column in zip(*parts))
        return [Split(x, y, np.repeat(ids, [len(part[0]) for part in parts]))]

    def _of_clips(self, target: Target, found: Features) -> list[tuple[np.ndarray, np.ndarray]]:
        """(targets of those clips that have one, which these are [n])."""
        if target.name in found.labels:
            y = found.labels[target.name]
            return [(y[y >= 0], y >= 0)]
        records = self._read(found.ids)
        there = np.array([record is not None for record in records])
        told = [self._settings.ground_truth.of_clip(record) for record in records if record]
        names = sorted(name for name in told[0] if name.split("/")[0] == target.name)
        return [(np.array([t[name] for t in told]), there) for name in names]

    def _time_steps(self, target: Target, record: Mapping, found: Features, m: str, x_ND: np.ndarray):
        rows, frames = found.grids[m][0], self._settings.media_shapes()["video"][0]
        bounds = frames_of_tokens(frames, rows) if m == "video" else np.arange(rows + 1) * frames / rows
        values = self._settings.ground_truth.of_time_steps(record, bounds / self._settings.frames_per_second)
        return x_ND.reshape(rows, -1, x_ND.shape[-1]).mean(axis=1), values[target.name][:, None]

    def _tokens(self, target: Target, record: Mapping, found: Features, m: str, x_ND: np.ndarray):
        tokens, values = self._settings.ground_truth.of_tokens(record, found.grids[m])
        return x_ND[tokens], values[target.name]

    def _read(self, names: list[str]) -> list[Mapping | None]:
        """Those parts of raw records that targets are made of; None where one cannot be read."""
        bad, why = [], ""
        for name in names:
            if name not in self._records:
                try:
                    record = self.clips.record(self._number[name])
                except BadRecord as error:
                    bad, why, self._records[name] = [*bad, name], why or str(error), None
                    continue
                features = self._settings.ground_truth.features
                self._records[name] = {feature: record[feature] for feature in features}
        if bad:
            print(
                f"warning: {len(bad)} raw records cannot be read, and nothing is asked of their clips, the first is "
                f"{bad[0]!r} ({why})",
                file=sys.stderr,
            )
        found = [self._records[name] for name in names]
        if not any(found):
            raise UserError(f"none of the raw records of {len(names)} clips can be read: build the data set again")
        return found


def _dataset(run: Any, clips: Any) -> Dataset | None:
    """The settings of the data set of clips; None for `Arrays`, which belong to none."""
    if isinstance(clips, Arrays):
        return None
    return run.experiment.data[run.experiment.mixture[clips.component].data]
