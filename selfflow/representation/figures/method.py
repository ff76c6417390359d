"""Figures of the method: the two views of a clip, and noise level and loss of its tokens."""

import numpy as np
from matplotlib.figure import Figure

from selfflow.errors import UserError
from selfflow.media import medium_of
from selfflow.representation.figures.strips import Strips
from selfflow.representation.views import TauMarginals, Views

_TAU = {"limits": (0.0, 1.0), "colours": "cividis"}


def corruption_figure(views: Views, i: int) -> Figure:
    """Plots clip i: data, student input and teacher input, with tau of every token.

    Args:
      views: views of a batch of clips.
      i: index of the clip.
    """
    strips = _strips(views)
    titles = []
    for m in _drawable(views):
        t_s = views.levels[m][i]
        levels = ", ".join(f"{value:.2f}" for value in t_s[:2]) + (", ..." if len(t_s) > 2 else "")
        names = "t, s" if len(t_s) == 2 else "levels"
        context = int(views.context[m][i].sum()) if m in views.context else 0
        context_text = f", {context} of {views.modalities[m].tokens} tokens context" if context else ""
        titles.append(f"{m}: {names} = {levels}, teacher at {t_s.min():.2f}{context_text}")
        _media(strips, f"{m}\n$x_0$", views, "data", m, i)
        _media(strips, "student", views, "student", m, i)
        _tokens(strips, "student's $\\tau$", views, m, views.tau[m][i], **_TAU)
        _media(strips, "teacher", views, "teacher", m, i)
        _tokens(strips, "teacher's $\\tau$", views, m, views.teacher_tau[m][i], **_TAU)
    return strips.figure("; ".join(titles))


def loss_figure(views: Views, i: int) -> Figure:
    """Plots clip i: tau, flow error and cosine with the teacher for every token except context tokens.

    Args:
      views: views of a batch of clips.
      i: index of the clip.
    """
    strips = _strips(views)
    for m in _drawable(views):

        def without_context(values: np.ndarray) -> np.ndarray:
            return np.where(views.context[m][i], np.nan, values) if m in views.context else values

        _media(strips, f"{m}\n$x_0$", views, "data", m, i)
        _tokens(strips, "$\\tau$", views, m, views.tau[m][i], **_TAU)
        _tokens(strips, "flow error", views, m, without_context(views.flow[m][i]), _limits(views.flow[m]), "magma")
        if m in views.cosine:
            _tokens(
                strips, "cosine", views, m, without_context(views.cosine[m][i]), _limits(views.cosine[m]), "viridis"
            )
    means = ", ".join(f"{name.replace('/', ' of ')} {value:.3f}" for name, value in views.loss.items())
    return strips.figure(f"loss of the batch of {len(views.ids)}: {means}")


def marginals_figure(marginals: dict[str, TauMarginals]) -> Figure:
    """Plots histograms of tau over many draws beside p(tau), and histograms of single tokens, one row per modality.

    Args:
      marginals: noise levels by modality.
    """
    figure = Figure(figsize=(10, 2.7 * len(marginals) + 0.3), layout="constrained")
    axes = figure.subplots(len(marginals), 2, squeeze=False, width_ratios=(1, 1.15))
    for (m, levels), (left, right) in zip(marginals.items(), axes):
        bins = np.linspace(0, 1, len(levels.density) + 1)
        step = {"bins": bins, "density": True, "histtype": "step", "lw": 1.5}
        left.hist(levels.tau[~levels.masked], **step, color="tab:blue", label="tokens that are not masked")
        if levels.masked.any():
            left.hist(levels.tau[levels.masked], **step, color="tab:orange", label="masked tokens")
        left.hist(levels.teacher_tau, **step, color="0.6", ls="--", label="teacher's tokens")
        left.stairs(levels.density, bins, color="black", lw=1, ls=":", label=f"p($\\tau$) of {m}")
        left.set(xlabel="$\\tau$", ylabel="density", xlim=(0, 1), title=f"{m}: over all draws")
        left.legend(fontsize=7, frameon=False)
        left.spines[["top", "right"]].set_visible(False)
        # Columns are tokens; each shows the density if all tokens have the same distribution of tau.
        density_of_tokens = np.empty((len(levels.density), levels.tau.shape[1]))
        for token, taus in enumerate(levels.tau.T):
            density_of_tokens[:, token] = np.histogram(taus, bins=bins, density=True)[0]
        most = 1.5 * levels.density.max()
        extent = (0, density_of_tokens.shape[1], 0, 1)
        image = right.imshow(
            density_of_tokens, origin="lower", aspect="auto", extent=extent, vmin=0, vmax=most, cmap="magma"
        )
        right.set(xlabel=f"token of {m}", ylabel="$\\tau$", title=f"{m}: density of each token's $\\tau$")
        figure.colorbar(image, ax=right)
    return figure


def _strips(views: Views) -> Strips:
    frames = views.media["data"]["video"].shape[1] if "video" in views.media["data"] else 12
    return Strips(frames, views.seconds)


def _drawable(views: Views) -> list[str]:
    for m in views.modalities:
        if not (medium_of(m).is_visual or medium_of(m).is_audio):
            raise UserError(f"{m}: figures of views show video and audio: take a component without {m}")
    return [m for m in ("video", "audio") if m in views.modalities]


def _media(strips: Strips, label: str, views: Views, view: str, m: str, i: int) -> None:
    if medium_of(m).preview == "strip":
        strips.video(label, views.media[view][m][i])
    else:
        strips.audio(label, views.media[view][m][i], views.rate[m])


def _tokens(
    strips: Strips, label: str, views: Views, m: str, values: np.ndarray, limits=None, colours="viridis"
) -> None:
    if medium_of(m).preview == "strip":
        strips.video_tokens(label, values, views.modalities[m].grid, limits, colours)
    else:
        strips.audio_tokens(label, values, limits, colours)


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Returns colour limits over all clips, so that figures are comparable; 2 % of the tokens saturate."""
    low, high = np.percentile(values, [1, 99])
    return float(low), float(high)
