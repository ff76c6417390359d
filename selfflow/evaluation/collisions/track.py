"""Bodies tracked from pixels alone.

The background is known and each body has one saturated colour, so that a pixel says which body covers it and how
much of it: centres are means of places weighted by coverage and finer than a pixel.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from selfflow.data.collisions import Collisions
from selfflow.data.collisions.render import BACKGROUND
from selfflow.errors import UserError

_MOST_COLOURS = 8
_MOST_BODIES = 12
_BINS = 12
# Distances of colours, 0 to 1 per channel.
_LIT = 0.35
_SAME = 0.1
_ALIKE = 0.4
_FOREIGN = 0.4
# Coverage below this is what a lossy autoencoder leaves on the background.
_FAINT = 0.08


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
    shade: np.ndarray


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
    # What fills more of a frame than the most and largest bodies is noise or a blank.
    most = 1.2 * max(settings.bodies[1], settings.shifted_bodies[1]) * np.pi
    most *= max(settings.radius[1], settings.shifted_radius[1]) ** 2
    lit = np.einsum("thwc,thwc->thw", light, light) > _LIT**2
    palette = _palette(light, lit) if lit.mean() * settings.box**2 <= most else ()
    if not len(palette):
        return _none(frames)
    # A ninth of the smallest triangle: bodies that shrink are followed down to this.
    least = 0.15 * (settings.radius[0] / unit) ** 2
    labels, cover = _segment(light, palette, least)
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
    nothing = np.zeros
    return Tracks(
        *(nothing((frames, 0, 2)), nothing((frames, 0)), nothing((0, 3)), nothing((0, 4)), nothing(0)),
        nothing(frames, int),
    )


def _palette(light: np.ndarray, lit: np.ndarray) -> np.ndarray:
    """Colours of the bodies over the background, float32 [C, 3]: each the densest hue of what earlier ones leave over.

    A blurred body shows its colour in every strength, and nearly its own only in its middle: what counts is the
    direction from the background, and the strength is a high quantile.
    """
    strength = np.sqrt(np.einsum("thwc,thwc->thw", light, light))
    near = lit
    for axis in (1, 2):
        near = ndimage.maximum_filter1d(near, 5, axis=axis, mode="constant")
    # How much a lossy autoencoder stirs the background tells how much it stirs the colours.
    stirred = np.quantile(strength[~near], 0.98) if not near.all() else 1.0
    same = np.clip(0.04 + 2 * stirred, 0.04, 0.15)
    left, strength = light[lit], strength[lit]
    # A body is worth looking for if it covers some pixels in some frames.
    least = max(4, 3 * len(light))
    colours = []
    for _ in range(2 * _MOST_COLOURS):
        if len(left) < least or len(colours) == _MOST_COLOURS:
            break
        ways = left / strength[:, None]
        bins = np.clip(((ways + 1) * _BINS).astype(int), 0, 2 * _BINS - 1)
        keys = (bins[:, 0] * 2 * _BINS + bins[:, 1]) * 2 * _BINS + bins[:, 2]
        near = keys == np.bincount(keys, strength**2).argmax()
        for _ in range(3):
            way = np.average(ways[near], axis=0, weights=strength[near] ** 2)
            around = np.square(ways - way).sum(axis=1) < same**2
            near = around if around.any() else near
        if near.sum() >= least:  # fewer lie between two touching bodies
            way = way / np.linalg.norm(way)
            colours.append(way * np.quantile(left[near] @ way, 0.8))
            near |= _residual(left, 1.25 * colours[-1])[0] < same**2
        left, strength = left[~near], strength[~near]
    return np.array(colours, np.float32).reshape(-1, 3)


def _residual(light: np.ndarray, colour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared distance of pixels [..., 3] to the nearest share of `colour`, and that share, 0 to 1."""
    share = np.clip(light @ colour / (colour @ colour), 0, 1)
    return np.square(light - share[..., None] * colour).sum(axis=-1), share


