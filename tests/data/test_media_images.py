"""Images of every kind."""

import numpy as np
import pytest
from PIL import Image, features

from selfflow.data.media.read import read_image
from selfflow.errors import UserError
from tests.conftest import mentions
from tests.data.media_files import decode, quadrants, reason, write_tiff, write_video


def corners(image):
    return [tuple((image[y, x] > 127).astype(int).tolist()) for y in (3, 12) for x in (3, 12)]


UPRIGHT = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)]


def test_exif_orientation(tmp_path):
    turn = Image.Transpose
    undo = {1: None, 2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
            6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270}  # fmt: skip
    for orientation, method in undo.items():
        image = Image.fromarray(quadrants())
        stored = image if method is None else image.transpose(method)
        exif = Image.Exif()
        exif[0x0112] = orientation
        for name in ("turned.jpg", "turned.png", "turned.webp", "turned.tiff"):
            stored.save(tmp_path / name, exif=exif, quality=95)
            (clip,), _ = decode(tmp_path / name)
            assert corners(clip.image) == UPRIGHT, (orientation, name)
            assert clip.start is None and clip.video is None and clip.audio is None
        for name in ("moves.png", "moves.webp"):
            blank = Image.new("RGB", stored.size, "gray")
            stored.save(tmp_path / name, save_all=True, append_images=[blank, stored] * 7, duration=100, exif=exif)
            (clip, *_), _ = decode(tmp_path / name)
            assert corners(clip.video[0]) == corners(clip.video[2]) == UPRIGHT, (orientation, name)


def test_portrait_and_turned_video(tmp_path):
    def paint(number, at):
        return np.concatenate([np.zeros((16, 64, 3), np.uint8), quadrants(), np.zeros((16, 64, 3), np.uint8)])

    (clip, *_), _ = decode(write_video(tmp_path / "portrait.mp4", size=(64, 96), paint=paint, sample_rate=None))
    assert corners(clip.video[0]) == UPRIGHT

    # a phone held upright stores its frames turned, with the metadata: turn clockwise by 90 degrees
    def lying(number, at):
        return np.rot90(paint(number, at), 1).copy()

    path = write_video(tmp_path / "phone.mp4", size=(96, 64), sample_rate=None, rotate=-90, paint=lying)
    (clip, *_), _ = decode(path)
    assert corners(clip.video[0]) == UPRIGHT


def test_every_mode_of_images(tmp_path):
    gray = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    rgba = np.dstack([quadrants(), np.full((64, 64), 255, np.uint8)])
    rgba[32:, 32:, :] = 0  # transparent black is white
    saved = {
        "gray.png": Image.fromarray(gray),
        "one.png": Image.fromarray(gray > 127),
        "sixteen.png": Image.fromarray(gray.astype(np.uint16) * 257),
        "sixteen.tiff": Image.fromarray(gray.astype(np.uint16) * 257),
        "float.tiff": Image.fromarray((gray / 255).astype(np.float32)),
        "palette.png": Image.fromarray(quadrants()).quantize(8),
        "rgba.png": Image.fromarray(rgba),
        "la.png": Image.fromarray(rgba).convert("LA"),
        "cmyk.jpg": Image.fromarray(quadrants()).convert("CMYK"),
        "plain.webp": Image.fromarray(quadrants()),
        "plain.gif": Image.fromarray(quadrants()),
        "plain.bmp": Image.fromarray(quadrants()),
    }
    for name, image in saved.items():
        image.save(tmp_path / name)
        (clip,), _ = decode(tmp_path / name)
        assert clip.image.shape == (16, 16, 3) and clip.image.dtype == np.uint8
        if name in ("gray.png", "sixteen.png", "sixteen.tiff", "float.tiff"):
            np.testing.assert_allclose(clip.image[8, :, 0], np.linspace(6, 249, 16), atol=4, err_msg=name)
        elif name not in ("one.png", "la.png"):
            assert corners(clip.image) == UPRIGHT, name


