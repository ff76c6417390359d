"""Figures of tokens: principal components, and attention from audio to video at contacts."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfflow.errors import UserError
from selfflow.media import medium_of
from selfflow.representation.features.extract import Features
from selfflow.representation.figures.layers import draw_means
from selfflow.representation.figures.strips import Body, Strips
from selfflow.representation.maps import (
    Contact,
    ContactAttention,
    attention_of_clips,
    contacts_as_tokens,
    layout_of,
    principal_colours,
)
from selfflow.representation.protocols import ComponentClips, OpenRun
from selfflow.representation.statistics import interval
from selfflow.representation.views import seconds_of


def principal_figure(clips: ComponentClips, components: Features, i: int) -> Figure:
    """Plots clip i and the first three principal components of its tokens as red, green and blue, one row per block.

    Args:
      clips: clips from `run.data`, with raw records.
      components: features of all tokens of these clips (`pool="tokens"`), whose components are computed jointly.
      i: index of the clip to show.
    """
    record = clips.record(clips.ids.index(components.ids[i]))
    strips = Strips(len(record["video"]), seconds_of(clips.modalities))
    for m in components.grids:
        if medium_of(m).preview == "strip":
            strips.video(m, record[m])
        elif medium_of(m).preview == "spectrogram":
            strips.audio(m, record[m], len(record[m]) / seconds_of(clips.modalities))
        elif medium_of(m).has_time:
            raise UserError(f"{m}: figures of tokens show image, video and audio: leave out {m}")
        for layer, taps in components.layers.items():
            colours, shares = principal_colours(taps[m])
            label = f"block {layer}\n{shares.sum():.0%}"
            if medium_of(m).preview == "strip":
                strips.video_tokens(label, colours[i], components.grids[m])
            elif medium_of(m).has_time:
                strips.audio_tokens(label, colours[i])
    level = ", ".join(f"$\\tau$ of {m} {tau:g}" for m, tau in components.tau.items())
    return strips.figure(f"{components.ids[i]}: three components of tokens and their share of the variance, {level}")


def attention_figure(
    run: OpenRun, clips: ComponentClips, number: int, contact: int, layers: tuple[int, ...], **options: Any
) -> Figure:
    """Plots attention from the audio token of a contact to all video tokens over the frames, one row per block.

    Weights are means over heads, as multiples of a uniform share; colours saturate at the 95th percentile. Circles are
    the true positions of the bodies, red for bodies in contact. The red line is the time of the contact.

    Args:
      run, clips: as for `attention_of_clips`, with clips of Collisions.
      number: number of the clip.
      contact: index of the contact in the clip.
      layers: blocks.
      **options: `tau`, `weights`, `step` and `seed`, as there.

    Raises:
      UserError: as there.
    """
    layout = layout_of(run, clips)
    grid, truth = layout.grid, layout.truth
    record = clips.record(number)
    contacts = contacts_as_tokens(record, layout)
    touched = _contact(contacts, contact, clips.ids[number])
    weights = attention_of_clips(run, clips, [number], layers, **options)
    frames = len(record["video"])
    # Ten frames from the fourth before the contact on.
    first = max(0, min(touched.frames[0] * frames // grid[0] - 4, frames - 10))
    strips = Strips(frames, layout.seconds, columns=10, start=first, every=1)
    bodies = []
    for body in range(int(record["count"])):
        colour = "tab:red" if body in touched.bodies else "white"
        radius = float(record["radii"][body]) / truth.box
        for frame in range(frames):
            bodies.append(Body(frame, tuple(record["positions"][frame, body] / truth.box), radius, colour))
    strips.video("video", record["video"], bodies)
    for layer in layers:
        # Weights [B, A, N, M] of one clip and one audio token, averaged over heads.
        to_video_M = weights[layer]["audio"]["video"][0, :, touched.audio_token].mean(axis=0)
        multiple_M = to_video_M / to_video_M.mean()
        limits = (0.0, max(2.0, float(np.percentile(multiple_M, 95))))
        strips.video_tokens(f"block {layer}", multiple_M, grid, limits, "inferno", record["video"], bodies)
    strips.audio("audio", record["audio"], len(record["audio"]) / layout.seconds)
    strips.audio_tokens("query", np.arange(layout.audio_tokens) == touched.audio_token, (0.0, 1.0), "Reds")
    what = "two bodies" if len(touched.bodies) > 1 else "a body and a wall"
    return strips.figure(
        f"{clips.ids[number]}: attention of the audio at {touched.seconds:.2f} s, when {what} touch, to the video",
        touched.seconds,
    )


def shares_figure(trained: ContactAttention, untrained: ContactAttention) -> Figure:
    """Plots shares of attention by block, with 95 % intervals over clips, beside the shares of uniform attention.

    Shares are averaged over the contacts of a clip, then over clips. Clips without a quiet moment are left out, unless
    no clip has one, so that all lines show the same clips.

    Left: share of the attention to the frames around a contact that falls on its bodies. Middle: share of the attention
      to the whole video that falls on these frames. Right: share on bodies by head, as a multiple of their share of
      tokens.

    Args:
      trained: attention shares of a run.
      untrained: attention shares of the same clips by the network before training.
    """
    trained, untrained = _with_quiet_moments(trained), _with_quiet_moments(untrained)
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    # Shares [C, L, A] are means over heads A in the lines, and by head on the right.
    _line(left, trained, trained.on_bodies.mean(axis=2), "tab:red", "from the audio of the contact")
    _line(left, trained, trained.elsewhere.mean(axis=2), "tab:blue", "from quiet times of the clip")
    _line(left, untrained, untrained.on_bodies.mean(axis=2), "0.6", "from the audio of the contact, untrained")
    even = np.mean(_by_clip(trained, trained.tokens))
    left.axhline(even, color="0.4", lw=1, ls=":", label="their share of the tokens")
    left.set(ylabel="share of attention")
    left.set_title("on its bodies, in the frames around it", fontsize=10)
    _line(middle, trained, trained.on_moment.mean(axis=2), "tab:red", "from the audio of the contact")
    _line(middle, untrained, untrained.on_moment.mean(axis=2), "0.6", "from the audio of the contact, untrained")
    middle.axhline(trained.moment, color="0.4", lw=1, ls=":", label="their share of the frames")
    middle.set(ylabel="share of attention")
    middle.set_title("on the frames around it, in the video", fontsize=10)
    for axis in (left, middle):
        axis.set(xlabel="block", xticks=trained.layers)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))
        axis.spines[["top", "right"]].set_visible(False)
    _, layers, heads = trained.on_bodies.shape
    multiple_AL = np.empty((heads, layers))
    for head, layer in np.ndindex(heads, layers):
        multiple_AL[head, layer] = np.mean(_by_clip(trained, trained.on_bodies[:, layer, head])) / even
    # Centred on 1, so that white is uniform attention.
    spread = max(0.1, float(np.abs(multiple_AL - 1).max()))
    image = right.imshow(multiple_AL, aspect="auto", cmap="RdBu_r", vmin=1 - spread, vmax=1 + spread)
    right.set(xlabel="block", ylabel="head")
    right.set_title("on its bodies, over their share of tokens", fontsize=10)
    right.set_xticks(range(len(trained.layers)), trained.layers)
    right.set_yticks(range(heads), range(1, heads + 1))
    for (head, layer), value in np.ndenumerate(multiple_AL):
        right.text(layer, head, f"{value:.2f}", ha="center", va="center", fontsize=7)
    figure.colorbar(image, ax=right)
    return figure


def shares_table(shares: ContactAttention) -> str:
    """Formats shares on bodies by block as a table: at contacts, at quiet moments, and their difference."""
    shares = _with_quiet_moments(shares)
    clips = len(np.unique(shares.clip))
    even = interval(_by_clip(shares, shares.tokens)).estimate
    lines = [
        f"{len(shares.clip)} contacts in {clips} clips; mean over clips [95 % interval]",
        f"share of tokens that hold the bodies: {even:.3f}",
        "block   on the bodies           from quiet times      difference               on the moment "
        f"({shares.moment:.3f} is even)",
    ]
    for i, layer in enumerate(shares.layers):
        # Means over heads, [C].
        own, quiet = shares.on_bodies[:, i].mean(axis=1), shares.elsewhere[:, i].mean(axis=1)
        columns = [own, quiet, own - quiet, shares.on_moment[:, i].mean(axis=1)]
        lines.append(f"{layer:>5}   " + "   ".join(f"{_shown(shares, column):<21}" for column in columns))
    return "\n".join(lines)


def _contact(contacts: list[Contact], which: int, name: str) -> Contact:
    if not 0 <= which < len(contacts):
        raise UserError(f"contact {which}: {name} has {len(contacts)}, counted from 0; take another clip or contact")
    return contacts[which]


def _with_quiet_moments(shares: ContactAttention) -> ContactAttention:
    """Returns the contacts of clips with quiet moments; all contacts if no clip has any."""
    kept = np.isfinite(shares.elsewhere).all(axis=(1, 2))
    if not kept.any():
        return shares
    return shares._replace(
        clip=shares.clip[kept],
        on_bodies=shares.on_bodies[kept],
        elsewhere=shares.elsewhere[kept],
        tokens=shares.tokens[kept],
        on_moment=shares.on_moment[kept],
    )


def _by_clip(shares: ContactAttention, values: np.ndarray) -> list[float]:
    """Averages values per clip, since contacts of one clip are not independent; clips with NaN are left out."""
    means = []
    for clip in np.unique(shares.clip):
        mean = float(np.mean(values[shares.clip == clip]))
        if np.isfinite(mean):
            means.append(mean)
    return means


def _line(axis: Axes, shares: ContactAttention, values_CL: np.ndarray, colour: str, label: str) -> None:
    """Draws means over clips against blocks; no line if a block has no clip with a value."""
    means = []
    for values_C in values_CL.T:
        by_clip = _by_clip(shares, values_C)
        if not by_clip:
            return
        means.append(interval(by_clip))
    draw_means(axis, shares.layers, means, colour, label)


def _shown(shares: ContactAttention, values: np.ndarray) -> str:
    means = _by_clip(shares, values)
    if not means:
        return "none"
    mean = interval(means)
    return f"{mean.estimate:.3f}" + ("" if mean.low is None else f" [{mean.low:.3f}, {mean.high:.3f}]")
