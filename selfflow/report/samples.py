"""Samples of a study, small enough to stand inside a page: films with their sound, sounds, pictures."""

import base64
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from selfflow.report.study import Member, Study

_KINDS = {".mp4": "video/mp4", ".wav": "audio/wav", ".png": "image/png"}
_NUMBER = re.compile(r"(?:(.*)_)?(\d+)")


class Sample(NamedTuple):
    """One film, sound or picture.

    Attributes:
      member: whose.
      title: the component or case, and its number.
      kind: media type.
      data: the file as a data URI.
      poster: of a film its first frame, as a data URI; else empty.
      size: width and height of films and pictures.
    """

    member: Member
    title: str
    kind: str
    data: str
    poster: str
    size: tuple[int, int]


def chosen_samples(study: Study, count: int, megabytes: float) -> tuple[list[Sample], list[str]]:
    """Samples of the first member of each arm that has any: as many of every arm, until the limit is reached.

    Args:
      study: the runs.
      count: clips of each component or case of an arm, besides its sheets of all.
      megabytes: what all of them may take in the page.

    Returns:
      Them, arm by arm, and what was left out, and why.
    """
    notes: list[str] = []
    wanted = [item for arm in study.arms for item in _of_arm(study.done(arm), arm, count, notes)]
    taken: list[tuple[int, Sample]] = []
    left, out = megabytes * 1e6, 0
    for number, (_, member, title, path) in sorted(enumerate(wanted), key=lambda item: (item[1][0], item[0])):
        encoded = 4 * -(-path.stat().st_size // 3)
        if encoded > left:
            out += 1
            continue
        sample = _read(member, title, path)
        if sample is None:
            notes.append(f"{path} cannot be read, and is left out")
            continue
        left -= len(sample.data) + len(sample.poster)
        taken.append((number, sample))
    if out:
        notes.append(
            f"{out} of {len(wanted)} samples are left out: all shown take at most {megabytes:g} MB (--megabytes)"
        )
    return [sample for _, sample in sorted(taken, key=lambda item: item[0])], notes


def _of_arm(members: list[Member], arm: str, count: int, notes: list[str]) -> list[tuple[int, Member, str, Path]]:
    """(what is shown first, whose, title, file) of an arm."""
    for member in members:
        folder = member.run.path / "samples" / f"step_{member.summary['steps']}"
        if found := list(_files(folder, count)):
            return [(order, member, title, path) for order, title, path in found]
    if members:
        notes.append(f"{arm}: no samples of its last step")
    return []


def _files(folder: Path, count: int) -> Iterable[tuple[int, str, Path]]:
    """(what is shown first, title, file) of a folder of samples and of the cases below it."""
    for path in sorted(folder.rglob("*"), key=lambda path: (path.parent != folder, path)):
        if path.suffix not in _KINDS or not path.is_file():
            continue
        case = [] if path.parent == folder else [str(path.parent.relative_to(folder))]
        match = _NUMBER.fullmatch(path.stem)
        if match is None:  # a sheet of many
            yield 1, ", ".join([*case, path.stem]), path
            continue
        if path.suffix == ".wav" and path.with_suffix(".mp4").exists():
            continue  # the film has it
        index = int(match[2])
        if index < count:
            yield 2 * index, ", ".join([*case, *filter(None, [match[1]]), str(index)]), path


def _read(member: Member, title: str, path: Path) -> Sample | None:
    """A file as it stands in a page; None where it is damaged."""
    import av
    from PIL import Image

    poster, size = "", (0, 0)
    try:
        if path.suffix == ".mp4":
            with av.open(str(path)) as film:
                first = next(film.decode(video=0)).to_image()
            poster, size = _uri("image/jpeg", _jpeg(first)), first.size
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
                size = picture.size
        elif path.read_bytes()[:4] != b"RIFF":
            return None
        return Sample(member, title, _KINDS[path.suffix], _uri(_KINDS[path.suffix], path.read_bytes()), poster, size)
    except (OSError, av.FFmpegError, StopIteration, IndexError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _jpeg(picture) -> bytes:
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=80)
    return written.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
