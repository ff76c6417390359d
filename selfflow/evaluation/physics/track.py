"""Bodies tracked from pixels alone.

The background is known and each body has one saturated colour, so that a pixel says which body covers it and how
much of it: centres are means of places weighted by coverage and finer than a pixel.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from selfflow.data.collisions import Collisions
from selfflow.data.collisions.render import BACKGROUND
from selfflow.errors import UserError
from selfflow.evaluation.physics.segment import find_colours, segment

_MOST_BODIES = 12


class Tracks(NamedTuple):
    """What is seen of the K bodies of a clip; places in units, x right and y down."""

    positions: np.ndarray
    """Centres, float64 [T, K, 2]; nan where a body is not seen."""
    areas: np.ndarray
    """Covered area, units^2, float64 [T, K]; nan where a body is not seen."""
    colours: np.ndarray
    """Red, green, blue, 0 to 1, float64 [K, 3]."""
    reach: np.ndarray
    """How far a body reaches from its centre to the left, right, up and down, units, float64 [K, 4]."""
    radii: np.ndarray
    """Radius of the circumscribed circle, units, float64 [K]."""
    count: np.ndarray
    """Bodies seen in each frame, int [T]."""

    @property
    def masses(self) -> np.ndarray:
        """Mass of each body, the median of its area, units^2, float64 [K]; nan where it is never seen."""
        seen = [areas[np.isfinite(areas)] for areas in self.areas.T]
        return np.array([np.median(areas) if len(areas) else np.nan for areas in seen])


class _Blobs(NamedTuple):
    """Connected patches of one colour, all frames together."""

    frame: np.ndarray
    colour: np.ndarray
    area: np.ndarray  # pixels
    centre: np.ndarray  # pixels
    shade: np.ndarray  # red, green, blue over the background


def track(video: np.ndarray, settings: Collisions) -> Tracks:
    """Tracks the bodies of one clip; never fails on what shows no bodies, which gives K = 0.

    Args:
      video: uint8 [T, H, W, 3]; the box of `settings` fills the frame.
      settings: of the data set.

    Raises:
      UserError: `video` is no uint8 video of square frames.
    """
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or video.shape[1] != video.shape[2]:
        raise UserError(f"video of {video.dtype} {list(video.shape)}: the verifier takes uint8 [T, size, size, 3]")
    frames, size = video.shape[:2]
    if not video.size:
        return _none(frames)
    unit = settings.box / size
    light = video.astype(np.float32) / 255 - np.asarray(BACKGROUND, np.float32)
    # What fills more of the frames than the most and largest bodies is noise or a blank.
    most = 1.2 * max(settings.bodies[1], settings.shifted_bodies[1]) * np.pi
    most *= max(settings.radius[1], settings.shifted_radius[1]) ** 2
    palette = find_colours(light, most / settings.box**2)
    if not len(palette):
        return _none(frames)
    # A ninth of the smallest triangle: bodies that shrink are followed down to this.
    least = 0.15 * (settings.radius[0] / unit) ** 2
    labels, cover = segment(light, palette, least)
    blobs = _measure(labels, cover, light)
    large = blobs.area >= least
    if not large.any() or large.sum() > frames * _MOST_BODIES:
        return _none(frames)
    bodies, extra = [], np.zeros(frames, int)
    for colour in np.unique(blobs.colour[large]):
        found, beyond = _link(blobs, np.flatnonzero(large & (blobs.colour == colour)), labels, cover, frames)
        bodies += found
        extra += beyond
    centres, areas, members = (list(part) for part in zip(*bodies))
    centres, areas = np.stack(centres, axis=1), np.stack(areas, axis=1)
    reach, radii = _extent(labels, cover, members, centres)
    colours = [np.median(blobs.shade[m[m >= 0]], axis=0) + BACKGROUND for m in members]
    count = np.isfinite(areas).sum(axis=1) + extra
    return Tracks(centres * unit, areas * unit**2, np.array(colours), reach * unit, radii * unit, count)


def _none(frames: int) -> Tracks:
    shapes = (frames, 0, 2), (frames, 0), (0, 3), (0, 4), (0,)
    return Tracks(*map(np.zeros, shapes), np.zeros(frames, int))


def _measure(labels: np.ndarray, cover: np.ndarray, light: np.ndarray) -> _Blobs:
    """Area, centre and shade of each patch; entry i is of label i + 1."""
    colour, frame, y, x = np.nonzero(labels)
    label, weight = labels[colour, frame, y, x] - 1, cover[colour, frame, y, x]
    count = label.max(initial=-1) + 1
    total = lambda values: np.bincount(label, values, count)
    area = np.maximum(total(weight), 1e-9)
    where = np.zeros((2, count), int)
    where[:, label] = frame, colour
    centre = np.stack([total(weight * (x + 0.5)), total(weight * (y + 0.5))], axis=1) / area[:, None]
    # Where a pixel is covered whole it shows the colour of the body.
    whole = weight * (weight > 0.8)
    shade = np.stack([total(whole * light[frame, y, x, c]) for c in range(3)], axis=1)
    return _Blobs(where[0], where[1], area, centre, shade / np.maximum(total(whole), 1e-9)[:, None])


def _link(
    blobs: _Blobs, chosen: np.ndarray, labels: np.ndarray, cover: np.ndarray, frames: int
) -> tuple[list, np.ndarray]:
    """Bodies of one colour: ([(centres [T, 2], areas [T], blobs [T], -1 for none)], blobs beyond them [T])."""
    by_frame = [chosen[blobs.frame[chosen] == t] for t in range(frames)]
    seen = np.array([len(found) for found in by_frame])
    # What is there for less than a fifth of the frames is no body, but counts where it is large enough for one.
    number = int(np.sort(seen)[::-1][frames // 5]) or 1
    centres = np.full((number, frames, 2), np.nan)
    areas, members = np.full((number, frames), np.nan), np.full((number, frames), -1)
    extra = np.zeros(frames, int)
    if seen.max() == 1:  # as nearly always: there is nothing to choose
        at = blobs.frame[chosen]
        centres[0, at], areas[0, at], members[0, at] = blobs.centre[chosen], blobs.area[chosen], chosen
        return list(zip(centres, areas, members)), extra
    full = np.flatnonzero(seen >= number)
    start = max(full, key=lambda t: np.sort(blobs.area[by_frame[t]])[-number])
    first = by_frame[start][np.argsort(-blobs.area[by_frame[start]])[:number]]
    for path in (range(start, frames), range(start - 1, -1, -1)):
        place, motion = blobs.centre[first].copy(), np.zeros((number, 2))
        typical, shade = blobs.area[first].copy(), blobs.shade[first]
        for t in path:
            found = by_frame[t]
            expected = place + motion
            if not len(found):
                place = expected
                continue
            cost = np.linalg.norm(expected[:, None] - blobs.centre[found], axis=-1)
            cost += 8 * np.abs(np.log(typical[:, None] / blobs.area[found]))
            cost += 100 * np.linalg.norm(shade[:, None] - blobs.shade[found], axis=-1)
            rows, columns = linear_sum_assignment(cost)
            here, now = expected.copy(), np.full(number, np.nan)
            here[rows], now[rows] = blobs.centre[found[columns]], blobs.area[found[columns]]
            members[rows, t] = found[columns]
            extra[t] = np.sum(np.delete(blobs.area[found], columns) > 0.4 * typical.min())
            missing = np.setdiff1d(np.arange(number), rows)
            if len(missing):
                _split(missing, expected, typical, found, blobs, labels, cover, (here, now, members[:, t]))
            seen_now = np.isfinite(now)
            centres[seen_now, t], areas[seen_now, t] = here[seen_now], now[seen_now]
            motion = np.where(seen_now[:, None], here - place, motion)
            place = here
    return list(zip(centres, areas, members)), extra


def _split(missing, expected, typical, found, blobs, labels, cover, into) -> None:
    """Bodies of one colour that touch make one patch: parts it among those that it is large enough for."""
    here, now, member = into
    for body in missing:
        patch = found[np.linalg.norm(expected[body] - blobs.centre[found], axis=1).argmin()]
        sharing = np.append(np.flatnonzero(member == patch), body)
        if blobs.area[patch] < 0.75 * typical[sharing].sum():
            continue
        y, x = np.nonzero(labels[blobs.colour[patch], blobs.frame[patch]] == patch + 1)
        weight = cover[blobs.colour[patch], blobs.frame[patch], y, x]
        pixels, centre = np.stack([x, y], axis=1) + 0.5, expected[sharing]
        for _ in range(10):
            power = np.square(pixels[:, None] - centre).sum(axis=-1) - typical[sharing] / np.pi
            mine = (power.argmin(axis=1)[:, None] == np.arange(len(sharing))) * weight[:, None]
            part = mine.sum(axis=0)
            middle = mine.T @ pixels / np.maximum(part, 1e-9)[:, None]
            centre = np.where(part[:, None] > 0, middle, centre)
        here[sharing], now[sharing], member[sharing] = centre, np.where(part > 0, part, np.nan), -1


def _extent(labels: np.ndarray, cover: np.ndarray, members: list, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reach of bodies from their centres, [K, 4], and their radii, [K], in pixels: medians over frames."""
    frames, number, size = *centres.shape[:2], labels.shape[-1]
    owner = np.full(labels.max() + 1, -1)
    for body, blobs in enumerate(members):
        owner[blobs[blobs >= 0] + 1] = body
    colour, frame, y, x = np.nonzero(labels)
    body, weight = owner[labels[colour, frame, y, x]], cover[colour, frame, y, x]
    body, frame, y, x, weight = (part[body >= 0] for part in (body, frame, y, x, weight))
    seen = np.zeros((frames, number), bool)
    seen[frame, body] = True
    reach = []
    edges = np.arange(size)
    for axis, place in enumerate((x, y)):
        # The largest coverage in each column sums to the width, and to its parts on both sides of the centre.
        profile = np.zeros((frames, number, size), np.float32)
        np.maximum.at(profile, (frame, body, place), weight)
        after = np.clip(edges + 1 - np.nan_to_num(centres[..., axis, None]), 0, 1)
        reach += [(profile * (1 - after)).sum(axis=-1), (profile * after).sum(axis=-1)]
    radius = np.zeros((frames, number))
    away = np.stack([x, y], axis=1) + 0.5 - centres[frame, body]
    inner = weight > 0.5
    np.maximum.at(radius, (frame[inner], body[inner]), (np.linalg.norm(away, axis=1) + weight - 0.5)[inner])
    middle = lambda values: np.array([np.median(v[s]) if s.any() else 0.0 for v, s in zip(values.T, seen.T)])
    return np.stack([middle(side) for side in reach], axis=1), middle(radius)
