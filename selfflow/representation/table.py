"""The probe table: what video, sound and both tell of a clip, before and after training."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from selfflow.data.dataset import Dataset
from selfflow.encoders.audio import log_mel
from selfflow.modality import Modality
from selfflow.progress import Progress
from selfflow.representation.features.forward import Forward, forward_all
from selfflow.representation.probes.logistic import logistic_probe, tree_probe
from selfflow.representation.probes.ridge import ridge_probe
from selfflow.representation.probes.split import Score, Split

SOURCES = {"video": ("video",), "audio": ("audio",), "both": ("video", "audio")}
_SPLITS = ("train", "validation", "test")
_POSITION_CLIPS = 128

COLUMNS = (
    [("material", source) for source in SOURCES]
    + [("shape", source) for source in SOURCES]
    + [("count", source) for source in SOURCES]
    + [("position", "video"), ("contacts", "audio")]
)
REGRESSED = ("position", "contacts")

Inputs = dict[str, np.ndarray]  # features by split


@dataclass(frozen=True)
class Clips:
    """The clips of one split: records of the data set and their latents."""

    records: list[dict[str, Any]]
    latents: list[dict[str, np.ndarray]]


def probe_table(
    clips: dict[str, Clips],
    networks: dict[str, tuple[Callable, Any]],
    modalities: dict[str, Modality],
    *,
    layers: tuple[int, ...],
    tau: float,
    null_label: int,
    data: Dataset,
) -> dict[str, dict[str, Score]]:
    """Scores by row and column ("material/video").

    Material, shape (presence of each, averaged) and count are balanced accuracies of logistic regression;
    position (of a body's centre in the token that holds it) and number of contacts are R^2 of ridge
    regression. Strengths, and layers where a row says so, are chosen on the validation split.

    Args:
      clips: of the splits train, validation and test.
      networks: row name -> (apply, parameters), as `Forward` and `features` take them.
      modalities: with `video` and `audio`.
      layers: blocks to probe.
      tau: noise level of the features.
      null_label: label that stands for none.
      data: settings of the data set.

    Returns:
      Rows; the first is chance. A column whose target is the same for all clips is left out.
    """
    truth = data.ground_truth
    targets = {s: [truth.of_clip(r) for r in clips[s].records] for s in _SPLITS}
    grid = modalities["video"].grid
    places = {}
    for split in _SPLITS:
        found = [truth.of_tokens(r, grid) for r in clips[split].records[:_POSITION_CLIPS]]
        tokens = np.concatenate([i * modalities["video"].tokens + bodies.tokens for i, bodies in enumerate(found)])
        places[split] = tokens, np.concatenate([bodies.values["position"] for bodies in found])

    def classes(name: str) -> list[int]:
        """How many values each target of a column takes, in the split where it takes fewest."""
        keys = sorted(t for t in targets["train"][0] if t.split("/")[0] == name)
        return [min(len({t[key] for t in targets[s]}) for s in _SPLITS) for key in keys]

    def score(column: tuple[str, str], inputs: Inputs) -> Score:
        name = column[0]
        if name == "position":
            return ridge_probe(*(Split(inputs[s][places[s][0]], places[s][1]) for s in _SPLITS)).r2
        wanted = sorted(t for t in targets["train"][0] if t.split("/")[0] == name)
        if name == "contacts":
            probe = lambda *splits: ridge_probe(*splits).r2
        else:
            probe = lambda *splits: logistic_probe(*splits).balanced
        found = [probe(*(Split(inputs[s], np.array([t[key] for t in targets[s]])) for s in _SPLITS)) for key in wanted]
        return Score(*np.mean(found, axis=0).tolist())

    def per_clip(function: Callable[[dict, dict], np.ndarray]) -> Inputs:
        return {s: np.stack([function(r, z) for r, z in zip(clips[s].records, clips[s].latents)]) for s in _SPLITS}

    def tokens_of(sample: dict, m: str) -> np.ndarray:
        return np.asarray(modalities[m].to_tokens(sample[m][None].astype(np.float32))[0])

    columns = [c for c in COLUMNS if c[0] == "position" or min(classes(c[0])) > 1]
    chance = {c: 0.0 if c[0] in REGRESSED else float(np.mean([1 / n for n in classes(c[0])])) for c in columns}
    table: dict[str, dict[str, Score]] = {"chance": {"/".join(c): Score(x, x) for c, x in chance.items()}}

    def fill(row: str, inputs: dict[tuple[str, str], Inputs]) -> None:
        table[row] = {"/".join(column): score(column, x) for column, x in inputs.items() if column in columns}

    with Progress("probe", 4 + len(networks) * (1 + len(layers)), unit="row") as shown:
        raw = {m: per_clip(lambda r, z, m=m: _moments(tokens_of(z, m))) for m in ("video", "audio")}
        raw["both"] = _joined(raw["video"], raw["audio"])
        inputs = {column: raw[column[1]] for column in COLUMNS if column[0] != "position"}
        inputs["position", "video"] = {
            s: np.concatenate([tokens_of(z, "video") for z in clips[s].latents[:_POSITION_CLIPS]]) for s in _SPLITS
        }
        fill("raw latents", inputs)
        shown.advance()
        motion = per_clip(lambda r, z: _difference_energy(r["video"]))
        fill("frame differences", {c: motion for c in COLUMNS if c[1] == "video" and c[0] != "position"})
        shown.advance()
        mel = per_clip(lambda r, z: log_mel(r["audio"], data.sample_rate).mean(axis=1))
        fill("log-mel mean", {c: mel for c in COLUMNS if c[1] == "audio"})
        shown.advance()
        for name, network in networks.items():
            by_layer = _network_inputs(clips, network, modalities, layers, tau, null_label)
            shown.advance()
            for layer in layers:
                fill(f"{name}, block {layer}", by_layer[layer])
                shown.advance()
            rows = [table[f"{name}, block {layer}"] for layer in layers]
            table[f"{name}, best block on validation"] = {
                column: max((row[column] for row in rows), key=lambda s: s.validation) for column in rows[0]
            }
        motion = per_clip(lambda r, z: truth.oracle_features(r))
        if ("material", "video") in columns:
            materials = [np.array([t["material"] for t in targets[s]]) for s in _SPLITS]
            ceiling = tree_probe(*(Split(motion[s], y) for s, y in zip(_SPLITS, materials))).balanced
            table["true kinematics, boosted trees"] = {"material/video": ceiling}
        shown.advance()
    return table


def _network_inputs(clips, network, modalities, layers, tau, null_label) -> dict[int, dict[tuple[str, str], Inputs]]:
    apply, params = network
    by_layer: dict[int, dict[tuple[str, str], Inputs]] = {layer: {} for layer in layers}
    ends = np.cumsum([len(clips[s].latents) for s in _SPLITS])[:-1]
    for source, names in SOURCES.items():
        seen = {m: modalities[m] for m in names}
        extract = partial(forward_all, Forward(apply, seen, layers, tau, null_label), params)
        # All splits in one go, so that there is one program to compile.
        means = extract(chain.from_iterable(clips[s].latents for s in _SPLITS))
        for layer in layers:
            parts = np.split(np.concatenate([means[layer][m] for m in names], axis=-1), ends)
            for column in (c for c in COLUMNS if c[1] == source and c[0] != "position"):
                by_layer[layer][column] = dict(zip(_SPLITS, parts))
    video = {"video": modalities["video"]}
    extract = partial(forward_all, Forward(apply, video, layers, tau, null_label, "tokens"), params)
    tokens = extract(chain.from_iterable(clips[s].latents[:_POSITION_CLIPS] for s in _SPLITS))
    ends = np.cumsum([len(clips[s].latents[:_POSITION_CLIPS]) for s in _SPLITS])[:-1]
    for layer in layers:
        parts = [p.reshape(-1, p.shape[-1]) for p in np.split(tokens[layer]["video"], ends)]
        by_layer[layer]["position", "video"] = dict(zip(_SPLITS, parts))
    return by_layer


def _joined(a: Inputs, b: Inputs) -> Inputs:
    return {s: np.concatenate([a[s], b[s]], axis=-1) for s in a}


def _moments(tokens_NP: np.ndarray) -> np.ndarray:
    """Mean and log standard deviation over tokens, [2P]."""
    return np.concatenate([tokens_NP.mean(axis=0), np.log(tokens_NP.std(axis=0) + 1e-3)])


def _difference_energy(video: np.ndarray) -> np.ndarray:
    """Log of the mean squared difference of successive frames [T - 1], and the log of its mean."""
    energy = np.mean(np.square(np.diff(video.astype(np.float32) / 255, axis=0)), axis=(1, 2, 3))
    return np.log(np.append(energy, energy.mean()) + 1e-5)


def as_text(table: dict[str, dict[str, Score]]) -> str:
    """The table as aligned text: test scores, accuracies in per cent, R^2 with two decimals."""
    width = max(map(len, table)) + 2
    first = " " * width + " ".join(f"{name:>8}" for name, _ in COLUMNS)
    second = " " * width + " ".join(f"{source:>8}" for _, source in COLUMNS)

    def cell(name: str, source: str, row: dict[str, Score]) -> str:
        score = row.get(f"{name}/{source}")
        if score is None:
            return f"{'-':>8}"
        return f"{score.test:>8.2f}" if name in REGRESSED else f"{100 * score.test:>7.0f}%"

    return "\n".join(
        [first, second]
        + [f"{row:<{width}}" + " ".join(cell(n, s, values) for n, s in COLUMNS) for row, values in table.items()]
    )
