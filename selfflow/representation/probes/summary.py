"""The probe table at the end of training: scores of video, audio and both, before and after training.

The table fits the probes of `probe_run` and adds rows for features without a network. It uses parameters in memory, and
the noise of a clip depends on its position in the table's clips, not on its id as in `probe_run`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import jax
import numpy as np

from selfflow.data.dataset import Dataset, ProbeTargets
from selfflow.modality import Modality
from selfflow.models.joint import Output
from selfflow.progress import Progress
from selfflow.representation.features.extract import Features
from selfflow.representation.features.forward import Forward, Taps, forward_all
from selfflow.representation.probes.baselines import BaselineClips, latent_moments, latent_tokens
from selfflow.representation.probes.fit import fit_probe
from selfflow.representation.probes.logistic import tree_probe
from selfflow.representation.probes.split import Score
from selfflow.representation.probes.targets import ProbeLabels, Target

SPLITS = ("train", "validation", "test")
SOURCES = {"video": ("video",), "audio": ("audio",), "both": ("video", "audio")}
MODALITIES = SOURCES["both"]
_TOKEN_CLIPS = 128  # clips of each split whose tokens are probed


class Column(NamedTuple):
    """A column of the table."""

    target: Target
    source: str

    @property
    def key(self) -> str:
        """The key of a column, such as "material/video"."""
        return f"{self.target.name}/{self.source}"

    @property
    def is_token(self) -> bool:
        """Whether the target has a value for each token."""
        return self.target.kind == "token"


def columns_of(truth: ProbeTargets) -> tuple[Column, ...]:
    """Returns the columns in a data set's ground truth. Targets that are not in its `kinds` are class labels."""
    return tuple(Column(Target(name, truth.kinds.get(name, "class")), source) for name, source in truth.columns)


def measures_of(columns: Iterable[Column]) -> str:
    """Describes the measures of the columns, such as "balanced accuracy; position and contacts: R^2"."""
    regressed = dict.fromkeys(column.target.name for column in columns if column.target.kind != "class")
    return "balanced accuracy" + (f"; {' and '.join(regressed)}: R^2" if regressed else "")


Network = tuple[Callable[..., Output], Any]
"""Model as `Forward` takes it, and its parameters. Networks with the same model share compiled programs."""
Table = dict[str, dict[str, Score]]
"""Scores by row and by the key of a column."""


def summary_table(
    clips: Mapping[str, BaselineClips],
    networks: Mapping[str, Network],
    modalities: dict[str, Modality],
    *,
    layers: tuple[int, ...],
    tau: float,
    null_label: int,
    dataset: Dataset,
) -> Table:
    """Computes scores by row and column.

    Columns are those of the data set's ground truth. Scores of classes are balanced accuracies of logistic regression,
    averaged over the parts of a target; scores of numbers and tokens are R^2 of ridge regression. Strengths, and
    layers in rows of the best block, are chosen on the validation split.

    Args:
      clips: clips of the splits train, validation and test.
      networks: networks by the name of their rows.
      modalities: modalities with `video` and `audio`.
      layers: blocks to probe.
      tau: noise level of the latents.
      null_label: label for no class.
      dataset: settings of the data set, with ground truth.

    Returns:
      Rows; the first is chance. A column whose target is the same for all clips of a split is left out.
    """
    prober = _Prober(clips, modalities, dataset)
    table: Table = {"chance": prober.chance()}
    with Progress("probe", 4 + len(networks) * (1 + len(layers)), unit="row") as shown:
        means, tokens = prober.latent_features()
        table["raw latents"] = prober.scores(dict.fromkeys(SOURCES, means), tokens)
        shown.advance()
        table["frame differences"] = prober.scores({"video": prober.features("video", "frame_differences")})
        shown.advance()
        table["log-mel mean"] = prober.scores({"audio": prober.features("audio", "log_mel")})
        shown.advance()
        for name, network in networks.items():
            extract = _Extraction(clips, network, modalities, layers, tau, null_label)
            # The network gets only the modalities of the source; otherwise features of video would contain audio.
            means = {source: extract(names, "mean") for source, names in SOURCES.items()}
            tokens = extract(("video",), "tokens", _TOKEN_CLIPS)
            shown.advance()
            rows = []
            for layer in layers:
                rows.append(prober.scores(means, tokens, layer))
                table[f"{name}, block {layer}"] = rows[-1]
                shown.advance()
            table[f"{name}, best block on validation"] = _best_on_validation(rows)
        first = columns_of(dataset.ground_truth)[0]
        if first in prober.columns and first.target.kind == "class":
            # The part of the target that motion determines. Trees, since the features of motion interact.
            train, validation, test = prober.splits(first, prober.features("video", "motion"))
            score = tree_probe(train[0], validation[0], test[0]).balanced
            table["true kinematics, boosted trees"] = {first.key: score}
        shown.advance()
    return table


