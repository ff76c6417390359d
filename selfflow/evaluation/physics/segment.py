"""Pixels into patches of one colour: which body covers a pixel, and how much of it."""

import numpy as np
from scipy import ndimage

_MOST_COLOURS = 8
_BINS = 12
# Distances of colours, 0 to 1 per channel, and of their directions from the background.
_LIT = 0.35
_FOREIGN = 0.4
_SAME = 0.1
_ALIKE = 0.4
# Coverage below this is what a lossy autoencoder leaves on the background.
_FAINT = 0.08


def find_colours(light: np.ndarray, most: float) -> np.ndarray:
    """Colours of the bodies over the background, float32 [C, 3]: each the densest hue of what earlier ones leave over.

    A blurred body shows its colour in every strength, and nearly its own only in its middle: what counts is the
    direction from the background, and the strength is a high quantile.

    Args:
      light: pixels less the background, float32 [T, H, W, 3].
      most: there are no colours to find if more than this share of all pixels is lit.
    """
    strength = np.sqrt(np.einsum("thwc,thwc->thw", light, light))
    lit = strength > _LIT
    if lit.mean() > most:
        return np.zeros((0, 3), np.float32)
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


def _pair(light: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Shares of two colours in pixels [n, 3], none negative and together at most 1, [2, n]."""
    gram = np.array([[a @ a, a @ b], [a @ b, b @ b]]) + 1e-3 * np.eye(2)
    shares = np.clip(np.stack([light @ a, light @ b], axis=-1) @ np.linalg.inv(gram), 0, 1)
    return (shares / np.maximum(shares.sum(axis=-1, keepdims=True), 1)).T


def segment(light: np.ndarray, palette: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Connected patches of each colour that cover at least `least` pixels, and how much of each pixel they cover.

    Colours that turn out to be no bodies' own are left out, so that C may be smaller than it was.

    Args:
      light: pixels less the background, float32 [T, H, W, 3].
      palette: what `find_colours` found, one or more.
      least: pixels.

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
                cover[a][both], cover[b][both] = _pair(light[both], palette[a], palette[b])
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
