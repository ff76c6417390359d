"""A training step on clips: inputs of student and teacher, and the loss of every token."""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.modality import Modality, modality_of, to_tokens
from selfflow.noise import Corruption, UniformTau, corrupt, draw_eps
from selfflow.objectives.self_flow import SelfFlowObjective, require_self_flow
from selfflow.representation.protocols import ComponentClips, OpenRun


class Views(NamedTuple):
    """Clips as inputs of the training step.

    Attributes:
      ids: ids of the clips.
      modalities: the streams of the clips.
      seconds: length of a clip.
      media: decoded latents, {"data", "student" or "teacher": {modality: [B, ...]}}: clean, at the student's mixed
        noise levels, at the teacher's lower level.
      rate: frames or audio samples a second, by modality.
      levels: the levels drawn for each clip, without that of the context, {modality: [B, K]}.
      tau, teacher_tau: the noise level of every token, {modality: [B, N]}.
      flow: mean over a token's elements of (v - (eps - x0))^2, {modality: [B, N]}.
      cosine: cosine of the student's projected features and the teacher's, {modality: [B, N]}; empty without alignment.
      context: tokens at tau = 0, which are excluded from the loss, {modality: [B, N]}.
      loss: L_flow and L_rep of each modality, means over the tokens of the batch that count, and "total", their
        weighted sum.
    """

    ids: list[str]
    modalities: dict[str, Modality]
    seconds: float
    media: dict[str, dict[str, np.ndarray]]
    rate: dict[str, float]
    levels: dict[str, np.ndarray]
    tau: dict[str, np.ndarray]
    teacher_tau: dict[str, np.ndarray]
    flow: dict[str, np.ndarray]
    cosine: dict[str, np.ndarray]
    context: dict[str, np.ndarray]
    loss: dict[str, float]


def views(
    run: OpenRun,
    clips: ComponentClips,
    numbers: Iterable[int],
    seed: int = 0,
    context: bool = False,
    step: int | None = None,
) -> Views:
    """Draws noise for clips as training does, and runs student and teacher on them with the run's own weights.

    Args:
      run: an opened run, `selfflow.run.run.Run`.
      clips: clips from `run.data`.
      numbers: numbers of the clips in their split.
      seed: seed of the noise, levels and context.
      context: whether context is drawn by the run's schedule.
      step: step of the weights; by default the newest.

    Raises:
      UserError: as `whole_clips`; or if the clips have neither video nor audio, or the objective is not a
        `SelfFlowObjective`.
    """
    objective = require_self_flow(run.objective, "a view of a training step")
    numbers, modalities = list(numbers), dict(clips.modalities)
    seconds = seconds_of(modalities)
    latents, ids = whole_clips(clips, numbers)
    if not context:
        objective = dataclasses.replace(objective, schedule=dataclasses.replace(objective.schedule, context={}))
    label = clips.labels.get(run.experiment.label, np.full(len(clips), -1))[numbers]
    batch = {"latents": latents, "label": label, "weight": np.ones(len(ids), np.float32)}
    if objective.alignment.target_encoders.keys() & modalities.keys():
        features = [clips.features(i) for i in numbers]
        batch["features"] = {m: np.stack([each[m] for each in features]) for m in features[0]}
    keys_B = jax.random.split(jax.random.key(seed), len(ids))
    computed = jax.device_get(_training_step(objective, modalities, run.weights(step), batch, keys_B))
    corruption = computed.student
    student_taus, teacher_taus = corruption.tau(), computed.teacher.tau()
    media = {view: _decoded(run, modalities, tokens) for view, tokens in computed.tokens.items()}
    rate, levels, tau, teacher_tau, loss = {}, {}, {}, {}, {}
    for m, levels_BK in corruption.levels.items():
        rate[m] = media["data"][m].shape[1] / seconds
        # The level of the context is the last one.
        levels[m] = levels_BK[:, :-1] if m in corruption.context else levels_BK
        tau[m], teacher_tau[m] = np.asarray(student_taus[m]), np.asarray(teacher_taus[m])
        loss[f"flow/{m}"] = float(computed.flow[m])
    for m, alignment in computed.alignment.items():
        loss[f"alignment/{m}"] = float(alignment)
    loss["total"] = float(_total(objective, computed.flow, computed.alignment, computed.gamma))
    return Views(
        ids=ids,
        modalities=modalities,
        seconds=seconds,
        media=media,
        rate=rate,
        levels=levels,
        tau=tau,
        teacher_tau=teacher_tau,
        flow=computed.flow_error,
        cosine={m: 1 - error_BN for m, error_BN in computed.alignment_error.items()},
        context=dict(corruption.context),
        loss=loss,
    )


class _Step(NamedTuple):
    """The draws and results of a training step.

    Attributes:
      student, teacher: corruption of their inputs.
      tokens: {"data", "student" or "teacher": {modality: [B, N, P]}}.
      flow_error, alignment_error: errors of every token, {modality: [B, N]}.
      flow, alignment: their means over the tokens that count, by modality.
      gamma: weight of the alignment.
    """

    student: Corruption
    teacher: Corruption
    tokens: dict[str, dict[str, jax.Array]]
    flow_error: dict[str, jax.Array]
    alignment_error: dict[str, jax.Array]
    flow: dict[str, jax.Array]
    alignment: dict[str, jax.Array]
    gamma: jax.Array


