"""Images as Pillow reads them, upright, in RGB, cropped to a square and resized."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Pillow knows these by their first bytes, but has no reader of its own for them.
_NOT_FOR_PILLOW = {"MPEG", "EPS", "WMF", "GRIB", "BUFR", "HDF5"}
_ANIMATED = {"GIF", "PNG", "WEBP", "AVIF"}


def open_image(path: Path) -> Image.Image:
    """Opens an image file without decoding it.

    Raises:
      OSError: it is not an image that Pillow reads, or larger than Pillow takes for harmless.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(path)
        except Image.DecompressionBombError as error:
            raise OSError(str(error)) from error
    if image.format in _NOT_FOR_PILLOW:
        image.close()
        raise OSError(f"cannot read the pixels of {image.format}")
    return image


def is_animated(image: Image.Image) -> bool:
    """Whether an opened image moves; the pages of a TIFF and the views of an MPO do not."""
    return image.format in _ANIMATED and getattr(image, "is_animated", False)


def as_image(image: Image.Image, size: int) -> np.ndarray:
    """An opened image as uint8 [size, size, 3]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if image.format == "JPEG":  # decodes a large photograph at a fraction of its size
            image.draft(None, (4 * size, 4 * size))
        image.load()
        try:
            turned = ImageOps.exif_transpose(image)
        except Exception:  # EXIF is a nest of formats and many cameras break them: the pixels are still good
            turned = image
        return crop_square(rgb(turned), size)


def animation(image: Image.Image, size: int) -> Iterator[tuple[float, np.ndarray]]:
    """An animated image as (seconds that it is shown, uint8 [size, size, 3]) for each of its pictures."""
    for number in range(image.n_frames):
        image.seek(number)
        image.load()  # some formats tell the duration only now
        milliseconds = float(image.info.get("duration") or 0)
        # as browsers do: a duration of next to nothing means that nobody set it
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
