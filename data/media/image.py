"""Image files, read by Pillow: upright, in RGB, cropped to a square and resized."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from selfflow.data.report import Notes, Unusable

# Pillow identifies these by their first bytes, but has no decoder of its own for them.
_WITHOUT_DECODER = {"MPEG", "EPS", "WMF", "GRIB", "BUFR", "HDF5"}
_PAGED = {"TIFF", "DCX"}
_ANIMATED = {"GIF", "PNG", "WEBP", "AVIF"}
# By the number of the EXIF tag; mirrored orientations occur, too.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Candidates for the white level of float and 32-bit images, whose type does not define it.
_WHITE = (1, 255, 65_535)
# Floats may exceed white by this factor, as after resampling.
_OVERSHOOT = 1.5
_SUBFILE_TAG, _PREVIEW = 254, 1
_BITS_TAG, _PHOTOMETRIC_TAG, _SAMPLE_FORMAT_TAG = 258, 262, 339
_UNSIGNED = 1


def open_image(path: Path) -> Image.Image:
    """Opens an image file without decoding it.

    Raises:
      OSError: it is not an image that Pillow reads, or larger than the limit of Pillow.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(path)
        except Image.DecompressionBombError as error:
            raise OSError(str(error)) from error
    if image.format in _WITHOUT_DECODER:
        image.close()
        raise OSError(f"cannot read the pixels of {image.format}")
    return image


def is_animated(image: Image.Image) -> bool:
    """Returns whether an opened image is an animation; the pages of a TIFF and the views of an MPO are not."""
    return image.format in _ANIMATED and getattr(image, "is_animated", False)


def as_image(image: Image.Image, size: int, notes: Notes | None = None) -> np.ndarray:
    """Returns an opened image as uint8 [size, size, 3].

    Raises:
      Unusable: it is the preview of a raw photograph, or what is white in it is unknown.
    """
    # Raw photographs (DNG, NEF, ARW) are TIFF files that begin with a thumbnail.
    if getattr(image, "tag_v2", {}).get(_SUBFILE_TAG, 0) & _PREVIEW:
        raise Unusable("a raw photograph", "convert it to JPEG or PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if image.format == "JPEG":  # decodes a large photograph at a fraction of its resolution
            image.draft(None, (4 * size, 4 * size))
        pages = getattr(image, "n_frames", 1) if image.format in _PAGED else 1
        if pages > 1 and notes is not None:
            notes.add("several pages", f"the first of {pages} is used")
        image.load()
        return crop_square(_upright(rgb(image, notes), _orientation(image)), size)


def animation(image: Image.Image, size: int) -> Iterator[tuple[float, np.ndarray]]:
    """Yields the frames of an animation as (duration in seconds, uint8 [size, size, 3])."""
    orientation = _orientation(image)
    # A PNG may begin with an image for programs that show no animations.
    first = 1 if getattr(image, "default_image", False) else 0
    for number in range(first, image.n_frames):
        image.seek(number)
        image.load()  # some formats have the duration only now
        milliseconds = float(image.info.get("duration") or 0)
        # As in browsers, a duration near 0 means that no duration was set.
        yield (
            (milliseconds if milliseconds > 10 else 100.0) / 1000,
            crop_square(_upright(rgb(image), orientation), size),
        )


def _orientation(image: Image.Image) -> int:
    """Returns the number of a loaded image's orientation in EXIF; 1 is upright."""
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # many cameras write invalid EXIF beside valid pixels
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def rgb(image: Image.Image, notes: Notes | None = None) -> Image.Image:
    """Returns any mode of Pillow as RGB: 16 bits are reduced to 8 (Pillow itself would clip), transparency is white.

    Raises:
      Unusable: the white level of the image is unknown.
    """
    if image.mode.startswith("I") or image.mode == "F":
        values, white = _values(image, Notes() if notes is None else notes)
        return Image.fromarray(np.clip(np.round(values * 255 / white), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    # A conversion to the same mode would copy the pixels.
    return image if image.mode == "RGB" else image.convert("RGB")


def _values(image: Image.Image, notes: Notes) -> tuple[np.ndarray, int]:
    """Returns the pixels of an image of 16 bits or more in float64, 0 for black, and the value that is white.

    In images of 16 bits the largest value of the type is white. Floats and 32 bits do not define it: white is 1, 255,
    65535 or the largest value of the type, whichever is the first that no pixel exceeds (floats may, by half).
    """
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    tags = getattr(image, "tag_v2", {})
    bits, unsigned = tags.get(_BITS_TAG, (16,))[0], tags.get(_SAMPLE_FORMAT_TAG, (_UNSIGNED,))[0] == _UNSIGNED
    if image.mode == "I" and unsigned and bits == 32:  # which Pillow reads as signed
        values = np.where(values < 0, values + 2**32, values)
    largest = values.max(initial=0)
    in_type = 2**bits - 1 if unsigned else 2 ** (bits - 1) - 1
    if image.mode == "F":
        white = next((white for white in _WHITE if largest <= white * _OVERSHOOT), 0)
    elif image.mode == "I" and image.format in ("TIFF", None):
        white = next((white for white in (*_WHITE[1:], in_type) if largest <= white <= in_type), 0)
    else:
        white = in_type
    if not white:
        raise Unusable("pixel values of unknown range", f"up to {largest:.4g}")
    # The estimate is accepted if the image uses half of the range.
    if image.mode in ("I", "F") and not (values.min(initial=0) >= 0 and white / 2 <= largest <= white):
        notes.add(
            "pixel values without a range", f"{values.min():.4g} to {largest:.4g}, where {white} is taken as white"
        )
    if tags.get(_PHOTOMETRIC_TAG) == 0:  # inverted
        values = white - values
    transparent = image.info.get("transparency")
    return (values if transparent is None else np.where(values == transparent, white, values)), white


def crop_square(image: Image.Image, size: int, aspect: float = 1.0) -> np.ndarray:
    """Returns the largest centred square of an RGB image, antialiased to uint8 [size, size, 3].

    `aspect` is the width of one source pixel over its height.
    """
    width, height = image.size
    side = min(width * aspect, height)
    across, down = side / aspect / 2, side / 2
    box = (width / 2 - across, height / 2 - down, width / 2 + across, height / 2 + down)
    box = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))
