"""Segmentation of a video into patches of one colour, and the share of each pixel that they cover."""

import numpy as np
from scipy import ndimage

_MAX_COLOURS = 8
_BINS = 12  # per unit of each axis of the hues
# Distances of colours, 0 to 1 per channel.
_LIT = 0.35
_FOREIGN = 0.4
# Distances of unit vectors from the background to colours.
_SAME = 0.1
_SIMILAR = 0.4
# A lossy autoencoder leaves coverage below this on the background.
_FAINT = 0.08


def find_colours(light: np.ndarray, most: float) -> np.ndarray:
    """Finds the colours of the bodies minus the background, float32 [C, 3]: repeatedly the densest remaining hue.

    A blurred body shows its colour at all strengths, and at full strength only in the middle: the hue is the direction
    from the background, and the strength of the colour is a high quantile.

    Args:
      light: pixels minus the background, float32 [T, H, W, 3].
      most: largest lit share of all pixels; above it no colours are returned.
    """
    strength = np.sqrt(np.einsum("thwc,thwc->thw", light, light))
    lit = strength > _LIT
    if lit.mean() > most:
        return np.zeros((0, 3), np.float32)

    # The noise that a lossy autoencoder adds to the background estimates the noise of the colours.
    near_lit = lit
    for axis in (1, 2):
        near_lit = ndimage.maximum_filter1d(near_lit, 5, axis=axis, mode="constant")
    noise = np.quantile(strength[~near_lit], 0.98) if not near_lit.all() else 1.0
    radius = np.clip(0.04 + 2 * noise, 0.04, 0.15)

    rest, strength = light[lit], strength[lit]
    min_pixels = max(4, 3 * len(light))
    colours = []
    for _ in range(2 * _MAX_COLOURS):
        if len(rest) < min_pixels or len(colours) == _MAX_COLOURS:
            break
        # The heaviest bin of a histogram of hues, then three steps of mean shift.
        hues = rest / strength[:, None]
        bins = np.clip(((hues + 1) * _BINS).astype(int), 0, 2 * _BINS - 1)
        keys = (bins[:, 0] * 2 * _BINS + bins[:, 1]) * 2 * _BINS + bins[:, 2]
        members = keys == np.bincount(keys, strength**2).argmax()
        for _ in range(3):
            hue = np.average(hues[members], axis=0, weights=strength[members] ** 2)
            near_hue = np.square(hues - hue).sum(axis=1) < radius**2
            members = near_hue if near_hue.any() else members
        if members.sum() >= min_pixels:  # fewer are mixed pixels of two touching bodies
            hue = hue / np.linalg.norm(hue)
            colours.append(hue * np.quantile(rest[members] @ hue, 0.8))
            # Fainter and mixed pixels of this colour must not form the next one.
            members |= _residual(rest, 1.25 * colours[-1])[0] < radius**2
        rest, strength = rest[~members], strength[~members]
    return np.array(colours, np.float32).reshape(-1, 3)