def test_images_are_cropped_in_the_middle_and_antialiased(tmp_path):
    wide = np.concatenate([np.zeros((64, 32, 3), np.uint8), quadrants(), np.zeros((64, 32, 3), np.uint8)], 1)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert corners(decode(tmp_path / "wide.png")[0][0].image) == UPRIGHT
    checks = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "checks.png")
    assert np.abs(decode(tmp_path / "checks.png")[0][0].image.astype(int) - 127).max() < 8


def test_an_animated_gif_is_a_video(tmp_path):
    frames = [Image.fromarray(np.full((20, 20, 3), 15 * i, np.uint8)) for i in range(16)]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:], duration=100, loop=0)
    clips, _ = decode(tmp_path / "moves.gif")
    assert [clip.start for clip in clips] == [0.0, 0.5]
    np.testing.assert_allclose(clips[1].video.mean((1, 2, 3)), 15 * np.arange(5, 15), atol=3)
    frames[0].save(tmp_path / "short.gif", save_all=True, append_images=frames[1:4], duration=100)
    assert reason(tmp_path / "short.gif") == "shorter than a clip"
    frames[0].save(tmp_path / "ten_minutes.gif", save_all=True, append_images=frames[1:2], duration=600_000)
    clips, notes = decode(tmp_path / "ten_minutes.gif")
    assert len(clips) < 50 and list(notes.values()) == ["2 frames"]  # one byte says ten minutes


LEVELS = np.linspace(6, 249, 16)  # of a ramp from black to white in 16 pixels


@pytest.mark.parametrize(
    "dtype, white, remarked",
    [
        ("uint8", 255, False),
        ("uint16", 65_535, False),
        ("int16", 255, False),
        ("int16", 32_767, False),
        ("int32", 255, False),
        ("int32", 65_535, False),
        ("int32", 2**31 - 1, False),
        ("uint32", 2**32 - 1, False),
        ("float32", 1, False),
        ("float32", 1.02, True),
        ("float32", 255, False),
        ("float32", 300, True),
        ("float32", 65_535, False),
    ],
)
def test_white_of_every_type_of_pixel(tmp_path, dtype, white, remarked):
    ramp = np.tile(np.linspace(0, white, 64), (64, 1)).astype(dtype)
    (clip,), notes = decode(write_tiff(tmp_path / "a.tiff", ramp))
    scale = {1.02: 1.02, 300: 300 / 255}.get(white, 1)
    np.testing.assert_allclose(clip.image[8, :, 0], np.minimum(LEVELS * scale, 255), atol=4)
    assert list(notes) == (["pixel values without a range"] if remarked else [])


def test_dark_bright_and_inverted_images(tmp_path):
    ramp = np.tile(np.linspace(0, 1, 64), (64, 1))
    # The type says what is white, or the header does.
    (clip,), notes = decode(write_tiff(tmp_path / "dark.tiff", (200 * ramp).astype(np.uint16)))
    assert clip.image.max() <= 1 and not notes
    (tmp_path / "dark.pgm").write_bytes(b"P5 64 64 65535\n" + (200 * ramp).astype(">u2").tobytes())
    assert decode(tmp_path / "dark.pgm")[0][0].image.max() <= 1
    (tmp_path / "ten.pgm").write_bytes(b"P5 64 64 1023\n" + (1023 * ramp).astype(">u2").tobytes())
    np.testing.assert_allclose(decode(tmp_path / "ten.pgm")[0][0].image[8, :, 0], LEVELS, atol=4)
    # What may be wrong is said.
    (clip,), notes = decode(write_tiff(tmp_path / "sun.tiff", (20 * ramp).astype(np.float32)))
    assert "pixel values without a range" in notes and clip.image.max() < 25
    (clip,), notes = decode(write_tiff(tmp_path / "negative.tiff", (2 * ramp - 1).astype(np.float32)))
    assert "pixel values without a range" in notes and clip.image[8, 2, 0] == 0 and clip.image[8, 15, 0] > 230
    assert reason(write_tiff(tmp_path / "far.tiff", (1e9 * ramp).astype(np.float32))) == "pixel values of unknown range"
    with pytest.raises(UserError, match=mentions("far.tiff", "1e+09")):
        read_image(tmp_path / "far.tiff", 16)
    for name, values in (("inverted8.tiff", 255 * ramp), ("inverted16.tiff", 65_535 * ramp), ("inverted.tiff", ramp)):
        dtype = {"inverted8.tiff": np.uint8, "inverted16.tiff": np.uint16}.get(name, np.float32)
        (clip,), _ = decode(write_tiff(tmp_path / name, values.astype(dtype), white_is_zero=True))
        np.testing.assert_allclose(clip.image[8, :, 0], LEVELS[::-1], atol=4, err_msg=name)
    broken = ramp.astype(np.float32)
    broken[:, 40:44] = np.nan
    assert decode(write_tiff(tmp_path / "nan.tiff", broken))[0][0].image[8, 3, 0] == pytest.approx(LEVELS[3], abs=4)


