"""Video-to-audio retrieval by conditional flow loss.

Audio that fits a video is denoised with a lower error than other audio. The audio of several clips is combined with the
clean video of one clip, and ranked by its flow loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from selfflow.context import modality_context
from selfflow.errors import UserError, check_at_least
from selfflow.modality import Modality, to_tokens
from selfflow.models.joint import Output
from selfflow.noise import Corruption, corrupt, draw_eps
from selfflow.progress import Progress
from selfflow.representation.features.arrays import readable_and_whole
from selfflow.representation.probes.probe_run import Row
from selfflow.representation.protocols import ComponentClips, OpenRun

VIDEO, AUDIO = "video", "audio"
_MIN_CLIPS = 128  # clips that candidates are drawn from: about 32 of each of 4 materials, of which 8 are needed


@dataclass(frozen=True)
class Retrieval:
    """Settings of the retrieval."""

    candidates: int = 16
    """Audio candidates: the true one and others of the same material, and an equal number of other materials."""
    taus: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    """Noise levels of the candidates at which the loss is evaluated."""
    draws: int = 4
    """Noise draws at each level."""
    seed: int = 0
    """Seed of the noise and of the choice of candidates."""

    def __post_init__(self):
        if self.candidates < 4 or self.candidates % 2:
            raise UserError(f"retrieval.candidates is {self.candidates}: give an even number from 4 on")
        if not self.taus or not all(0 < tau <= 1 for tau in self.taus):
            raise UserError(f"retrieval.taus is {self.taus}: give levels above 0, where there is noise, up to 1")
        check_at_least(self, "retrieval.", draws=1, seed=0)


class Retrieved(NamedTuple):
    """Ranks for Q videos, each among M audio candidates."""

    queries: Int[np.ndarray, "Q"]
    """Numbers of the query clips."""
    candidates: Int[np.ndarray, "Q M"]
    """Numbers of the candidate clips, in random order."""
    scores: Float[np.ndarray, "Q M"]
    """Minus the flow loss of each candidate."""
    same_material: Bool[np.ndarray, "Q M"]
    """Mask of the candidates of the video's material."""

    def ranks(self) -> Int[np.ndarray, "Q"]:
        """Rank of the true audio among all candidates, from 1. The first of equal scores ranks higher."""
        return self._ranks(np.ones_like(self.same_material))

    def ranks_within_material(self) -> Int[np.ndarray, "Q"]:
        """Rank of the true audio among the candidates of the video's material alone, from 1."""
        return self._ranks(self.same_material)

    def summary(self) -> "Summary":
        """Returns the scores to report."""
        ranks, size = self.ranks(), self.candidates.shape[1]
        best = self.scores.argmax(axis=1)  # [Q]
        return Summary(
            queries=len(ranks),
            top1=float(np.mean(ranks == 1)),
            # By chance all ranks from 1 to M are equally likely.
            top1_chance=1 / size,
            reciprocal_rank=float(np.mean(1 / ranks)),
            reciprocal_rank_chance=float(np.mean(1 / np.arange(1, size + 1))),
            top1_within_material=float(np.mean(self.ranks_within_material() == 1)),
            # Half of the candidates are of the material.
            top1_within_material_chance=2 / size,
            material=float(np.mean(self.same_material[np.arange(len(best)), best])),
            material_chance=0.5,
        )

    def _ranks(self, among: Bool[np.ndarray, "Q M"]) -> Int[np.ndarray, "Q"]:
        is_true_QM = self.candidates == self.queries[:, None]
        # A stable sort leaves equal scores in the random order of the candidates: ties rank the true one by chance.
        order_QM = np.argsort(np.where(among, -self.scores, np.inf), axis=1, kind="stable")
        return np.take_along_axis(is_true_QM, order_QM, axis=1).argmax(axis=1) + 1


class Summary(NamedTuple):
    """Retrieval scores and their chance levels."""

    queries: int
    top1: float
    """Share of the videos whose own audio ranks first."""
    top1_chance: float
    reciprocal_rank: float
    """Mean of 1 / rank of the true audio."""
    reciprocal_rank_chance: float
    top1_within_material: float
    """Share of the videos whose own audio ranks first among candidates of its material."""
    top1_within_material_chance: float
    material: float
    """Share of the videos for which audio of their material ranks first."""
    material_chance: float


