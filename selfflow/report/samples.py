"""Samples of a study as data URIs for the page: videos with audio, audio and images."""

import base64
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from selfflow.media import MEDIA
from selfflow.report.study import Member, Study

if TYPE_CHECKING:
    from PIL.Image import Image

_TYPES = {".mp4": "video/mp4", ".wav": "audio/wav", ".png": "image/png"}
_NUMBER = re.compile(r"(?:(.*)_)?(\d+)")
_SHEET_WIDTH = 400  # pixels; wider images are sheets of several samples


class Sample(NamedTuple):
    """A video, audio clip or image of a run.

    Attributes:
      member: run of the sample.
      title: component or case, and number of the sample.
      media_type: media type of the file.
      data: content of the file as a data URI.
      poster: first frame of a video as a data URI; empty for other media.
      size: width and height of a video or image, in pixels.
    """

    member: Member
    title: str
    media_type: str
    data: str
    poster: str
    size: tuple[int, int]

    @property
    def is_sheet(self) -> bool:
        """Whether the image shows several samples."""
        return self.media_type == "image/png" and self.size[0] > _SHEET_WIDTH


class _File(NamedTuple):
    """Media file of a run. Files of lower rank are embedded first."""

    rank: int
    member: Member
    title: str
    path: Path


def select_samples(study: Study, count: int, megabytes: float) -> tuple[list[Sample], list[str]]:
    """Selects samples of each arm, from its first run that has any, up to a limit of size.

    Args:
      study: the study.
      count: number of clips for each component or case of an arm, in addition to sheets.
      megabytes: limit on the size of all samples in the page.

    Returns:
      The samples in the order of the arms, and notes about omitted samples.
    """
    notes: list[str] = []
    files: list[_File] = []
    for arm in study.arms:
        files.extend(_files_of_arm(study.done(arm), arm, count, notes))
    samples: dict[int, Sample] = {}
    left, omitted = megabytes * 1e6, 0
    # In the order of ranks: the first clips of all arms precede the second ones, so that the limit affects all arms.
    for index in sorted(range(len(files)), key=lambda index: files[index].rank):
        file = files[index]
        encoded = 4 * -(-file.path.stat().st_size // 3)  # base64 has 4 characters for 3 bytes
        if encoded > left:
            omitted += 1
            continue
        sample = _read(file)
        if sample is None:
            notes.append(f"{file.path} cannot be read and is left out")
            continue
        left -= len(sample.data) + len(sample.poster)
        samples[index] = sample
    if omitted:
        notes.append(
            f"{omitted} of {len(files)} samples are left out: those in the page take at most {megabytes:g} MB "
            "(--megabytes)"
        )
    return [samples[index] for index in sorted(samples)], notes


def _files_of_arm(members: list[Member], arm: str, count: int, notes: list[str]) -> list[_File]:
    """Returns the sample files of the first run of an arm that has any; adds notes about omitted files."""
    for member in members:
        files = list(_files_of_run(member, count))
        if files:
            folder = files[0].path.parent
            for suffix in sorted({medium.suffix for medium in MEDIA.values()} - set(_TYPES)):
                if any(folder.glob(f"*{suffix}")):
                    notes.append(f"{arm}: a page cannot show samples in {suffix} files; see its sheets")
            return files
    if members:
        notes.append(f"{arm}: no samples of its last step")
    return []


def _files_of_run(member: Member, count: int) -> Iterable[_File]:
    """Yields the sample files of a run's last step, in its folder and then in subfolders for cases of context."""
    folder = member.run.path / "samples" / f"step_{member.summary['steps']}"
    for path in sorted(folder.rglob("*"), key=lambda path: (path.parent != folder, path)):
        if path.suffix not in _TYPES or not path.is_file():
            continue
        title = [] if path.parent == folder else [str(path.parent.relative_to(folder))]
        match = _NUMBER.fullmatch(path.stem)
        if match is None:
            # Sheets have no number. Their rank is after that of the first clips.
            yield _File(1, member, ", ".join([*title, path.stem]), path)
            continue
        if path.suffix == ".wav" and path.with_suffix(".mp4").exists():
            continue  # the video contains the audio
        component, index = match.groups()
        if int(index) < count:
            title += [component] if component else []
            yield _File(2 * int(index), member, ", ".join([*title, str(int(index))]), path)


def _read(file: _File) -> Sample | None:
    """Reads a file as a sample; returns None if it is damaged."""
    import av
    from PIL import Image

    path, poster, size = file.path, "", (0, 0)
    # The file is decoded to detect damage, which a browser would show as an empty frame without a message.
    try:
        if path.suffix == ".mp4":
            with av.open(str(path)) as video:
                frame = next(video.decode(video=0)).to_image()
            poster, size = _data_uri("image/jpeg", _jpeg(frame)), frame.size
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
                size = image.size
        elif path.read_bytes()[:4] != b"RIFF":  # the magic number of WAV
            return None
        data = _data_uri(_TYPES[path.suffix], path.read_bytes())
        return Sample(file.member, file.title, _TYPES[path.suffix], data, poster, size)
    except (OSError, av.FFmpegError, StopIteration, IndexError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _jpeg(image: "Image") -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()


def _data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
