"""Clips -> a TFDS data set in ArrayRecord files, written without TensorFlow.

TFDS's own writer shuffles: it keeps a whole split in memory, and past 1 GB it needs TensorFlow's file system. The
pipeline shuffles anyway, so that records are written here as they are decoded, with the files in random order.
"""

import contextlib
import dataclasses
import datetime
import io
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import tensorflow_datasets as tfds
from absl import logging as absl_logging
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from selfflow.data.media import Media
from selfflow.data.media.decode import Clip, clips
from selfflow.data.media.folder import File, fingerprint, position, scan, split_of
from selfflow.data.media.report import FILE, Notes, Remark, Report, format_report
from selfflow.data.media.tracks import Unreadable
from selfflow.errors import UserError
from selfflow.progress import Progress

_SPLITS = ("train", "validation", "test")
_SHARD_BYTES = 256 << 20


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
    """The name says settings and contents; `media` are the settings."""

    media: Media = dataclasses.field(default_factory=Media)


class MediaBuilder(FileReaderBuilder):
    """Clips of the user's own videos, sounds and images. `prepare` makes and fills it."""

    name = "media"
    VERSION = tfds.core.Version("1.0.0")
    files: list[File] = []
    remarks: list[Remark] = []

    def _info(self) -> tfds.core.DatasetInfo:
        media = self.builder_config.media
        array = tfds.features.Tensor
        still = (media.size, media.size, 3)
        zlib = tfds.features.Encoding.ZLIB  # zeros cost next to nothing
        return tfds.core.DatasetInfo(
            builder=self,
            description="Clips of a folder of the user's own videos, sounds and images.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "video": array(shape=(media.frames, *still), dtype=np.uint8, encoding=zlib),
                    "audio": array(shape=(media.samples,), dtype=np.int16, encoding=zlib),
                    "image": array(shape=still, dtype=np.uint8, encoding=zlib),
                    "present": {what: np.bool_ for what in ("video", "audio", "image")},
                    "quality": np.float32,
                }
            ),
        )

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        media, folder = self.builder_config.media, Path(self.data_path)
        report = Report(
            source=media.folder(),
            built=datetime.datetime.now(datetime.UTC).isoformat(),
            settings=dataclasses.asdict(media),
            found=len(self.files),
            skipped=list(self.remarks),
        )
        shards = {split: _Shards(folder, split) for split in _SPLITS}
        with Progress("media", total=len(self.files), unit="files") as progress:
            for file in sorted(self.files, key=lambda file: position(file.relative, media.seed + 1)):
                split = shards[split_of(file.relative, media.seed, media.validation_fraction, media.test_fraction)]
                made = 0
                for clip in _clips_of(file, media, report):
                    split.write(self.info.features.serialize_example(_record(file, clip, media)), _what(clip))
                    made += 1
                    progress.advance(0, note=f"{file.relative[-40:]} {made} clips")
                report.used += made > 0
                progress.advance()
        self.info.set_splits(tfds.core.SplitDict(self._splits(shards, report)))
        report.write(folder)

    def _splits(self, shards: dict[str, "_Shards"], report: Report) -> list[tfds.core.SplitInfo]:
        """Gives the written files their final names. A split without records is left out, train never is."""
        filled = [shards[split].close() for split in _SPLITS if shards[split].lengths]
        if not filled:
            reasons = Counter(remark.reason for remark in report.skipped).most_common()
            listed = ", ".join(f"{count} {reason}" for reason, count in reasons) or "it is empty"
            raise UserError(f"nothing in {report.source} can be used ({listed}); add videos, sounds or images")
        media = self.builder_config.media
        groups = {part.split: [part] for part in filled}
        if "train" not in groups:
            groups = {"train": filled}
            report.notes.append("no file fell to train: too few files to split, all went to train")
        for split, share in (("validation", media.validation_fraction), ("test", media.test_fraction)):
            if share and split not in groups:
                report.notes.append(f"no split {split}: {report.used} files are too few for a fraction of {share:g}")
        infos = []
        for split, parts in groups.items():
            template = self._get_filename_template(split)
            paths = [path for part in parts for path in part.paths]
            for path, final in zip(paths, template.sharded_filepaths(num_shards=len(paths)), strict=True):
                os.rename(path, final)
            lengths = [length for part in parts for length in part.lengths]
            size = sum(part.size for part in parts)
            infos.append(
                tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)
            )
            report.clips[split] = dict(sum((part.what for part in parts), Counter()))
        return infos


class _Shards:
    """Writes the records of one split to one file after another."""

    def __init__(self, folder: Path, split: str):
        self.split, self._folder = split, folder
        self.paths: list[Path] = []
        self.lengths: list[int] = []
        self.what: Counter[str] = Counter()
        self.size = self._size = 0
        self._writer: ArrayRecordWriter | None = None

    def write(self, record: bytes, what: str) -> None:
        if self._writer is None or self._size > _SHARD_BYTES:
            self.close()
            self.paths.append(self._folder / f"unfinished-{self.split}-{len(self.paths):05d}")
            self.lengths.append(0)
            self._size = 0
            self._writer = ArrayRecordWriter(str(self.paths[-1]), "group_size:1")
        self._writer.write(record)
        self.lengths[-1] += 1
        self.what[what] += 1
        self._size += len(record)
        self.size += len(record)

    def close(self) -> "_Shards":
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        return self