def retrieve(
    apply: Callable[..., Output],
    params: Any,
    modalities: dict[str, Modality],
    null_label: int,
    latents: dict[str, np.ndarray],
    material: Int[np.ndarray, "n"],
    settings: Retrieval,
    queries: Int[np.ndarray, "Q"] | None = None,
) -> Retrieved:
    """Scores audio candidates by minus their conditional flow loss, given the clean video of a query.

    A score is minus the mean of (v - (eps - x0))^2 over the elements of the audio, the levels and the noises; levels
    and noises are the same for all candidates and queries, so that differences are paired. The video's tokens are kept
    at tau = 0 and the sample has no label, as for context in sampling. Audio that is easy to denoise with any video
    scores high for every query. One query is one forward pass of `candidates` samples at each level and noise.

    Candidates of a query depend only on `settings.seed` and the number of its clip, and are drawn without replacement.

    Args:
      apply: model as (params, tokens, levels, label, assignment) -> `Output`.
      params: parameters of the model.
      modalities: modalities with `video` and `audio`; others are left out.
      null_label: label for no class.
      latents: latents of n clips, {"video": [n, ...], "audio": [n, ...]}.
      material: label of each clip, 0 or above.
      settings: settings of the retrieval.
      queries: numbers of the query clips; by default all. Candidates are drawn from all clips.

    Raises:
      UserError: if a modality or a material is missing, numbers of clips disagree, a material has too few clips for the
        candidates, or a score is not finite.
    """
    material, queries = np.asarray(material), np.arange(len(material)) if queries is None else np.asarray(queries)
    _check(modalities, latents, material, queries, settings.candidates)
    score = _scorer(apply, {VIDEO: modalities[VIDEO], AUDIO: modalities[AUDIO]}, null_label, settings)
    candidates_QM = np.stack([_candidates(material, int(query), settings) for query in queries])
    scores_QM = np.empty(candidates_QM.shape)
    with Progress("retrieve", len(queries), unit="video") as shown:
        for row, (query, candidates_M) in enumerate(zip(queries, candidates_QM)):
            scores_QM[row] = score(params, latents[VIDEO][query], latents[AUDIO][candidates_M])
            is_finite_M = np.isfinite(scores_QM[row])
            if not is_finite_M.all():
                wrong = candidates_M[int(np.argmin(is_finite_M))]
                raise UserError(
                    f"the audio of clip {wrong} with the video of clip {query} has a score that is not finite: look at "
                    "their latents and at the weights"
                )
            shown.advance()
    return Retrieved(queries, candidates_QM, scores_QM, material[candidates_QM] == material[queries][:, None])


def _check(
    modalities: dict[str, Modality],
    latents: dict[str, np.ndarray],
    material: np.ndarray,
    queries: np.ndarray,
    size: int,
) -> None:
    """Raises `UserError` unless every query has enough clips for `size` candidates."""
    for m in (VIDEO, AUDIO):
        if m not in modalities or m not in latents:
            raise UserError(f"retrieval needs {VIDEO} and {AUDIO}: {m} is missing; take a component that holds both")
        if len(latents[m]) != len(material):
            raise UserError(f"{len(latents[m])} clips of {m} and {len(material)} labels: give one label for each clip")
    if material.ndim != 1 or material.dtype.kind not in "iu" or (material < 0).any():
        raise UserError("material holds clips without a label: retrieval needs clips of one material each, 0 or above")
    if queries.ndim != 1 or not len(queries) or queries.dtype.kind not in "iu":
        raise UserError("queries is empty: give numbers of clips")
    if queries.min() < 0 or queries.max() >= len(material):
        raise UserError(f"queries go from {queries.min()} to {queries.max()}, and clips from 0 to {len(material) - 1}")
    half = size // 2
    for label in np.unique(material[queries]):
        same = int(np.sum(material == label))
        for have, what in ((same, f"of material {label}"), (len(material) - same, f"of other materials than {label}")):
            if have < half:
                raise UserError(
                    f"{have} clips are {what}, and {size} candidates need {half}: give more clips, as of a larger split"
                )


def _candidates(material: Int[np.ndarray, "n"], query: int, settings: Retrieval) -> Int[np.ndarray, "M"]:
    """Clips of the candidates of a query: itself and others of its material, then an equal number of other
    materials."""
    rng = np.random.default_rng([settings.seed, query])
    half = settings.candidates // 2
    # Half of one material, so that the right material alone does not make the right audio the first.
    alike = material == material[query]
    others = rng.choice(np.flatnonzero(~alike), half, replace=False)
    alike[query] = False
    same = rng.choice(np.flatnonzero(alike), half - 1, replace=False)
    return rng.permutation(np.concatenate([[query], same, others]))