def _best_on_validation(rows: list[dict[str, Score]]) -> dict[str, Score]:
    """Returns the scores of the row with the best validation score, for each column."""
    # Selection on test would be biased: the best of many test scores is too high.
    best: dict[str, Score] = {}
    for row in rows:
        for key, score in row.items():
            if key not in best or score.validation > best[key].validation:
                best[key] = score
    return best


BySplit = Mapping[str, Features]


class _Prober:
    """Fits the probes of one row.

    Args: as of `summary_table`.

    Attributes:
      columns: columns with more than one value of their target in every split.
    """

    def __init__(self, clips: Mapping[str, BaselineClips], modalities: dict[str, Modality], dataset: Dataset):
        self._clips, self._modalities = clips, modalities
        self._labels = {split: ProbeLabels(clips[split], dataset) for split in SPLITS}
        columns = columns_of(dataset.ground_truth)
        self.columns = [column for column in columns if column.is_token or min(self._values(column.target)) > 1]

    def _values(self, target: Target) -> list[int]:
        """Returns the number of values of each part of a target, in the split with the fewest."""
        counts_by_split = []
        for split in SPLITS:
            parts = self._labels[split].of_clips(target, self._clips[split].ids, {})
            counts_by_split.append([len(np.unique(values)) for values, _ in parts])
        return [min(counts) for counts in zip(*counts_by_split)]

    def chance(self) -> dict[str, Score]:
        """Returns the scores of a constant prediction by column."""
        chance = {}
        for column in self.columns:
            value = 0.0  # R^2 of the mean
            if column.target.kind == "class":
                # Balanced accuracy of one class of n is 1 / n; a target of several parts is their mean.
                value = float(np.mean([1 / n for n in self._values(column.target)]))
            chance[column.key] = Score(value, value)
        return chance

    def features(self, modality: str, attribute: str) -> BySplit:
        """Returns an attribute [n, D] of the clips as layer 0 of a modality's features."""
        by_split = {}
        for split, clips in self._clips.items():
            by_split[split] = Features(clips.ids, {}, {0: {modality: getattr(clips, attribute)}}, {}, {})
        return by_split

    def latent_features(self) -> tuple[BySplit, BySplit]:
        """Means and log standard deviations of the latent tokens of all modalities, and all tokens of video."""
        moments, tokens = {}, {}
        grids = {m: self._modalities[m].grid for m in MODALITIES}
        for split, clips in self._clips.items():
            moments_n2P: dict[str, np.ndarray] = {}
            for m in MODALITIES:
                moments_n2P[m] = np.stack([latent_moments(self._modalities[m], z[m]) for z in clips.latents])
            moments[split] = Features(clips.ids, {}, {0: moments_n2P}, {}, grids)
            few = clips.latents[:_TOKEN_CLIPS]
            video_nNP = np.stack([latent_tokens(self._modalities["video"], z["video"]) for z in few])
            tokens[split] = Features(clips.ids[:_TOKEN_CLIPS], {}, {0: {"video": video_nNP}}, {}, grids)
        return moments, tokens

    def scores(self, by_source: Mapping[str, BySplit], tokens: BySplit | None = None, layer: int = 0):
        """Computes scores by column; columns whose features are missing are left out.

        Args:
          by_source: features of clips by source.
          tokens: tokens of video, for targets of tokens.
          layer: layer of the features.
        """
        scores: dict[str, Score] = {}
        for column in self.columns:
            features = tokens if column.is_token else by_source.get(column.source)
            if features is not None:
                splits = self.splits(column, features, layer)
                scores[column.key] = fit_probe(column.target, "logistic", splits).score
        return scores

    def splits(self, column: Column, features: BySplit, layer: int = 0):
        """Features and values of a column for a probe, see `ProbeLabels.of`."""
        source = SOURCES[column.source]
        return [self._labels[split].of(column.target, features[split], layer, source) for split in SPLITS]


