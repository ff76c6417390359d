"""The probe table of a run: what every layer knows at every noise level, as rows."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np

from selfflow.errors import UserError, check_at_least
from selfflow.progress import Progress
from selfflow.representation.features.extract import features
from selfflow.representation.probes.attentive import attentive_probe
from selfflow.representation.probes.linear import linear_probe
from selfflow.representation.probes.logistic import few_shot, logistic_probe
from selfflow.representation.probes.neighbours import knn_probe
from selfflow.representation.probes.ridge import ridge_probe
from selfflow.representation.probes.split import Score, Split
from selfflow.representation.probes.targets import ProbeLabels, Target, select_targets, targets_of
from selfflow.representation.statistics import bootstrap

ProbeName = Literal["logistic", "linear", "knn", "attentive", "few-shot"]
_CLASSES = {"logistic": logistic_probe, "linear": linear_probe, "knn": knn_probe, "attentive": attentive_probe}
_SHOTS = 5


@dataclass(frozen=True)
class Probing:
    """What to probe."""

    targets: tuple[str, ...] = ()
    """Labels of the data; of Collisions also shape, contacts, contact (of each moment), position and velocity (of each
    video token); by default the labels."""
    layers: tuple[int, ...] = ()
    """Blocks, counted from 1; by default all."""
    tau: tuple[float, ...] = (0.1,)
    """Noise levels of the latents."""
    sources: tuple[str, ...] = ()
    """What the network sees and the probe reads, such as video, audio or video+audio; by default each modality of the
    set alone, and all of them."""
    probe: ProbeName = "logistic"
    """For classes: logistic regression; linear, as in REPA and Self-Flow; knn, as in DINO; attentive, over all tokens,
    as in V-JEPA; few-shot, of 5 samples of each class, as in MSN. Numbers are read by ridge regression."""
    component: str = ""
    """The set of the mixture; by default the first."""
    split: str = "test"
    """The split that scores are of; probes are fitted on train, and their settings chosen on validation."""
    clips: int = 2048
    """Clips of train that probes are fitted on, if there are so many."""
    token_clips: int = 256
    """Clips of each split whose tokens are probed one by one."""

    def __post_init__(self):
        check_at_least(self, "--", clips=2, token_clips=2)
        if not self.tau or not all(0 <= tau <= 1 for tau in self.tau):
            raise UserError(f"--tau is {self.tau}: give numbers from 0 to 1")


class Row(NamedTuple):
    """One probe: what one layer tells of one target at one noise level.

    Attributes:
      run, method, seed: whose; the method is what runs that differ in their seeds alone share.
      step, weights: of the run.
      target, source: what is asked, and of which modalities.
      tau, layer: noise level and block.
      probe, metric: how, and what the scores are: balanced_accuracy or r2.
      setting: the strength or number of neighbours that validation chose; nan where nothing is chosen, and of a target
        that is the mean of several probes.
      validation, test: scores; that of validation is nan where the probe does not use it.
      low, high: 95 % bootstrap interval of test over test samples, of this one run; nan where test is not one balanced
        accuracy.
      chance: the score of a probe that knows nothing.
      split: which one test is.
      train_n, test_n: rows that the probe was fitted on and scored on: clips, moments or tokens.
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
    run: Any,
    asked: Probing,
    *,
    method: str = "",
    weights: str = "ema",
    step: int | None = None,
    data_dir: Any = None,
    data: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Fits all probes of a run.

    Args:
      run: an opened run.
      asked: which.
      method: what the rows are to call it; by default the name of its folder.
      weights, step: as for `Run.model`.
      data_dir: as for `Run.data`.
      data: clips or `Arrays` of train, validation and `asked.split`; by default those of the run.

    Raises:
      UserError: for what does not exist, naming what does; for samples that no probe can be fitted to, naming target
        and split; and if there is no target.
    """
    if asked.split in ("train", "validation"):
        raise UserError(f"--split {asked.split}: probes are fitted to it; take another, such as test")
    wanted = "train", "validation", asked.split
    if data is not None and (missing := [split for split in wanted if split not in data]):
        raise UserError(f"data has {', '.join(data) or 'no split'}, and no {missing[0]}: give {', '.join(wanted)}")
    of_run = lambda split: run.data(split, asked.component or None, data_dir)
    clips = {split: of_run(split) if data is None else data[split] for split in wanted}
    truth = {split: ProbeLabels(run, one) for split, one in clips.items()}
    targets = _targets(run, asked, truth)
    sources = _sources(asked.sources, tuple(clips["train"].shapes), targets)
    model = run.model(weights, step)
    network = {"weights": weights, "step": None if weights == "untrained" else model.step}
    name = run.name
    rows: list[Row] = []
    probes = len(asked.tau) * sum(target.asked_of(source) for source in sources for target in targets)
    with Progress(f"probe {name}", probes * len(asked.layers or range(model.depth)), unit="probe") as shown:
        for tau, source in product(asked.tau, sources):
            alike: dict[tuple, list[Target]] = {}
            for target in targets:
                if target.asked_of(source):
                    alike.setdefault(_kind(target, asked), []).append(target)
            for (pool, *limits), some in alike.items():
                more = {"modalities": source, "pool": pool, **network}
                found = {
                    split: features(run, one, asked.layers or "all", tau, limit=limit, **more)
                    for (split, one), limit in zip(clips.items(), limits)
                }
                for target, layer in product(some, found["train"].layers):
                    splits = [truth[split].of(target, f, layer, source) for split, f in found.items()]
                    whose = (name, method or name, run.experiment.seed.init, model.step, weights)
                    try:
                        scores = _probed(target, asked.probe, splits)
                    except UserError as error:
                        raise UserError(f"target {target.name}, tested on {asked.split}: {error}") from error
                    counts = (len(splits[0][0].y), len(splits[-1][0].y))
                    rows.append(Row(*whose, target.name, "+".join(source), tau, layer, *scores, asked.split, *counts))
                    shown.advance()
    return rows


def best(rows: list[Row]) -> list[Row]:
    """Of each run, weights, target and source the row whose layer and tau validation chose."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.run, row.weights, row.target, row.source, row.probe, row.split), []).append(row)
    return [
        max(group, key=lambda row: row.validation) for group in groups.values() if not np.isnan(group[0].validation)
    ]