def _pair(light: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of two colours in pixels [..., 3], none negative and together at most 1, and the squared distance."""
    gram = np.array([[a @ a, a @ b], [a @ b, b @ b]]) + 1e-3 * np.eye(2)
    shares = np.clip(np.stack([light @ a, light @ b], axis=-1) @ np.linalg.inv(gram), 0, 1)
    shares /= np.maximum(shares.sum(axis=-1, keepdims=True), 1)
    rest = np.square(light - shares @ np.stack([a, b])).sum(axis=-1)
    return shares[..., 0], shares[..., 1], rest


def _segment(light: np.ndarray, palette: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Connected patches of each colour that cover at least `least` pixels, and how much of each pixel they cover.

    Returns:
      Labels, int [C, T, H, W], 0 for none, each with the faint edge around it, and coverage, float32 of that shape.
    """
    while True:
        rest, share = (np.stack(part) for part in zip(*(_residual(light, colour) for colour in palette)))
        best = rest.argmin(axis=0)
        solid = (best == np.arange(len(palette))[:, None, None, None]) & (share > 0.5) & (rest < _FOREIGN**2)
        doubled = _doubled(solid, palette)
        if doubled is None:
            break
        palette = np.delete(palette, doubled, axis=0)
    solid = _whole(solid, palette)
    labels, _ = _patches(solid, least)
    # An edge pixel is too faint to tell whose it is by its colour: it is of a body that it touches.
    labels = np.where(labels > 0, labels, _grown(labels))
    near = labels > 0
    cover = np.where(near, share, 0)
    for a in range(len(palette)):
        for b in range(a):
            both = near[a] & near[b]
            if both.any():
                cover[a][both], cover[b][both], _ = _pair(light[both], palette[a], palette[b])
    cover[cover < _FAINT] = 0
    return labels, cover


def _doubled(solid: np.ndarray, palette: np.ndarray) -> int | None:
    """A colour that is only a tinge of another: it is like it, and hardly ever shown away from it. None if none is.

    Two bodies meet and part; what a lossy autoencoder makes of one body stays together. Bodies of nearly the same
    colour share one, as the edges of one would look like the other; they are told apart as patches.
    """
    sizes = solid.sum(axis=(1, 2, 3))
    wide = _grown(solid)
    hues = palette / np.linalg.norm(palette, axis=1, keepdims=True)
    for b in np.argsort(sizes):
        apart = np.linalg.norm(hues - hues[b], axis=1)
        alike = (apart < _ALIKE) & (sizes >= sizes[b]) & (np.arange(len(palette)) != b)
        together = (wide[alike].any(axis=0) & solid[b]).any(axis=(1, 2)).sum()
        if (apart[alike] < _SAME).any() or together >= 0.9 * max(solid[b].any(axis=(1, 2)).sum(), 1):
            return int(b)
    return None


def _patches(solid: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Connected patches of at least `least` pixels: labels from 1 on, [C, T, H, W], and their sizes, 0 first."""
    touching = np.zeros((3, 3, 3, 3), bool)
    touching[1, 1] = ndimage.generate_binary_structure(2, 1)
    labels, count = ndimage.label(solid, touching)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    kept = sizes >= least
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0)[labels], np.append(0, sizes[kept])


def _whole(solid: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Gives patches far smaller than their colour's bodies to the body of a like colour that they touch."""
    labels, sizes = _patches(solid, 1)
    largest = np.where(labels > 0, sizes[labels], 0).max(axis=(2, 3))  # [C, T]
    hues = palette / np.linalg.norm(palette, axis=1, keepdims=True)
    out = solid.copy()
    for a in range(len(palette)):
        typical = np.median(largest[a][largest[a] > 0]) if largest[a].any() else 0
        small = solid[a] & (sizes[labels[a]] < 0.4 * typical)
        if not small.any():
            continue
        for b in np.flatnonzero(np.linalg.norm(hues - hues[a], axis=1) < _ALIKE):
            if b != a:
                touched = np.unique(labels[a][small & _grown(solid[b])])
                moved = np.isin(labels[a], touched) & small
                out[a] &= ~moved
                out[b] |= moved
    return out


def _grown(values: np.ndarray) -> np.ndarray:
    """The largest of each pixel and its eight neighbours, over the last two axes."""
    for axis in (-2, -1):
        values = ndimage.maximum_filter1d(values, 3, axis=axis, mode="constant")
    return values


def _measure(labels: np.ndarray, cover: np.ndarray, light: np.ndarray) -> _Blobs:
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
            motion = np.where(seen_now[:, None] & (t != path[0]), here - place, motion)
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
            centre = np.where(
                mine.sum(0)[:, None] > 0, mine.T @ pixels / np.maximum(mine.sum(0), 1e-9)[:, None], centre
            )
        part = mine.sum(axis=0)
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
