"""High dynamic range as ordinary colours, for pixels of any size."""

import numpy as np

# Transfer functions of ITU-R BT.2100, by their numbers in ITU-T H.273.
_PQ, _HLG = 16, 18
# cd/m2: of diffuse white (ITU-R BT.2408), and of the display that HLG is shown on.
_WHITE, _HLG_PEAK = 203.0, 1000.0
# From the primaries of BT.2020 to those of BT.709, in linear light (ITU-R BT.2087).
_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593])


def to_sdr(pixels: np.ndarray, transfer: int) -> np.ndarray:
    """Pixels of a video in the colours of BT.709; those of ordinary video are returned as they are.

    Diffuse white (203 cd/m2) becomes 255 and brighter highlights are clipped.

    Args:
      pixels: uint8 [H, W, 3], nonlinear RGB of BT.2100.
      transfer: number of the transfer function in ITU-T H.273.
    """
    if transfer not in (_PQ, _HLG):
        return pixels
    signal = pixels / 255.0
    linear = (_pq_light(signal) if transfer == _PQ else _hlg_light(signal)) / _WHITE
    linear = np.clip(linear @ _TO_BT709.T, 0, 1)
    # The inverse of BT.1886, the gamma of displays.
    return np.rint(255 * linear ** (1 / 2.4)).astype(np.uint8)


def _pq_light(signal: np.ndarray) -> np.ndarray:
    """Displayed light of a PQ signal in [0, 1], cd/m2 (SMPTE ST 2084)."""
    m1, m2, c1, c2, c3 = 1305 / 8192, 2523 / 32, 107 / 128, 2413 / 128, 2392 / 128
    power = signal ** (1 / m2)
    return 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def _hlg_light(signal: np.ndarray) -> np.ndarray:
    """Displayed light of an HLG signal in [0, 1], cd/m2 (ARIB STD-B67, system gamma 1.2)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    luminance = (scene @ _LUMINANCE)[..., None]
    return _HLG_PEAK * luminance**0.2 * scene