class _Extraction:
    """Features of all splits by a network.

    Args: as of `summary_table`.
    """

    def __init__(
        self,
        clips: Mapping[str, BaselineClips],
        network: Network,
        modalities: dict[str, Modality],
        layers: tuple[int, ...],
        tau: float,
        null_label: int,
    ):
        self._clips, self._modalities = clips, modalities
        self._apply, self._params = network
        self._layers, self._tau, self._null_label = layers, tau, null_label

    def __call__(self, names: tuple[str, ...], pool: str, limit: int | None = None) -> BySplit:
        """Features by split.

        Args:
          names: modalities that the network sees.
          pool: as for `Forward`.
          limit: largest number of clips of each split.
        """
        streams, grids = {}, {}
        for m in names:
            streams[m] = self._modalities[m]
            grids[m] = self._modalities[m].grid
        # Only video tokens are probed; means over them are computed here, so that one program serves both.
        compiled_pool = "tokens" if names == ("video",) else pool
        forward = Forward(self._apply, streams, self._layers, self._tau, self._null_label, compiled_pool)

        def features(params: Any, latents: dict[str, np.ndarray], numbers_B: np.ndarray) -> Taps:
            taps = forward(params, latents, numbers_B)
            return taps if compiled_pool == pool else jax.tree.map(lambda f_BND: f_BND.mean(axis=1), taps)

        # All splits in one pass, so that one program is compiled.
        latents = [self._clips[split].latents[:limit] for split in SPLITS]
        taps = forward_all(features, self._params, chain.from_iterable(latents))
        tau = dict.fromkeys(names, self._tau)
        by_split, start = {}, 0
        for split, latents_of_split in zip(SPLITS, latents):
            rows = slice(start, start + len(latents_of_split))
            layers = {}
            for layer, tap in taps.items():
                layers[layer] = {m: x[rows] for m, x in tap.items()}
            by_split[split] = Features(self._clips[split].ids[:limit], {}, layers, tau, grids)
            start = rows.stop
        return by_split


def as_text(table: Table, columns: Sequence[Column]) -> str:
    """Formats the table as aligned text: test scores, accuracies in per cent, R^2 with two decimals."""
    width = max(map(len, table)) + 2
    names, sources = [], []
    for column in columns:
        names.append(f"{column.target.name:>8}")
        sources.append(f"{column.source:>8}")
    lines = [" " * width + " ".join(names), " " * width + " ".join(sources)]
    for row, scores in table.items():
        cells = [_cell(column, scores.get(column.key)) for column in columns]
        lines.append(f"{row:<{width}}" + " ".join(cells))
    return "\n".join(lines)


def _cell(column: Column, score: Score | None) -> str:
    if score is None:
        return f"{'-':>8}"
    return f"{100 * score.test:>7.0f}%" if column.target.kind == "class" else f"{score.test:>8.2f}"
