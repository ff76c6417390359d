"""Images of every kind."""

import numpy as np
from PIL import Image

from tests.data.media_files import decode, quadrants, reason, write_video


def corners(image):
    return [tuple((image[y, x] > 127).astype(int).tolist()) for y in (3, 12) for x in (3, 12)]


UPRIGHT = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)]


def test_exif_orientation(tmp_path):
    turn = Image.Transpose
    for orientation, undo in ((1, None), (3, turn.ROTATE_180), (6, turn.ROTATE_90), (8, turn.ROTATE_270)):
        image = Image.fromarray(quadrants())
        exif = Image.Exif()
        exif[0x0112] = orientation
        (image if undo is None else image.transpose(undo)).save(tmp_path / "turned.jpg", exif=exif, quality=95)
        (clip,), _ = decode(tmp_path / "turned.jpg")
        assert corners(clip.image) == UPRIGHT, orientation
        assert clip.start is None and clip.video is None and clip.audio is None


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
    assert len(decode(tmp_path / "ten_minutes.gif")[0]) < 50  # one byte says ten minutes
