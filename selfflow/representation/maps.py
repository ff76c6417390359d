"""What single tokens of a clip know and look at: principal components of tokens, attention from sounds to bodies."""

from collections.abc import Iterable
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
from selfflow.representation.views import seconds_of, whole_clips

# {block: {whose tokens attend: {whose are attended to: [B, A, N, M]}}}
Attention = dict[int, dict[str, dict[str, Float[np.ndarray, "B A N M"]]]]


def principal_colours(
    features_nND: Float[np.ndarray, "n N D"], components: int = 3
) -> tuple[Float[np.ndarray, "n N components"], Float[np.ndarray, "components"]]:
    """The first principal components of the tokens of clips, scaled to [0, 1] for use as colours.

    Components are those of all tokens of all clips together, so that a colour means the same in each, after the mean
    over clips is taken out at each position: else they may tell where a token stands, which all clips share. The 2nd
    and 98th percentile of a component become 0 and 1. A component's sign is free: it is chosen so that the largest
    weight is positive.

    Args:
      features_nND: of tokens.
      components: how many, at most D.

    Returns:
      The colours, and the share of the variance that each component has.

    Raises:
      UserError: fewer than 2 clips, or tokens that do not differ.
    """
    x_nND = np.asarray(features_nND, np.float64)
    if len(x_nND) < 2:
        raise UserError("principal_colours: 1 clip has no other to take the mean of its positions with; give more")
    x_nND = x_nND - x_nND.mean(axis=0)
    flat = x_nND.reshape(-1, x_nND.shape[-1])
    values, vectors = np.linalg.eigh(flat.T @ flat)
    if values[-1] <= 0:
        raise UserError("principal_colours: all tokens are the same, and have no components")
    chosen = vectors[:, ::-1][:, :components]
    chosen = chosen * np.sign(chosen[np.abs(chosen).argmax(axis=0), np.arange(chosen.shape[1])])
    scores = flat @ chosen
    low, high = np.percentile(scores, [2, 98], axis=0)
    colours = np.clip((scores - low) / np.where(high > low, high - low, 1.0), 0, 1)
    return colours.reshape(*x_nND.shape[:2], -1), values[::-1][:components] / values.sum()