def _scorer(
    apply: Callable[..., Output], modalities: dict[str, Modality], null_label: int, settings: Retrieval
) -> Callable[[Any, np.ndarray, np.ndarray], Float[Array, "M"]]:
    """The compiled scores [M] of parameters, the video of a query and the audio of M candidates."""
    taus = np.repeat(np.asarray(settings.taus, np.float32), settings.draws)
    key = jax.random.key(settings.seed)

    @jax.jit
    def score(params, video, candidates):
        x = to_tokens(modalities, {VIDEO: jnp.repeat(video[None], len(candidates), axis=0), AUDIO: candidates})
        context = {}
        for m, context_N in modality_context(modalities, (VIDEO,)).items():
            context[m] = jnp.broadcast_to(context_N, x[m].shape[:2])  # [M, N]
        label_B = jnp.full(len(candidates), null_label)

        def add(total_B, at):
            tau, number = at
            # All candidates and queries share the noise, so that differences of scores are paired.
            eps_1 = draw_eps(jax.random.fold_in(key, number)[None], {AUDIO: x[AUDIO][:1]})[AUDIO]
            eps = {VIDEO: jnp.zeros_like(x[VIDEO]), AUDIO: jnp.broadcast_to(eps_1, x[AUDIO].shape)}
            levels = {m: jnp.full((len(candidates), 1), tau) for m in x}
            assignment = {m: jnp.zeros(x[m].shape[:2], jnp.int32) for m in x}
            corruption = Corruption(levels, assignment, {}).with_context(context)
            noisy = corrupt(x, eps, corruption)
            velocity = apply(params, noisy, corruption.levels, label_B, corruption.assignment).velocity[AUDIO]
            error_B = jnp.mean(jnp.square(velocity - (eps[AUDIO] - x[AUDIO])), axis=(1, 2))
            return total_B + error_B, None

        # A scan needs memory for one level and noise only.
        at = (jnp.asarray(taus), jnp.arange(len(taus)))
        total_B, _ = jax.lax.scan(add, jnp.zeros(len(candidates)), at)
        return -total_B / len(taus)

    return lambda params, video, candidates: np.asarray(score(params, video, candidates))


def retrieval_rows(
    run: OpenRun,
    queries: int,
    *,
    method: str = "",
    weights: str = "ema",
    step: int | None = None,
    component: str = "",
    split: str = "test",
    data_dir: str | Path | None = None,
) -> list[Row]:
    """Runs audio retrieval with the default settings of `Retrieval`; returns two rows of the probe table.

    Candidates are drawn from the first 8 clips per query, at least 128; unreadable clips are left out. Target `audio`
    is the share of videos whose own audio ranks first, `audio's material` is the share of videos for which audio of
    their material ranks first. Layer is 0 and tau NaN.

    Args:
      run: an opened run.
      queries: number of videos.
      component: component of video and audio; by default the first one.
      method, weights, step, split, data_dir: as for `probe_run`.

    Raises:
      UserError: if no component has video and audio; if clips have no material, differ in length, or none can be read;
        and as `retrieve`.
    """
    if queries < 1:
        raise UserError(f"--retrieval is {queries}: give the number of videos, at least 1")
    clips, model = _audiovisual_clips(run, component, split, data_dir), run.model(weights, step)
    summary = _retrieve_first(clips, model, queries).summary()
    nan = float("nan")
    audio = Row(
        run=run.name,
        method=method or run.name,
        seed=run.experiment.seed.init,
        step=model.step,
        weights=weights,
        target="audio",
        source="video+audio",
        tau=nan,
        layer=0,
        probe="flow loss",
        metric="top1",
        setting=nan,
        validation=nan,
        test=summary.top1,
        low=nan,
        high=nan,
        chance=summary.top1_chance,
        split=split,
        train_n=0,
        test_n=summary.queries,
    )
    material = audio._replace(target="audio's material", test=summary.material, chance=summary.material_chance)
    return [audio, material]


def _retrieve_first(clips: ComponentClips, model: Any, queries: int) -> Retrieved:
    """Runs retrieval among the first readable clips, which are renumbered; the first `queries` are the queries."""
    count = min(len(clips), max(_MIN_CLIPS, 8 * queries))
    numbers, video, audio = [], [], []
    for number, latents in readable_and_whole(clips, range(count)):
        numbers.append(number)
        video.append(latents[VIDEO])
        audio.append(latents[AUDIO])
    return retrieve(
        model.apply,
        model.params,
        clips.modalities,
        model.null_label,
        {VIDEO: np.stack(video), AUDIO: np.stack(audio)},
        clips.labels["material"][numbers],
        Retrieval(),
        np.arange(min(queries, len(numbers))),
    )


def _audiovisual_clips(run: OpenRun, component: str, split: str, data_dir: str | Path | None) -> ComponentClips:
    """Returns clips with video, audio and material, by default of the first component with both modalities."""
    name = component
    if not name:
        both = [n for n, entry in run.experiment.mixture.items() if {VIDEO, AUDIO} <= set(entry.modalities)]
        if not both:
            raise UserError(f"{run.source} was trained on no component of video and audio: retrieval needs both")
        name = both[0]
    clips = run.data(split, name, data_dir)
    if "material" not in clips.labels:
        raise UserError(f"the clips of {name} have no label material: half of the candidates must share it")
    for m in (VIDEO, AUDIO):
        if m not in clips.modalities:
            raise UserError(f"component {name!r} has no {m}: retrieval needs a component of video and audio")
    return clips
