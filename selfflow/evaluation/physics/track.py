"""Tracking of bodies from pixels alone.

The background is known and each body has one saturated colour, so that the colour of a pixel gives the body that
covers it and the covered share: centres are coverage-weighted means, accurate to a fraction of a pixel.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from selfflow.data.collisions import Collisions
from selfflow.data.collisions.render import BACKGROUND
from selfflow.errors import UserError
from selfflow.evaluation.physics.segment import find_colours, segment

_MAX_BODIES = 12  # mean number of blobs in a frame; more are noise


class Tracks(NamedTuple):
    """The K tracked bodies of a clip; positions in units, x to the right and y down."""

    positions: np.ndarray
    """Centres, float64 [T, K, 2]; NaN where a body is not visible."""
    areas: np.ndarray
    """Covered area, units^2, float64 [T, K]; NaN where a body is not visible."""
    colours: np.ndarray
    """Red, green, blue, 0 to 1, float64 [K, 3]."""
    reach: np.ndarray
    """Extent of a body from its centre to the left, right, up and down, units, float64 [K, 4]."""
    radii: np.ndarray
    """Radius of the circumscribed circle, units, float64 [K]."""
    count: np.ndarray
    """Bodies visible in each frame, int [T]."""

    @property
    def masses(self) -> np.ndarray:
        """Mass of each body, the median of its area, units^2, float64 [K]; NaN if it is never visible."""
        masses = np.full(self.areas.shape[1], np.nan)
        for body, areas in enumerate(self.areas.T):
            visible = areas[np.isfinite(areas)]
            if len(visible):
                masses[body] = np.median(visible)
        return masses


class _Blobs(NamedTuple):
    """M connected patches, each of one colour in one frame."""

    frame: np.ndarray
    """Frame of each patch, int [M]."""
    colour: np.ndarray
    """Index of the palette, int [M]."""
    area: np.ndarray
    """Area in pixels, float64 [M]."""
    centre: np.ndarray
    """Centre in pixels, float64 [M, 2]."""
    shade: np.ndarray
    """Red, green, blue minus the background, float64 [M, 3]."""


class _Path(NamedTuple):
    """One body over the frames of a clip, in pixels."""

    centre: np.ndarray
    """Centres, float64 [T, 2]; NaN where the body is not visible."""
    area: np.ndarray
    """Areas, float64 [T]; NaN where the body is not visible."""
    blob: np.ndarray
    """Index of its blob in each frame, int [T]; -1 for none."""


def track(video: np.ndarray, settings: Collisions) -> Tracks:
    """Tracks the bodies of one clip. A video that shows no bodies gives K = 0.

    Args:
      video: uint8 [T, H, W, 3]; the box of `settings` fills the frame.
      settings: settings of the data set.

    Raises:
      UserError: `video` is not a uint8 video of square frames.
    """
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or video.shape[1] != video.shape[2]:
        raise UserError(f"video of {video.dtype} {list(video.shape)}: give uint8 [T, size, size, 3]")
    frames, size = video.shape[:2]
    if not video.size:
        return _no_tracks(frames)
    unit = settings.box / size
    light = video.astype(np.float32) / 255 - np.asarray(BACKGROUND, np.float32)

    # A lit share above that of the largest number of the largest bodies is noise or a blank frame.
    max_area = 1.2 * max(settings.bodies[1], settings.shifted_bodies[1]) * np.pi
    max_area *= max(settings.radius[1], settings.shifted_radius[1]) ** 2
    palette = find_colours(light, max_area / settings.box**2)
    if not len(palette):
        return _no_tracks(frames)

    # A ninth of the smallest triangle, so that shrinking bodies are tracked down to this size.
    min_area = 0.15 * (settings.radius[0] / unit) ** 2
    labels, cover = segment(light, palette, min_area)  # [colours, T, H, W]
    blobs = _measure(labels, cover, light)
    large = blobs.area >= min_area
    if not large.any() or large.sum() > frames * _MAX_BODIES:
        return _no_tracks(frames)

    paths, surplus = [], np.zeros(frames, int)
    for colour in np.unique(blobs.colour[large]):
        members = np.flatnonzero(large & (blobs.colour == colour))
        linked, surplus_of_colour = _link(blobs, members, labels, cover, frames)
        paths += linked
        surplus += surplus_of_colour
    centres = np.stack([path.centre for path in paths], axis=1)
    areas = np.stack([path.area for path in paths], axis=1)
    reach, radii = _extent(labels, cover, [path.blob for path in paths], centres)
    colours = []
    for path in paths:
        shades = blobs.shade[path.blob[path.blob >= 0]]
        colours.append(np.median(shades, axis=0) + BACKGROUND)
    count = np.isfinite(areas).sum(axis=1) + surplus
    return Tracks(centres * unit, areas * unit**2, np.array(colours), reach * unit, radii * unit, count)


def _no_tracks(frames: int) -> Tracks:
    """Returns the result for a video without bodies."""
    return Tracks(
        positions=np.zeros((frames, 0, 2)),
        areas=np.zeros((frames, 0)),
        colours=np.zeros((0, 3)),
        reach=np.zeros((0, 4)),
        radii=np.zeros(0),
        count=np.zeros(frames, int),
    )


def _measure(labels: np.ndarray, cover: np.ndarray, light: np.ndarray) -> _Blobs:
    """Area, centre and shade of each patch; entry i has label i + 1."""
    colour, frame, y, x = np.nonzero(labels)
    label, weight = labels[colour, frame, y, x] - 1, cover[colour, frame, y, x]
    count = label.max(initial=-1) + 1  # M

    def total(values: np.ndarray) -> np.ndarray:
        """Sums over the pixels of each patch, [M]."""
        return np.bincount(label, values, count)

    area = np.maximum(total(weight), 1e-9)
    of_blob = np.zeros((2, count), int)
    of_blob[:, label] = frame, colour
    centre = np.stack([total(weight * (x + 0.5)), total(weight * (y + 0.5))], axis=1) / area[:, None]
    # Pixels that a body covers almost entirely show its colour.
    inner = weight * (weight > 0.8)
    shade = np.stack([total(inner * light[frame, y, x, c]) for c in range(3)], axis=1)
    return _Blobs(of_blob[0], of_blob[1], area, centre, shade / np.maximum(total(inner), 1e-9)[:, None])


def _link(
    blobs: _Blobs, members: np.ndarray, labels: np.ndarray, cover: np.ndarray, frames: int
) -> tuple[list[_Path], np.ndarray]:
    """Links the blobs of one colour over time.

    Args:
      blobs: blobs of all colours.
      members: indices of the blobs of this colour.
      labels, cover: labels and coverage from `segment`.
      frames: T.

    Returns:
      The bodies of this colour, and the number of further blobs in each frame, int [T].
    """
    by_frame = [members[blobs.frame[members] == t] for t in range(frames)]
    counts = np.array([len(of_frame) for of_frame in by_frame])
    # Blobs in less than a fifth of the frames are not bodies; they count as surplus if they are large enough.
    number = int(np.sort(counts)[::-1][frames // 5]) or 1
    centres = np.full((number, frames, 2), np.nan)
    areas, path_blobs = np.full((number, frames), np.nan), np.full((number, frames), -1)
    surplus = np.zeros(frames, int)
    if counts.max() == 1:  # by far the most frequent case, which needs no assignment
        at = blobs.frame[members]
        centres[0, at], areas[0, at], path_blobs[0, at] = blobs.centre[members], blobs.area[members], members
        return [_Path(*path) for path in zip(centres, areas, path_blobs)], surplus

    # Start where all bodies are visible and the smallest of them is largest; track forwards and backwards from there.
    full = np.flatnonzero(counts >= number)
    start = max(full, key=lambda t: np.sort(blobs.area[by_frame[t]])[-number])
    first = by_frame[start][np.argsort(-blobs.area[by_frame[start]])[:number]]
    for order in (range(start, frames), range(start - 1, -1, -1)):
        position, motion = blobs.centre[first].copy(), np.zeros((number, 2))
        typical, shade = blobs.area[first].copy(), blobs.shade[first]
        for t in order:
            candidates = by_frame[t]
            expected = position + motion  # at the velocity of the last visible frame
            if not len(candidates):
                position = expected
                continue

            # Assign blobs to bodies by position, area and colour. Costs are in pixels.
            cost = np.linalg.norm(expected[:, None] - blobs.centre[candidates], axis=-1)
            cost += 8 * np.abs(np.log(typical[:, None] / blobs.area[candidates]))
            cost += 100 * np.linalg.norm(shade[:, None] - blobs.shade[candidates], axis=-1)
            rows, columns = linear_sum_assignment(cost)
            centre, area = expected.copy(), np.full(number, np.nan)
            centre[rows], area[rows] = blobs.centre[candidates[columns]], blobs.area[candidates[columns]]
            path_blobs[rows, t] = candidates[columns]
            surplus[t] = np.sum(np.delete(blobs.area[candidates], columns) > 0.4 * typical.min())

            missing = np.setdiff1d(np.arange(number), rows)
            in_frame = _Path(centre, area, path_blobs[:, t])
            for body in missing:
                _split(int(body), expected, typical, candidates, blobs, labels, cover, in_frame)
            visible = np.isfinite(area)
            centres[visible, t], areas[visible, t] = centre[visible], area[visible]
            motion = np.where(visible[:, None], centre - position, motion)
            position = centre
    return [_Path(*path) for path in zip(centres, areas, path_blobs)], surplus


def _split(
    body: int,
    expected: np.ndarray,
    typical: np.ndarray,
    candidates: np.ndarray,
    blobs: _Blobs,
    labels: np.ndarray,
    cover: np.ndarray,
    in_frame: _Path,
) -> None:
    """Divides a blob between a missing body and the bodies assigned to it: touching bodies of one colour form one blob.

    A blob that is too small for all of them is left unchanged.

    Args:
      body: index of a body without a blob in this frame.
      expected: predicted centres, [K, 2].
      typical: typical areas, [K].
      candidates: blobs of the frame.
      blobs, labels, cover: as for `_link`.
      in_frame: centres [K, 2], areas [K] and blobs [K] of this frame, updated in place.
    """
    blob = candidates[np.linalg.norm(expected[body] - blobs.centre[candidates], axis=1).argmin()]
    sharing = np.append(np.flatnonzero(in_frame.blob == blob), body)
    if blobs.area[blob] < 0.75 * typical[sharing].sum():
        return
    y, x = np.nonzero(labels[blobs.colour[blob], blobs.frame[blob]] == blob + 1)
    weight = cover[blobs.colour[blob], blobs.frame[blob], y, x]
    pixels, centre = np.stack([x, y], axis=1) + 0.5, expected[sharing]

    # Lloyd's algorithm on a power diagram, so that larger bodies get more pixels.
    for _ in range(10):
        power = np.square(pixels[:, None] - centre).sum(axis=-1) - typical[sharing] / np.pi
        share = (power.argmin(axis=1)[:, None] == np.arange(len(sharing))) * weight[:, None]
        area = share.sum(axis=0)
        mean = share.T @ pixels / np.maximum(area, 1e-9)[:, None]
        centre = np.where(area[:, None] > 0, mean, centre)
    in_frame.centre[sharing] = centre
    in_frame.area[sharing] = np.where(area > 0, area, np.nan)
    in_frame.blob[sharing] = -1  # the blob belongs to several bodies


def _extent(
    labels: np.ndarray, cover: np.ndarray, path_blobs: list[np.ndarray], centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Reach of bodies from their centres, [K, 4], and their radii, [K], in pixels: medians over frames."""
    frames, number, size = *centres.shape[:2], labels.shape[-1]
    owner = np.full(labels.max() + 1, -1)
    for body, blobs in enumerate(path_blobs):
        owner[blobs[blobs >= 0] + 1] = body
    colour, frame, y, x = np.nonzero(labels)
    body, weight = owner[labels[colour, frame, y, x]], cover[colour, frame, y, x]
    owned = body >= 0
    body, frame, y, x, weight = body[owned], frame[owned], y[owned], x[owned], weight[owned]
    visible = np.zeros((frames, number), bool)
    visible[frame, body] = True

    def median(values: np.ndarray) -> np.ndarray:
        """Medians of values [T, K] over the frames in which a body is visible, [K]; 0 if there are none."""
        medians = np.zeros(number)
        for k in range(number):
            if visible[:, k].any():
                medians[k] = np.median(values[visible[:, k], k])
        return medians

    reach = []
    edges = np.arange(size)
    for axis, coordinate in enumerate((x, y)):
        # The largest coverage in each column sums to the width, and to its parts on both sides of the centre.
        profile = np.zeros((frames, number, size), np.float32)
        np.maximum.at(profile, (frame, body, coordinate), weight)
        after = np.clip(edges + 1 - np.nan_to_num(centres[..., axis, None]), 0, 1)
        reach += [(profile * (1 - after)).sum(axis=-1), (profile * after).sum(axis=-1)]
    radius = np.zeros((frames, number))
    offset = np.stack([x, y], axis=1) + 0.5 - centres[frame, body]
    inner = weight > 0.5
    distance = np.linalg.norm(offset, axis=1) + weight - 0.5
    np.maximum.at(radius, (frame[inner], body[inner]), distance[inner])
    return np.stack([median(side) for side in reach], axis=1), median(radius)