def _probed(target: Target, probe: ProbeName, splits: list[list[Split]]) -> tuple:
    """(probe, metric, setting, validation, test, low, high, chance); of a target that is of several the mean."""
    train, validation, test = splits
    nan = float("nan")
    if target.kind != "class":
        found = [ridge_probe(*parts) for parts in zip(train, validation, test)]
        return "ridge", "r2", _setting(found), *_mean([one.r2 for one in found]), nan, nan, 0.0
    chance = float(np.mean([1 / len(np.unique(part.y)) for part in test]))
    if probe == "few-shot":
        tests = [few_shot(a, b, (_SHOTS,))[_SHOTS].mean for a, b in zip(train, test)]
        return probe, "balanced_accuracy", _SHOTS, nan, float(np.mean(tests)), nan, nan, chance
    found = [_CLASSES[probe](*parts) for parts in zip(train, validation, test)]
    sure = bootstrap(test[0].y, found[0].predicted)[1:3] if len(found) == 1 else (nan, nan)
    return probe, "balanced_accuracy", _setting(found), *_mean([one.balanced for one in found]), *sure, chance


def _setting(found: list) -> float:
    """What validation chose; nan where it chose nothing, or one for each of several probes."""
    return float("nan") if len(found) > 1 or found[0].chosen is None else found[0].chosen


def _mean(scores: list[Score]) -> tuple[float, float]:
    return float(np.mean([s.validation for s in scores])), float(np.mean([s.test for s in scores]))


def _kind(target: Target, asked: Probing) -> tuple:
    """What features a target needs: how they are pooled, and of how many clips of train, validation and test."""
    if target.kind in ("time_step", "token"):
        return "tokens", asked.token_clips, asked.token_clips, asked.token_clips
    return "tokens" if asked.probe == "attentive" and target.kind == "class" else "mean", asked.clips, None, None


def _targets(run: Any, asked: Probing, truth: dict[str, ProbeLabels]) -> list[Target]:
    """Those asked by name; or all labels but those that have one class in a split, of which a line tells."""
    train = truth["train"].clips
    names = asked.targets or tuple(name for name in targets_of(run, train) if name in train.labels)
    targets = []
    for target in select_targets(run, train, names):
        told = {
            split: one.only_class(target, asked.clips if split == "train" else None) for split, one in truth.items()
        }
        wrong = next((f"{split}: {why}" for split, why in told.items() if why), None)
        if wrong and asked.targets:
            raise UserError(f"target {target.name}: {wrong}: take another split, or leave the target out")
        if wrong:
            print(f"target {target.name} is left out: {wrong}", file=sys.stderr)
        else:
            targets.append(target)
    if not targets:
        known = ", ".join(name for name in targets_of(run, train) if name not in names)
        raise UserError(f"no label of the data can be probed: name other --targets; there are {known or 'none'}")
    return targets


def _sources(asked: tuple[str, ...], known: tuple[str, ...], targets: list[Target]) -> list[tuple[str, ...]]:
    names = asked or (*known, *(("+".join(known),) if len(known) > 1 else ()))
    found = [tuple(name.split("+")) for name in names]
    for source, name in zip(found, names):
        if unknown := [m for m in source if m not in known]:
            raise UserError(f"--sources {name}: {unknown[0]} is none of the component's {', '.join(known)}")
    for target in targets:
        if not any(target.asked_of(source) for source in found):
            raise UserError(
                f"target {target.name}: it is asked of tokens of one modality, and of none of {', '.join(names)}"
            )
    return found