def prepare(media: Media, data_dir: Path) -> MediaBuilder:
    """Returns the builder of the data set of `media` below `data_dir`; builds it and prints its report if need be."""
    media.check()
    if not media.source or not Path(media.folder()).exists():
        return _newest(media, data_dir)
    folder = Path(media.folder())
    files, remarks = scan(folder, without=_outputs(folder, data_dir))
    slug = re.sub(r"[^a-z0-9]+", "_", (media.name or folder.name).lower()).strip("_")[:40] or "media"
    builder = _builder(media, data_dir, f"{slug}-{media.key()}-{fingerprint(files)}")
    if _ready(builder):
        return builder
    builder.files, builder.remarks = files, remarks
    with _quiet():
        try:
            builder.download_and_prepare(file_format="array_record")
        except OSError:
            if not _ready(builder):  # else another process was first to finish the same data set
                raise
    builder = _builder(media, data_dir, builder.builder_config.name)
    print(format_report(json.loads((Path(builder.data_path) / FILE).read_text())))
    return builder


def _newest(media: Media, data_dir: Path) -> MediaBuilder:
    """The last data set built with these settings from this source, or under this name, with a line on stderr."""
    found = []
    for path in data_dir.glob(f"media/*-{media.key()}-*/{MediaBuilder.VERSION}/{FILE}"):
        found.append((json.loads(path.read_text())["built"], path.parent.parent.name))
    wanted = media.folder() or media.name
    if not found:
        missing = f"the folder {wanted} does not exist" if media.source else f"no data set {wanted!r} was built"
        raise UserError(f"{missing}, and {data_dir} holds no data set of it with these settings; check media.source")
    built, name = max(found)
    print(f"media: {wanted} is not there; using the data set built from it at {built[:19]} UTC", file=sys.stderr)
    return _builder(media, data_dir, name)


def _outputs(folder: Path, data_dir: Path) -> tuple[Path, ...]:
    """Folders that hold data sets, which are no media even where they lie inside the user's folder."""
    inside = Path(os.path.realpath(data_dir)) != Path(os.path.realpath(folder))
    return (data_dir, data_dir / "media") if inside else (data_dir / "media",)


def _builder(media: Media, data_dir: Path, name: str) -> MediaBuilder:
    with _quiet():
        return MediaBuilder(data_dir=str(data_dir), config=Config(name=name, media=media), file_format="array_record")


def _ready(builder: MediaBuilder) -> bool:
    return (Path(builder.data_path) / FILE).exists()


def _clips_of(file: File, media: Media, report: Report) -> Iterator[Clip]:
    """The clips of a file, whatever is wrong with it: that goes to the report."""
    notes, made = Notes(), 0
    try:
        for clip in clips(file.path, media, notes):
            made += 1
            yield clip
    except Unreadable as error:
        problem = Remark(file.relative, error.reason, error.detail)
    except Exception as error:  # decoders meet the strangest files, and one of them must not end the build
        problem = Remark(file.relative, "unreadable", f"{type(error).__name__}: {error}".splitlines()[0])
    else:
        problem = None
    remarks = notes.remarks(file.relative) + ([problem] if problem else [])
    (report.partial if made else report.skipped).extend(remarks)


def _record(file: File, clip: Clip, media: Media) -> dict[str, Any]:
    still = (media.size, media.size, 3)
    absent = {
        "video": np.zeros((media.frames, *still), np.uint8),
        "audio": np.zeros(media.samples, np.int16),
        "image": np.zeros(still, np.uint8),
    }
    arrays = {what: getattr(clip, what) for what in absent}
    return {
        "id": file.relative if clip.start is None else f"{file.relative}@{clip.start:.3f}",
        **{what: absent[what] if array is None else array for what, array in arrays.items()},
        "present": {what: array is not None for what, array in arrays.items()},
        "quality": 1.0,
    }


def _what(clip: Clip) -> str:
    if clip.video is not None:
        return "video" if clip.audio is None else "video with sound"
    return "image" if clip.audio is None else "sound"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No logs or prints of TFDS, libav and Pillow: progress is shown by Progress, errors by the report."""
    pillow = logging.getLogger("PIL")
    verbosity, level, pillow_level = absl_logging.get_verbosity(), av.logging.get_level(), pillow.level
    absl_logging.set_verbosity(absl_logging.ERROR)
    av.logging.set_level(None)
    pillow.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        pillow.setLevel(pillow_level)
        absl_logging.set_verbosity(verbosity)
        av.logging.set_level(level)