def attention_of_clips(
    run: Any,
    clips: Any,
    numbers: Iterable[int],
    layers: Iterable[int],
    tau: float = 0.1,
    *,
    weights: str = "ema",
    step: int | None = None,
    seed: int = 0,
) -> Attention:
    """Attention weights of blocks on clips, without a label, with all tokens at one noise level.

    The noise of a clip is that which `features` gives it.

    Args:
      run: an opened run with a joint transformer, `selfflow.run.run.Run`.
      clips: as `run.data` gives them.
      numbers: which.
      layers: blocks, counted from 1.
      tau: noise level.
      weights, step: as for `Run.model`.
      seed: of the noise.

    Raises:
      UserError: for a SiT, blocks or clips that there are not, or clips that are shorter than the component has them.
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
    """A contact that is heard, as tokens.

    Attributes:
      seconds: when.
      bodies: which, one or two of the clip's.
      sound: the audio token in whose time it falls.
      frames: times of the video grid before and after it.
      tokens: video tokens of these times, [M].
      holds: which of them hold the centre of one of the bodies, [M].
      quiet: audio tokens that lie far from any contact.
    """

    seconds: float
    bodies: tuple[int, ...]
    sound: int
    frames: tuple[int, ...]
    tokens: np.ndarray
    holds: np.ndarray
    quiet: np.ndarray


def contacts_as_tokens(
    record: Any, grid: tuple[int, int, int], sounds: int, seconds: float, truth: ProbeTargets, far: float = 0.2
) -> list[Contact]:
    """The contacts of a clip of Collisions that fall between two times of the video grid.

    Args:
      record: a clip.
      grid: video tokens along (time, height, width).
      sounds: number of audio tokens, which share the clip's time evenly.
      seconds: how long the clip lasts.
      truth: ground truth of the data set, which locates bodies in tokens.
      far: audio tokens whose centre is at least so many seconds from every contact are quiet.
    """
    times = np.asarray(record["contacts"]["time"], np.float64)
    middles = (np.arange(sounds) + 0.5) * seconds / sounds
    bounds = frames_of_tokens(len(record["positions"]), grid[0]) * seconds / len(record["positions"])
    near = np.abs(middles[:, None] - times[None]).min(axis=1, initial=np.inf) < far
    contacts = []
    for time, pair in zip(times, np.asarray(record["contacts"]["bodies"])):
        before = int(np.searchsorted(bounds, time + 1e-9, side="right")) - 1
        sound = int(time / seconds * sounds)
        if before + 1 >= grid[0] or sound >= sounds:
            continue
        bodies = tuple(int(body) for body in pair if body >= 0)  # below 0 is the wall
        alone = {name: np.asarray(record[name])[:, list(bodies)] for name in ("positions", "velocities")}
        # One by one: for several bodies in a token only the nearest is recorded.
        one = lambda i: {name: values[:, i : i + 1] for name, values in alone.items()} | {"count": 1}
        body_tokens = np.concatenate([truth.of_tokens(one(i), grid).tokens for i in range(len(bodies))])
        size = grid[1] * grid[2]
        tokens = np.arange(before * size, (before + 2) * size)
        place = float(time), bodies, sound, (before, before + 1)
        contacts.append(Contact(*place, tokens, np.isin(tokens, body_tokens), np.flatnonzero(~near)))
    return contacts


class ContactAttention(NamedTuple):
    """Where sounds look at the moment of C contacts, by block L and head A.

    Attributes:
      clip: number of the clip of each contact, [C].
      layers: the blocks.
      on_bodies: of the attention to the video tokens just before and after the contact, from the audio token in whose
        time it falls, the share on tokens that hold its bodies, [C, L, A].
      elsewhere: the same share of the attention from quiet audio tokens of the clip, to the same video tokens; nan in
        clips without any.
      tokens: what part of these video tokens hold the bodies: the share of attention that prefers nothing, [C].
      on_moment: of the attention to all video tokens the share on those just before and after the contact, [C, L, A].
      moment: what part of all video tokens these are.
    """

    clip: np.ndarray
    layers: tuple[int, ...]
    on_bodies: np.ndarray
    elsewhere: np.ndarray
    tokens: np.ndarray
    on_moment: np.ndarray
    moment: float


def attention_on_bodies(
    run: Any, clips: Any, numbers: Iterable[int], layers: Iterable[int], tau: float = 0.1, batch_size: int = 32, **more
) -> ContactAttention:
    """Attention from audio to the bodies in contact, compared with other tokens of the same frames.

    Args:
      run, clips, numbers, layers, tau: as for `attention_of_clips`; the clips are of Collisions, with video and audio.
      batch_size: clips at once.
      **more: `weights`, `step` and `seed`, as there.

    Raises:
      UserError: as there, and if clips are no such clips, or have no contact.
    """
    numbers, layers = list(numbers), tuple(sorted(set(layers)))
    grid, sounds, seconds, truth = layout_of(run, clips)
    rows = []
    for start in range(0, len(numbers), batch_size):
        batch = numbers[start : start + batch_size]
        filled = batch + batch[:1] * (min(batch_size, len(numbers)) - len(batch))  # one shape to compile
        attention = attention_of_clips(run, clips, filled, layers, tau, **more)
        to_video_LBANM = np.stack([attention[layer]["audio"]["video"] for layer in layers])
        for i, number in enumerate(batch):
            weight_LANM = to_video_LBANM[:, i]
            for contact in contacts_as_tokens(clips.record(number), grid, sounds, seconds, truth):
                rows.append((number, *_shares(weight_LANM, contact)))
    if not rows:
        raise UserError(f"none of {len(numbers)} clips has a contact between two frames: give more clips")
    clip, on_bodies, elsewhere, tokens, on_moment = (np.array(column) for column in zip(*rows))
    return ContactAttention(clip, layers, on_bodies, elsewhere, tokens, on_moment, 2 / grid[0])


def layout_of(run: Any, clips: Any) -> tuple[tuple[int, int, int], int, float, ProbeTargets]:
    """The grid of video tokens, the number of audio tokens, the seconds of a clip, and its ground truth.

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
    return video.grid, audio.tokens, seconds_of(clips.modalities), settings.ground_truth


def _shares(weight_LANM: np.ndarray, contact: Contact) -> tuple:
    held, around = contact.tokens[contact.holds], contact.tokens
    share = lambda w_LAM: w_LAM[..., held].sum(-1) / w_LAM[..., around].sum(-1)
    own_LAM = weight_LANM[:, :, contact.sound]
    quiet_LAM = weight_LANM[:, :, contact.quiet].mean(axis=2) if len(contact.quiet) else np.full_like(own_LAM, np.nan)
    moment = own_LAM[..., around].sum(-1) / own_LAM.sum(-1)
    return share(own_LAM), share(quiet_LAM), contact.holds.mean(), moment
