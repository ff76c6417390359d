"""Figures of a clip: rows of frames, spectrograms and values of tokens on one time axis."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from selfflow.modality import frames_of_tokens
from selfflow.sampling.media_files import draw_spectrogram

_WIDTH = 10.0  # inches of the time axis


class Body(NamedTuple):
    """A circle over a frame: centre (right, down) and radius as shares of the frame's side, and its body."""

    frame: int
    centre: tuple[float, float]
    radius: float
    colour: str


class Strips:
    """Rows that are added one below the other, and drawn by `figure`.

    Args:
      frames: number of frames of the clip's video; for a clip without video, any number of segments of its time axis.
      seconds: duration of the clip.
      columns: number of frames to show, at equal distances.
      start: the first frame to show.
      every: distance between shown frames; by default the columns reach the end of the clip.
    """

    def __init__(self, frames: int, seconds: float, columns: int = 12, start: int = 0, every: int | None = None):
        every = every or max(1, (frames - start) // columns)
        self.shown = list(range(start, frames, every))[: min(columns, max(1, (frames - start) // every))]
        self._frames, self._frame_seconds, self._every = frames, seconds / frames, every
        self._rows: list[tuple[str, float, Callable[[Axes], Any]]] = []

    @property
    def _span(self) -> tuple[float, float]:
        """First and last second of the time axis."""
        return self.shown[0] * self._frame_seconds, (self.shown[-1] + self._every) * self._frame_seconds

    def video(self, label: str, video: Float[np.ndarray, "T H W 3"], bodies: Iterable[Body] = ()) -> None:
        """Adds frames, uint8, with circles over them."""
        self._add(label, self._cell, lambda axis: self._draw_video(axis, video, list(bodies)))

    def audio(self, label: str, audio: Float[np.ndarray, "samples"], rate: float) -> None:
        """Adds a spectrogram of int16 samples, `rate` of them a second."""

        def draw(axis: Axes) -> None:
            draw_spectrogram(axis, audio, rate)
            axis.set_yticks([])
            axis.set_ylim(0, rate / 2000)

        self._add(label, 0.8, draw)

    def video_tokens(
        self,
        label: str,
        values: Float[np.ndarray, "N ..."],
        grid: tuple[int, int, int],
        limits: tuple[float, float] | None = None,
        colours: str = "viridis",
        over: Float[np.ndarray, "T H W 3"] | None = None,
        bodies: Iterable[Body] = (),
    ) -> None:
        """Adds a value [N], grey where it is nan, or a colour [N, 3] for each video token.

        Args:
          grid: tokens along (time, height, width).
          limits: limits of the colours; by default the minimum and maximum of the values.
          over: frames that show through.
          bodies: circles over them.
        """
        cells = values.reshape(*grid, *values.shape[1:])
        norm, bodies = self._norm(values, limits), list(bodies)

        def draw(axis: Axes) -> Any:
            image = None
            if over is not None:
                self._draw_video(axis, np.repeat(over.mean(axis=-1, keepdims=True), 3, axis=-1).astype(np.uint8), [])
            colour_map = colormaps[colours].with_extremes(bad="0.92")
            for column, frame in enumerate(self.shown):
                # A step of the grid may span several frames.
                place = int(np.searchsorted(frames_of_tokens(self._frames, grid[0]), frame, side="right")) - 1
                cell, how = cells[place], {"alpha": 0.6} if over is not None else {}
                image = axis.imshow(cell, norm=norm, cmap=colour_map, extent=self._extent(column), zorder=2, **how)
            self._circles(axis, bodies)
            return None if values.ndim > 1 else image

        self._add(label, self._cell, draw)

    def audio_tokens(
        self,
        label: str,
        values: Float[np.ndarray, "N ..."],
        limits: tuple[float, float] | None = None,
        colours: str = "viridis",
    ) -> None:
        """Adds a value [N], grey where it is nan, or a colour [N, 3] for each audio token, evenly in time."""
        norm, end = self._norm(values, limits), self._frames * self._frame_seconds

        def draw(axis: Axes) -> Any:
            colour_map = colormaps[colours].with_extremes(bad="0.92")
            image = axis.imshow(values[None], norm=norm, cmap=colour_map, extent=(0, end, 0, 1))
            return None if values.ndim > 1 else image

        self._add(label, 0.3, draw)

    def figure(self, title: str, moment: float | None = None) -> Figure:
        """Draws all rows, and a line at a moment in seconds through the rows of audio and tokens."""
        heights = [height for _, height, _ in self._rows]
        figure = Figure(figsize=(_WIDTH + 1.6, sum(heights) + 0.06 * len(heights) + 0.8), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.02, w_pad=0.04, hspace=0.0, wspace=0.0)
        figure.suptitle(title, fontsize=11)
        grid = figure.subplots(len(heights), 2, squeeze=False, height_ratios=heights, width_ratios=(1, 0.012))
        for (label, _, draw), (axis, side) in zip(self._rows, grid):
            image = draw(axis)
            axis.set_aspect("auto")
            axis.set_xlim(*self._span)
            axis.set_yticks([])
            axis.tick_params(labelsize=7)
            axis.set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
            if axis is not grid[-1, 0]:
                axis.set_xticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if moment is not None:
                axis.axvline(moment, color="tab:red", lw=1, zorder=3)
            if image is None:
                side.set_axis_off()
            else:
                figure.colorbar(image, cax=side).ax.tick_params(labelsize=6)
        grid[-1, 0].set_xlabel("seconds", fontsize=8)
        return figure

    @property
    def _cell(self) -> float:
        return _WIDTH / len(self.shown)

    def _add(self, label: str, height: float, draw: Callable[[Axes], Any]) -> None:
        self._rows.append((label, height, draw))

    def _extent(self, column: int) -> tuple[float, float, float, float]:
        # In seconds, so that frames and audio share the axis, with a gap of 2 % at either side.
        wide = self._every * self._frame_seconds
        left = self._span[0] + column * wide
        return left + 0.02 * wide, left + 0.98 * wide, 0.0, 1.0

    def _draw_video(self, axis: Axes, video: np.ndarray, bodies: list[Body]) -> None:
        for column, frame in enumerate(self.shown):
            axis.imshow(video[frame], interpolation="nearest", extent=self._extent(column))
        self._circles(axis, bodies)

    def _circles(self, axis: Axes, bodies: list[Body]) -> None:
        from matplotlib.patches import Ellipse

        for body in bodies:
            if body.frame in self.shown:
                left, right, _, _ = self._extent(self.shown.index(body.frame))
                centre = left + body.centre[0] * (right - left), 1 - body.centre[1]
                size = 2 * body.radius * (right - left), 2 * body.radius
                axis.add_patch(Ellipse(centre, *size, fill=False, ec=body.colour, lw=1.4, zorder=4))

    def _norm(self, values: np.ndarray, limits: tuple[float, float] | None) -> Normalize | None:
        if values.ndim > 1:
            return None
        return Normalize(*(limits or (float(np.nanmin(values)), float(np.nanmax(values)))))
