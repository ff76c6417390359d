"""Tokens of single clips: principal components, and attention from the audio of contacts to the bodies."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from selfflow.data.dataset import ProbeTargets
from selfflow.errors import UserError
from selfflow.modality import frames_of_tokens
from selfflow.models.joint_config import JointConfig
from selfflow.representation.features.extract import seed_of
from selfflow.representation.features.forward import corrupted_at
from selfflow.representation.probes.targets import refuse_cropped
from selfflow.representation.protocols import ComponentClips, OpenRun
from selfflow.representation.views import seconds_of, whole_clips

# {block: {modality of the queries: {modality of the keys: [B, A, N, M]}}}
Attention = dict[int, dict[str, dict[str, Float[np.ndarray, "B A N M"]]]]


def principal_colours(
    features_nND: Float[np.ndarray, "n N D"], components: int = 3
) -> tuple[Float[np.ndarray, "n N components"], Float[np.ndarray, "components"]]:
    """Computes the first principal components of tokens, scaled to [0, 1] for use as colours.

    Components are computed over all tokens of all clips, so that a colour means the same in each clip. The mean over
    clips is subtracted at each position, since components would otherwise encode position, which all clips share. The
    2nd and 98th percentile of a component become 0 and 1. The sign of a component makes its largest weight positive.

    Args:
      features_nND: features of tokens.
      components: number of components, at most D.

    Returns:
      Colours, and the share of the variance of each component.

    Raises:
      UserError: fewer than 2 clips, or tokens that are all equal.
    """
    x_nND = np.asarray(features_nND, np.float64)
    if len(x_nND) < 2:
        raise UserError("principal_colours: the mean over 1 clip leaves no differences; give at least 2 clips")
    x_nND = x_nND - x_nND.mean(axis=0)
    x_MD = x_nND.reshape(-1, x_nND.shape[-1])  # all tokens of all clips
    # Eigenvalues ascend, so that the last columns are the first components.
    values_D, vectors_DD = np.linalg.eigh(x_MD.T @ x_MD)
    if values_D[-1] <= 0:
        raise UserError("principal_colours: all tokens are the same: give clips that differ")
    axes_DK = vectors_DD[:, ::-1][:, :components]
    # The sign of an eigenvector is arbitrary, and without a rule it would differ between machines.
    axes_DK = axes_DK * np.sign(axes_DK[np.abs(axes_DK).argmax(axis=0), np.arange(axes_DK.shape[1])])
    scores_MK = x_MD @ axes_DK
    low_K, high_K = np.percentile(scores_MK, [2, 98], axis=0)
    colours_MK = np.clip((scores_MK - low_K) / np.where(high_K > low_K, high_K - low_K, 1.0), 0, 1)
    return colours_MK.reshape(*x_nND.shape[:2], -1), values_D[::-1][:components] / values_D.sum()


def attention_of_clips(
    run: OpenRun,
    clips: ComponentClips,
    numbers: Iterable[int],
    layers: Iterable[int],
    tau: float = 0.1,
    *,
    weights: str = "ema",
    step: int | None = None,
    seed: int = 0,
) -> Attention:
    """Computes attention weights of blocks on clips, without labels, with all tokens at one noise level.

    The noise of a clip is the same as in `features`.

    Args:
      run: an opened run with a joint transformer, `selfflow.run.run.Run`.
      clips: clips from `run.data`.
      numbers: numbers of the clips in their split.
      layers: blocks, counted from 1.
      tau: noise level.
      weights, step: as for `Run.model`.
      seed: seed of the noise.

    Raises:
      UserError: a SiT, unknown blocks or clips, or clips shorter than those of the component.
    """
    model, layers = run.model(weights, step), tuple(sorted(set(layers)))
    if not isinstance(run.experiment.model, JointConfig):
        raise UserError(f"{run.source} has a SiT: attention between modalities needs a joint transformer")
    if not layers or not 1 <= layers[0] <= layers[-1] <= model.depth:
        raise UserError(f"layers {layers}: this model has blocks 1 to {model.depth}; give a subset")
    latents, ids = whole_clips(clips, numbers)
    modalities = tuple(clips.modalities.items())
    numbers_B = np.array([seed_of(name) for name in ids], np.uint32)
    settings = {"apply": model.apply, "modalities": modalities, "layers": layers, "null_label": model.null_label}
    return jax.device_get(
        _attention(model.params, latents, numbers_B, np.float32(tau), np.uint32(seed % 2**32), **settings)
    )


@partial(jax.jit, static_argnames=("apply", "modalities", "layers", "null_label"))
def _attention(params, latents, numbers_B, tau, seed, *, apply, modalities, layers, null_label) -> Attention:
    taus = {m: tau for m, _ in modalities}
    noisy, levels, assignment, _ = corrupted_at(dict(modalities), latents, {}, numbers_B, taus, seed)
    label_B = jnp.full(len(numbers_B), null_label)
    return apply(params, noisy, levels, label_B, assignment, attention_of=layers, stop_at=max(layers)).attention


class Contact(NamedTuple):
    """The tokens of a contact.

    Attributes:
      seconds: time of the contact.
      bodies: indices of its one or two bodies.
      audio_token: index of the audio token that contains its time.
      frames: steps of the video grid before and after it.
      tokens: indices of the video tokens of these steps, [M].
      holds: mask of the `tokens` that contain the centre of one of the bodies, [M].
      quiet: indices of the audio tokens far from any contact.
    """

    seconds: float
    bodies: tuple[int, ...]
    audio_token: int
    frames: tuple[int, ...]
    tokens: np.ndarray
    holds: np.ndarray
    quiet: np.ndarray


class ClipLayout(NamedTuple):
    """Tokens and ground truth of clips with video and audio.

    Attributes:
      grid: video tokens along (time, height, width).
      audio_tokens: number of audio tokens, which divide the clip's time evenly.
      seconds: length of a clip.
      truth: ground truth of the data set, which locates bodies in tokens.
    """

    grid: tuple[int, int, int]
    audio_tokens: int
    seconds: float
    truth: ProbeTargets


def contacts_as_tokens(record: Mapping[str, Any], layout: ClipLayout, far: float = 0.2) -> list[Contact]:
    """Returns the contacts of a Collisions clip that fall between two steps of the video grid.

    Args:
      record: raw record of the clip.
      layout: layout of its tokens.
      far: minimum distance in seconds between the centre of a quiet audio token and every contact.
    """
    grid, audio_tokens, seconds, truth = layout
    times = np.asarray(record["contacts"]["time"], np.float64)
    centres = (np.arange(audio_tokens) + 0.5) * seconds / audio_tokens
    # Start of every step of the video grid in seconds, and the end of the clip.
    bounds = frames_of_tokens(len(record["positions"]), grid[0]) * seconds / len(record["positions"])
    near = np.abs(centres[:, None] - times[None]).min(axis=1, initial=np.inf) < far
    size = grid[1] * grid[2]  # video tokens of one step
    contacts = []
    for time, pair in zip(times, np.asarray(record["contacts"]["bodies"])):
        # A contact at the time of a step belongs after it; 1e-9 is far above rounding and below a frame.
        before = int(np.searchsorted(bounds, time + 1e-9, side="right")) - 1
        audio_token = int(time / seconds * audio_tokens)
        if before + 1 >= grid[0] or audio_token >= audio_tokens:
            continue
        bodies = tuple(int(body) for body in pair if body >= 0)  # a negative index is a wall
        # One body at a time, since `of_tokens` keeps only the nearest of several bodies in a token.
        body_tokens = []
        for body in bodies:
            motion = {name: np.asarray(record[name])[:, [body]] for name in ("positions", "velocities")}
            body_tokens.append(truth.of_tokens(motion | {"count": 1}, grid).tokens)
        tokens = np.arange(before * size, (before + 2) * size)
        contact = Contact(
            seconds=float(time),
            bodies=bodies,
            audio_token=audio_token,
            frames=(before, before + 1),
            tokens=tokens,
            holds=np.isin(tokens, np.concatenate(body_tokens)),
            quiet=np.flatnonzero(~near),
        )
        contacts.append(contact)
    return contacts


class ContactAttention(NamedTuple):
    """Attention from audio to video at C contacts, by block L and head A.

    Attributes:
      clip: number of the clip of each contact, [C].
      layers: the blocks.
      on_bodies: share of the attention to the video tokens just before and after the contact that falls on tokens of
        its bodies, from the audio token that contains its time, [C, L, A].
      elsewhere: the same share for quiet audio tokens of the clip, [C, L, A]; NaN in clips without any.
      tokens: share of these video tokens that contain the bodies, which uniform attention gives them, [C].
      on_moment: share of the attention to all video tokens that falls on those just before and after the contact,
        [C, L, A].
      moment: these tokens as a share of all video tokens.
    """

    clip: np.ndarray
    layers: tuple[int, ...]
    on_bodies: np.ndarray
    elsewhere: np.ndarray
    tokens: np.ndarray
    on_moment: np.ndarray
    moment: float


def attention_on_bodies(
    run: OpenRun,
    clips: ComponentClips,
    numbers: Iterable[int],
    layers: Iterable[int],
    tau: float = 0.1,
    batch_size: int = 32,
    **options: Any,
) -> ContactAttention:
    """Computes attention from audio to the bodies in contact, compared with other tokens of the same frames.

    Args:
      run, clips, numbers, layers, tau: as for `attention_of_clips`; the clips are of Collisions, with video and audio.
      batch_size: clips per forward pass.
      **options: `weights`, `step` and `seed`, as there.

    Raises:
      UserError: as there; or if the data has no contacts, or none of these clips has one.
    """
    numbers, layers = list(numbers), tuple(sorted(set(layers)))
    layout = layout_of(run, clips)
    clip_of_contact: list[int] = []
    shares: list[_Shares] = []
    for start in range(0, len(numbers), batch_size):
        batch = numbers[start : start + batch_size]
        # The last batch repeats its first clip, so that one shape is compiled.
        filled = batch + batch[:1] * (min(batch_size, len(numbers)) - len(batch))
        attention = attention_of_clips(run, clips, filled, layers, tau, **options)
        to_video_LBANM = np.stack([attention[layer]["audio"]["video"] for layer in layers])
        for i, number in enumerate(batch):
            for contact in contacts_as_tokens(clips.record(number), layout):
                clip_of_contact.append(number)
                shares.append(_shares_at(contact, to_video_LBANM[:, i]))
    if not shares:
        raise UserError(f"none of {len(numbers)} clips has a contact between two frames: give more clips")
    # Fields of all contacts, which are the first axis C.
    on_bodies_CLA, elsewhere_CLA, tokens_C, on_moment_CLA = map(np.array, zip(*shares))
    return ContactAttention(
        clip=np.array(clip_of_contact),
        layers=layers,
        on_bodies=on_bodies_CLA,
        elsewhere=elsewhere_CLA,
        tokens=tokens_C,
        on_moment=on_moment_CLA,
        moment=2 / layout.grid[0],  # the two steps of the video grid around a contact
    )


def layout_of(run: OpenRun, clips: ComponentClips) -> ClipLayout:
    """Returns the layout of clips.

    Raises:
      UserError: the data has no ground truth, or the clips lack video or audio, or are cropped.
    """
    settings = run.experiment.data[run.experiment.mixture[clips.component].data]
    if settings.ground_truth is None or not {"video", "audio"} <= set(clips.modalities):
        raise UserError(
            f"component {clips.component!r}: attention at contacts needs video and audio of data with ground truth, "
            "such as collisions"
        )
    refuse_cropped(run, clips, "attention at contacts")
    video, audio = clips.modalities["video"], clips.modalities["audio"]
    return ClipLayout(video.grid, audio.tokens, seconds_of(clips.modalities), settings.ground_truth)


class _Shares(NamedTuple):
    """The fields of `ContactAttention` for one contact."""

    on_bodies: np.ndarray
    elsewhere: np.ndarray
    tokens: float
    on_moment: np.ndarray


def _shares_at(contact: Contact, weight_LANM: np.ndarray) -> _Shares:
    """Computes shares of the attention from audio tokens N to video tokens M of the contact's clip."""
    body_tokens, frame_tokens = contact.tokens[contact.holds], contact.tokens

    # Only frames around the contact count, so that reading the right time without the bodies has no effect.
    def on_bodies(weight_LAM: np.ndarray) -> np.ndarray:
        return weight_LAM[..., body_tokens].sum(-1) / weight_LAM[..., frame_tokens].sum(-1)

    own_LAM = weight_LANM[:, :, contact.audio_token]
    quiet_LAM = weight_LANM[:, :, contact.quiet].mean(axis=2) if len(contact.quiet) else np.full_like(own_LAM, np.nan)
    on_moment = own_LAM[..., frame_tokens].sum(-1) / own_LAM.sum(-1)
    return _Shares(on_bodies(own_LAM), on_bodies(quiet_LAM), contact.holds.mean(), on_moment)