def test_the_default_image_of_an_animation_is_no_frame(tmp_path):
    frames = [Image.fromarray(np.full((20, 20, 3), 15 * i, np.uint8)) for i in range(16)]
    cover = Image.new("RGB", (20, 20), "red")
    cover.save(tmp_path / "a.png", save_all=True, append_images=frames, default_image=True, duration=100)
    frames[0].save(tmp_path / "b.png", save_all=True, append_images=frames[1:], duration=100)
    for name in ("a.png", "b.png"):
        clips, _ = decode(tmp_path / name)
        assert [clip.start for clip in clips] == [0.0, 0.5]
        np.testing.assert_allclose(clips[1].video.mean((1, 2, 3)), 15 * np.arange(5, 15), atol=3)
    # As context for an image, it is the image that a viewer without animations shows.
    assert corners(read_image(tmp_path / "a.png", 16))[0] == (1, 0, 0)


@pytest.mark.skipif(
    not features.check("avif"), reason="this Pillow does not write AVIF, with which the test makes HEIF"
)
@pytest.mark.parametrize("name", ["photo.heic", "photo.heif", "photo", "photo.mp4"])
def test_images_in_iso_media_files_are_refused_by_name(tmp_path, name):
    Image.fromarray(quadrants(512, 512)).save(tmp_path / "a.avif")
    data = (tmp_path / "a.avif").read_bytes()
    # Pillow reads AVIF whatever its name; HEIC has the same boxes, and PyAV would show the first of its tiles.
    (tmp_path / "b").write_bytes(data)
    assert corners(decode(tmp_path / "b")[0][0].image) == UPRIGHT
    (tmp_path / name).write_bytes(data.replace(b"avif", b"heic"))
    assert reason(tmp_path / name) == "an image in a HEIF or AVIF file"
    with pytest.raises(UserError, match=mentions(name, "HEIF", "JPEG")):
        read_image(tmp_path / name, 16)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_images_of_one_pixel(tmp_path, size):
    pixels = np.full((*size, 3), (200, 100, 50), np.uint8)
    for name in ("a.png", "a.gif", "a.webp", "a.tiff", "a.bmp"):
        Image.fromarray(pixels).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
        np.testing.assert_allclose(decode(tmp_path / name)[0][0].image, np.full((16, 16, 3), pixels[0, 0]), atol=6)


def test_the_preview_of_a_raw_photograph_is_not_taken_for_it(tmp_path):
    gray = np.full((20, 20), 100, np.uint8)
    for name in ("photo.dng", "photo.nef", "photo.tiff"):
        assert reason(write_tiff(tmp_path / name, gray, preview=True)) == "a raw photograph"
        with pytest.raises(UserError, match=mentions(name, "JPEG")):
            read_image(tmp_path / name, 16)


def test_one_transparent_value(tmp_path):
    stripes = np.full((40, 40), 100, np.uint8)
    stripes[:, 20:] = 200
    for name, pixels, transparent in (("8.png", stripes, 200), ("16.png", stripes * np.uint16(257), 200 * 257)):
        Image.fromarray(pixels).save(tmp_path / name, transparency=transparent)
        image = decode(tmp_path / name)[0][0].image
        assert abs(int(image[8, 3, 0]) - 100) < 4 and image[8, 13].tolist() == [255, 255, 255]
