"""Image files, read by Pillow: upright, in RGB, cropped to a square and resized."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Pillow identifies these by their first bytes, but has no decoder of its own for them.
_WITHOUT_DECODER = {"MPEG", "EPS", "WMF", "GRIB", "BUFR", "HDF5"}
_ANIMATED = {"GIF", "PNG", "WEBP", "AVIF"}


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
    """Whether an opened image is an animation; the pages of a TIFF and the views of an MPO are none."""
    return image.format in _ANIMATED and getattr(image, "is_animated", False)


def as_image(image: Image.Image, size: int) -> np.ndarray:
    """An opened image as uint8 [size, size, 3]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if image.format == "JPEG":  # decodes a large photograph at a fraction of its resolution
            image.draft(None, (4 * size, 4 * size))
        image.load()
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception:  # many cameras write invalid EXIF, and the pixels are valid all the same
            upright = image
        return crop_square(rgb(upright), size)


def animation(image: Image.Image, size: int) -> Iterator[tuple[float, np.ndarray]]:
    """The frames of an animation as (duration in seconds, uint8 [size, size, 3])."""
    for number in range(image.n_frames):
        image.seek(number)
        image.load()  # some formats have the duration only now
        milliseconds = float(image.info.get("duration") or 0)
        # As in browsers: a duration near 0 means that none was set.
        yield (milliseconds if milliseconds > 10 else 100.0) / 1000, crop_square(rgb(image), size)


def rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow as RGB: 16 bits are reduced to 8 (Pillow itself would clip), transparency is white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
        largest = values.max(initial=0)
        if image.mode == "F":
            scale = 255.0 if largest <= 1 else 1.0
        else:
            scale = 255 / 65535 if image.mode != "I" or largest > 255 else 1.0
        return Image.fromarray(np.clip(np.round(values * scale), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def crop_square(image: Image.Image, size: int, aspect: float = 1.0) -> np.ndarray:
    """The largest centred square of an RGB image, antialiased to uint8 [size, size, 3].

    `aspect` is the width of one source pixel over its height.
    """
    width, height = image.size
    side = min(width * aspect, height)
    across, down = side / aspect / 2, side / 2
    box = (width / 2 - across, height / 2 - down, width / 2 + across, height / 2 + down)
    box = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))
