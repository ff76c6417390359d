"""The probe table of a run: one row for each target, source, noise level and block."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from selfflow.errors import UserError, check_at_least
from selfflow.progress import Progress
from selfflow.representation.features.extract import Features, features
from selfflow.representation.probes.fit import ProbeName, fit_probe
from selfflow.representation.probes.split import Split
from selfflow.representation.probes.targets import ProbeLabels, Target, dataset_of, select_targets, targets_of
from selfflow.representation.protocols import LabelledClips, OpenRun

Source = tuple[str, ...]
"""Modalities that the network and the probe read."""


@dataclass(frozen=True)
class Probing:
    """Settings of the probes."""

    targets: tuple[str, ...] = ()
    """Labels of the data; for Collisions also shape, contacts, contact (per time step), position and velocity (per
    video token); by default the labels."""
    layers: tuple[int, ...] = ()
    """Blocks, counted from 1; by default all."""
    tau: tuple[float, ...] = (0.1,)
    """Noise levels of the latents."""
    sources: tuple[str, ...] = ()
    """Modalities that the network and the probe read, such as video, audio or video+audio; by default each modality of
    the component alone, and all of them."""
    probe: ProbeName = "logistic"
    """Probe of classes: logistic regression; linear, as in REPA and Self-Flow; knn, as in DINO; attentive, over all
    tokens, as in V-JEPA; few-shot, with 5 samples of each class, as in MSN. Numbers are read by ridge regression."""
    component: str = ""
    """Component of the mixture; by default the first."""
    split: str = "test"
    """Split that is scored; probes are fitted on train, and their settings chosen on validation."""
    clips: int = 2048
    """Maximum number of train clips that probes are fitted on."""
    token_clips: int = 256
    """Clips of each split for targets of time steps and tokens."""

    def __post_init__(self):
        check_at_least(self, "--", clips=2, token_clips=2)
        if not self.tau or not all(0 <= tau <= 1 for tau in self.tau):
            raise UserError(f"--tau is {self.tau}: give numbers from 0 to 1")


class Row(NamedTuple):
    """One probe: the score of one layer for one target at one noise level.

    Attributes:
      run, method, seed: name, method and `seed.init` of the run; runs that differ only in their seeds share the method.
      step, weights: step and weights of the run.
      target, source: target, and the modalities that it is read from.
      tau, layer: noise level and block.
      probe, metric, setting, low, high, chance: as in `ProbeResult`.
      validation, test: scores.
      split: the split of `test`, `low` and `high`.
      train_n, test_n: rows that the probe was fitted on and scored on: clips, time steps or tokens.
    """

    run: str
    method: str
    seed: int
    step: int
    weights: str
    target: str
    source: str
    tau: float
    layer: int
    probe: str
    metric: str
    setting: float
    validation: float
    test: float
    low: float
    high: float
    chance: float
    split: str
    train_n: int
    test_n: int


def probe_run(
    run: OpenRun,
    settings: Probing,
    *,
    method: str = "",
    weights: str = "ema",
    step: int | None = None,
    data_dir: str | Path | None = None,
    data: Mapping[str, LabelledClips] | None = None,
) -> list[Row]:
    """Fits all probes of a run.

    Args:
      run: an opened run.
      settings: settings of the probes.
      method: name of the method in the rows; by default the name of the run's folder.
      weights, step: as for `Run.model`.
      data_dir: as for `Run.data`.
      data: clips or `Arrays` of train, validation and `settings.split`; by default those of the run.

    Raises:
      UserError: for unknown targets, layers, sources or splits, with the known ones; for samples that no probe can be
        fitted to, with target and split; and if there is no target.
    """
    clips = _clips(run, settings, data_dir, data)
    labels: dict[str, ProbeLabels] = {}
    for split, clips_of_split in clips.items():
        labels[split] = ProbeLabels(clips_of_split, dataset_of(run, clips_of_split))
    targets = _targets(run, settings, labels)
    sources = _sources(settings.sources, tuple(clips["train"].shapes), targets)
    model = run.model(weights, step)
    identity = {
        "run": run.name,
        "method": method or run.name,
        "seed": run.experiment.seed.init,
        "step": model.step,
        "weights": weights,
    }
    rows: list[Row] = []
    count = sum(target.applies_to(source) for source, target in product(sources, targets))
    total = count * len(settings.tau) * len(settings.layers or range(model.depth))
    with Progress(f"probe {run.name}", total, unit="probe") as shown:
        for tau, source in product(settings.tau, sources):
            # Targets that need the same features share them: extraction takes longer than fitting.
            for needs, sharing in _by_features(targets, source, settings).items():
                network = {"weights": weights, "step": None if weights == "untrained" else model.step}
                by_split = _features(run, clips, needs, settings.layers or "all", tau, modalities=source, **network)
                for target, layer in product(sharing, by_split["train"].layers):
                    splits = [labels[split].of(target, by_split[split], layer, source) for split in clips]
                    scores = _scores(target, settings, splits)
                    rows.append(Row(**identity, source="+".join(source), tau=tau, layer=layer, **scores))
                    shown.advance()
    return rows


def best(rows: list[Row]) -> list[Row]:
    """Selects the row with the best validation score for each run, weights, target and source."""
    best_rows: dict[tuple, Row] = {}
    for row in rows:
        # Few-shot probes have no validation score, and selection on test would be biased.
        if np.isnan(row.validation):
            continue
        question = (row.run, row.weights, row.target, row.source, row.probe, row.split)
        if question not in best_rows or row.validation > best_rows[question].validation:
            best_rows[question] = row
    return list(best_rows.values())


def _clips(
    run: OpenRun, settings: Probing, data_dir: str | Path | None, data: Mapping[str, LabelledClips] | None
) -> dict[str, LabelledClips]:
    """Returns the clips of train, validation and the scored split."""
    if settings.split in ("train", "validation"):
        raise UserError(f"--split {settings.split}: probes are fitted to it; take another, such as test")
    splits = ("train", "validation", settings.split)
    clips: dict[str, LabelledClips] = {}
    for split in splits:
        if data is None:
            clips[split] = run.data(split, settings.component or None, data_dir)
        elif split in data:
            clips[split] = data[split]
        else:
            raise UserError(f"data has {', '.join(data) or 'no split'}, and no {split}: give {', '.join(splits)}")
    return clips


def _features(
    run: OpenRun,
    clips: Mapping[str, LabelledClips],
    needs: "_Needs",
    layers: tuple[int, ...] | Literal["all"],
    tau: float,
    **options: Any,
) -> dict[str, Features]:
    """Computes features of each split; options as for `features`."""
    by_split = {}
    for (split, of_split), limit in zip(clips.items(), needs.limits):
        by_split[split] = features(run, of_split, layers, tau, pool=needs.pool, limit=limit, **options)
    return by_split


def _scores(target: Target, settings: Probing, splits: list[list[Split]]) -> dict[str, Any]:
    """Computes the fields of a row for one target."""
    try:
        result = fit_probe(target, settings.probe, splits)
    except UserError as error:
        raise UserError(f"target {target.name}, tested on {settings.split}: {error}") from error
    return {
        "target": target.name,
        "probe": result.probe,
        "metric": result.metric,
        "setting": result.setting,
        "validation": result.score.validation,
        "test": result.score.test,
        "low": result.low,
        "high": result.high,
        "chance": result.chance,
        "split": settings.split,
        "train_n": len(splits[0][0].y),
        "test_n": len(splits[-1][0].y),
    }


class _Needs(NamedTuple):
    """Features that a target needs.

    Attributes:
      pool: as for `features`.
      limits: maximum numbers of clips of train, validation and the scored split; None for all.
    """

    pool: Literal["mean", "tokens"]
    limits: tuple[int | None, int | None, int | None]


def _by_features(targets: list[Target], source: Source, settings: Probing) -> dict[_Needs, list[Target]]:
    """Groups the targets that apply to a source by the features that they need."""
    groups: dict[_Needs, list[Target]] = {}
    for target in targets:
        if not target.applies_to(source):
            continue
        if target.kind in ("time_step", "token"):
            # A clip has many rows, so fewer clips suffice; all tokens of many clips would not fit in memory.
            needs = _Needs("tokens", (settings.token_clips,) * 3)
        else:
            # Settings are chosen on all clips of validation, and scores are computed on the whole split.
            reads_tokens = settings.probe == "attentive" and target.kind == "class"
            needs = _Needs("tokens" if reads_tokens else "mean", (settings.clips, None, None))
        groups.setdefault(needs, []).append(target)
    return groups


def _targets(run: OpenRun, settings: Probing, labels: dict[str, ProbeLabels]) -> list[Target]:
    """Returns the targets in the settings; by default all labels, except those with one class in a split."""
    train = labels["train"].clips
    names = settings.targets or tuple(name for name in targets_of(run, train) if name in train.labels)
    targets = []
    for target in select_targets(run, train, names):
        reason = ""
        for split, of_split in labels.items():
            reason_in_split = of_split.only_class(target, settings.clips if split == "train" else None)
            if reason_in_split:
                reason = f"{split}: {reason_in_split}"
                break
        if reason and settings.targets:
            raise UserError(f"target {target.name}: {reason}: take another split, or leave the target out")
        if reason:
            print(f"target {target.name} is left out: {reason}", file=sys.stderr)
        else:
            targets.append(target)
    if not targets:
        known = ", ".join(name for name in targets_of(run, train) if name not in names)
        raise UserError(f"no label of the data can be probed: choose --targets from {known or 'none'}")
    return targets


def _sources(names: tuple[str, ...], known: tuple[str, ...], targets: list[Target]) -> list[Source]:
    """Parses sources such as "video+audio"; by default each known modality, and all of them together."""
    if not names:
        names = (*known, "+".join(known)) if len(known) > 1 else known
    sources = []
    for name in names:
        source = tuple(name.split("+"))
        unknown = [m for m in source if m not in known]
        if unknown:
            raise UserError(f"--sources {name}: {unknown[0]} is not a modality of the component, {', '.join(known)}")
        sources.append(source)
    for target in targets:
        if not any(target.applies_to(source) for source in sources):
            raise UserError(
                f"target {target.name}: it requires tokens of one modality, but the sources are {', '.join(names)}"
            )
    return sources