def _residual(light: np.ndarray, colour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared distance of pixels [..., 3] to the nearest multiple of `colour`, and that multiple, 0 to 1."""
    share = np.clip(light @ colour / (colour @ colour), 0, 1)
    return np.square(light - share[..., None] * colour).sum(axis=-1), share


def _pair(light: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the shares [2, n] of two colours in pixels [n, 3]; nonnegative, with a sum of at most 1."""
    # The ridge regularises least squares for colours that are almost parallel.
    gram = np.array([[a @ a, a @ b], [a @ b, b @ b]]) + 1e-3 * np.eye(2)
    shares = np.clip(np.stack([light @ a, light @ b], axis=-1) @ np.linalg.inv(gram), 0, 1)
    return (shares / np.maximum(shares.sum(axis=-1, keepdims=True), 1)).T


def segment(light: np.ndarray, palette: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Finds connected patches of each colour with at least `least` pixels, and the share of each pixel that they cover.

    Colours that are tinges of another are dropped, so that C may be smaller than the palette.

    Args:
      light: pixels minus the background, float32 [T, H, W, 3].
      palette: colours of `find_colours`, at least one.
      least: minimum number of pixels of a patch.

    Returns:
      Labels, int [C, T, H, W], 0 for none, which include faint edges; and coverage, float32 of that shape.
    """
    # Shares depend on the palette, so dropping a colour means computing them again.
    while True:
        residuals, shares = [], []
        for colour in palette:
            residual_of_colour, share_of_colour = _residual(light, colour)
            residuals.append(residual_of_colour)
            shares.append(share_of_colour)
        residual, share = np.stack(residuals), np.stack(shares)
        best = residual.argmin(axis=0)
        solid = (best == np.arange(len(palette))[:, None, None, None]) & (share > 0.5) & (residual < _FOREIGN**2)
        duplicate = _duplicate(solid, palette)
        if duplicate is None:
            break
        palette = np.delete(palette, duplicate, axis=0)
    solid = _merge_small(solid, palette)
    labels, _ = _patches(solid, least)
    # The hue of an edge pixel is too faint to identify the body: the pixel belongs to a patch that it touches.
    labels = np.where(labels > 0, labels, _dilate(labels))
    labelled = labels > 0
    cover = np.where(labelled, share, 0)
    for a in range(len(palette)):
        for b in range(a):
            both = labelled[a] & labelled[b]
            if both.any():
                cover[a][both], cover[b][both] = _pair(light[both], palette[a], palette[b])
    cover[cover < _FAINT] = 0
    return labels, cover


def _duplicate(solid: np.ndarray, palette: np.ndarray) -> int | None:
    """Index of a colour that is a tinge of another: similar, and almost always next to it. None if there is none.

    Two bodies meet and part, whereas a tinge that a lossy autoencoder adds to a body stays with it. Bodies of almost
    the same colour share one, because the edges of one would look like the other; they are separated as patches.
    """
    sizes = solid.sum(axis=(1, 2, 3))
    dilated = _dilate(solid)
    hues = palette / np.linalg.norm(palette, axis=1, keepdims=True)
    for b in np.argsort(sizes):
        distance = np.linalg.norm(hues - hues[b], axis=1)
        similar = (distance < _SIMILAR) & (sizes >= sizes[b]) & (np.arange(len(palette)) != b)
        frames_together = (dilated[similar].any(axis=0) & solid[b]).any(axis=(1, 2)).sum()
        if (distance[similar] < _SAME).any() or frames_together >= 0.9 * max(solid[b].any(axis=(1, 2)).sum(), 1):
            return int(b)
    return None


def _patches(solid: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Connected patches of at least `least` pixels: labels from 1 on, [C, T, H, W], and their sizes, 0 first."""
    # Only pixels of one frame and one colour are neighbours.
    structure = np.zeros((3, 3, 3, 3), bool)
    structure[1, 1] = ndimage.generate_binary_structure(2, 1)
    labels, count = ndimage.label(solid, structure)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    kept = sizes >= least
    kept[0] = False  # the background
    return np.where(kept, np.cumsum(kept), 0)[labels], np.append(0, sizes[kept])


def _merge_small(solid: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Moves patches far smaller than the bodies of their colour to a body of similar colour that they touch."""
    labels, sizes = _patches(solid, 1)
    largest = np.where(labels > 0, sizes[labels], 0).max(axis=(2, 3))  # [C, T]
    hues = palette / np.linalg.norm(palette, axis=1, keepdims=True)
    merged = solid.copy()
    for a in range(len(palette)):
        typical = np.median(largest[a][largest[a] > 0]) if largest[a].any() else 0
        small = solid[a] & (sizes[labels[a]] < 0.4 * typical)
        if not small.any():
            continue
        for b in np.flatnonzero(np.linalg.norm(hues - hues[a], axis=1) < _SIMILAR):
            if b != a:
                touching = np.unique(labels[a][small & _dilate(solid[b])])
                moved = np.isin(labels[a], touching) & small
                merged[a] &= ~moved
                merged[b] |= moved
    return merged


def _dilate(values: np.ndarray) -> np.ndarray:
    """The maximum of each pixel and its eight neighbours, over the last two axes."""
    for axis in (-2, -1):
        values = ndimage.maximum_filter1d(values, 3, axis=axis, mode="constant")
    return values