def _training_step(
    objective: SelfFlowObjective, modalities: dict[str, Modality], state: Any, batch: dict[str, Any], keys_B: jax.Array
) -> _Step:
    """Runs the forward pass of the training step with a state's weights and the noise of `keys_B`."""

    @jax.jit
    def compute(params, frozen, batch) -> _Step:
        draw = objective.draw(keys_B, batch, state.step)
        terms = objective.terms(params, frozen, batch, keys_B, draw)
        x = to_tokens(modalities, batch["latents"])
        eps, student = draw_eps(keys_B, x), draw.student.corruption
        # Without alignment there is no teacher; its input is shown as Self-Flow would draw it.
        teacher = draw.teacher.corruption if draw.teacher else student.at_min_level()
        tokens = {"data": x, "student": corrupt(x, eps, student), "teacher": corrupt(x, eps, teacher)}
        # The weights of the tokens that count sum to 1.
        flow = {m: jnp.sum(error_BN * draw.weight[m]) for m, error_BN in terms.flow.items()}
        alignment = {m: jnp.sum(error_BN * draw.aligned[m]) for m, error_BN in terms.aligned.items()}
        # Gamma is the same for all samples.
        return _Step(student, teacher, tokens, terms.flow, terms.aligned, flow, alignment, draw.gamma[0])

    return compute(state.params, state.frozen, batch)


def _decoded(run: OpenRun, modalities: dict[str, Modality], tokens: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Decodes tokens {modality: [B, N, P]} to media with the run's autoencoders."""
    media = {}
    for m, x_BNP in tokens.items():
        media[m] = run.autoencoder(m).decode(np.asarray(modalities[m].from_tokens(x_BNP)))
    return media


def _total(objective: SelfFlowObjective, flow: dict[str, float], alignment: dict[str, float], gamma: float) -> float:
    """L = sum over modalities of w_m (L_flow + gamma L_rep)."""
    return sum(objective.modality_weight.get(m, 1.0) * (flow[m] + gamma * alignment.get(m, 0.0)) for m in flow)


def whole_clips(clips: ComponentClips, numbers: Iterable[int]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads latents of clips as one array per modality, and their ids.

    Raises:
      UserError: an unknown number, or a clip that is unreadable or shorter than the component's clips.
    """
    ids: list[str] = []
    latents: dict[str, list[np.ndarray]] = {}
    for i in numbers:
        if not 0 <= i < len(clips):
            raise UserError(f"there is no clip {i}: the {clips.split} split has 0 to {len(clips) - 1}")
        try:
            latents_of_clip = clips.latents(i)
        except BadRecord as error:
            raise UserError(f"clip {i}, {clips.ids[i]!r}, cannot be read ({error}): take another") from error
        for m, shape in clips.shapes.items():
            x = latents_of_clip[m]
            if x.shape != shape:
                raise UserError(f"clip {i} is shorter than the component has them ({m} {x.shape}): take another")
            latents.setdefault(m, []).append(x)
        ids.append(clips.ids[i])
    return {m: np.stack(of_clips) for m, of_clips in latents.items()}, ids


def seconds_of(modalities: dict[str, Modality]) -> float:
    """Returns the length in seconds of clips of these streams.

    Raises:
      UserError: if no stream has a time axis.
    """
    # Periods and offsets are in units of 10 ms.
    lengths = [(x.latent[0] * x.period + x.offset[0]) / 100 for x in modalities.values() if x.period]
    if not lengths:
        raise UserError(
            f"component of {', '.join(modalities)}: figures of clips need video or audio; take another component"
        )
    return max(lengths)


class TauMarginals(NamedTuple):
    """Noise levels of tokens over many draws of a schedule.

    Attributes:
      tau: noise level of every token, [draws, N].
      teacher_tau: noise level of all tokens of the teacher, [draws].
      masked: whether a token is masked, [draws, N]; all False for a schedule without a mask.
      density: p(tau) in equal bins of [0, 1].
    """

    tau: Float[np.ndarray, "draws N"]
    teacher_tau: Float[np.ndarray, "draws"]
    masked: Float[np.ndarray, "draws N"]
    density: Float[np.ndarray, "bins"]


def tau_marginals(
    schedule: Any, modality: str, tokens: int, draws: int = 4096, bins: int = 25, seed: int = 0
) -> TauMarginals:
    """Draws noise levels of a schedule for the tokens of a modality, without context.

    Args:
      schedule: schedule of the run, `selfflow.noise.Schedule`.
      modality: name of the stream.
      tokens: number of its tokens, N.
      draws: number of samples.
      bins: number of bins of the density.
      seed: seed of the draws.
    """
    corruption = schedule.sample(jax.random.split(jax.random.key(seed), draws), {modality: tokens})
    taus, lowest = corruption.tau()[modality], corruption.levels[modality].min(axis=1)
    p = schedule.tau.get(modality_of(modality), UniformTau())
    # The density of quantiles at equally spaced probabilities is p(tau), for any form of p.
    quantiles = np.asarray(p.quantile((jnp.arange(200_000) + 0.5) / 200_000))
    density = np.histogram(quantiles, bins=bins, range=(0, 1), density=True)[0]
    # Level 1 is the mask in schedules with a mask; under diffusion forcing it is the level of the second token.
    masked = (np.asarray(corruption.assignment[modality]) == 1) & hasattr(schedule, "mask_ratio")
    return TauMarginals(np.asarray(taus), np.asarray(lowest), masked, density)
