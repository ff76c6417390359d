"""Clips -> a TFDS data set, in the order in which they are decoded, with the files in random order."""

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import tensorflow_datasets as tfds

from selfflow.data import writing
from selfflow.data.folder import File, fingerprint, position, scan, split_of
from selfflow.data.media import Media
from selfflow.data.media.decode import Clip, clips
from selfflow.data.media.tracks import Unreadable
from selfflow.data.report import FILE, Notes, Remark, Report, format_report
from selfflow.data.writing import Config, RecordsBuilder, Shards, newest, quiet
from selfflow.errors import UserError
from selfflow.progress import Progress

_SPLITS = ("train", "validation", "test")


class MediaBuilder(RecordsBuilder, skip_registration=True):
    """Clips of the user's own videos, sounds and images. `build` makes and fills it."""

    name = "media"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, files: list[File] = (), remarks: list[Remark] = (), **kwargs):
        self.files, self.remarks = files, remarks
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        media = self.builder_config.settings
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

    def records(self) -> Iterator[tuple[str, dict]]:
        media = self.builder_config.settings
        self._what: dict[str, Counter[str]] = {split: Counter() for split in _SPLITS}
        self._report = report = Report(
            source=media.folder(),
            built=datetime.datetime.now(datetime.UTC).isoformat(),
            settings=dataclasses.asdict(media),
            found=len(self.files),
            skipped=list(self.remarks),
        )
        with Progress("media", total=len(self.files), unit="files") as progress:
            for file in sorted(self.files, key=lambda file: position(file.relative, media.seed + 1)):
                split = split_of(file.relative, media.seed, media.validation_fraction, media.test_fraction)
                made = 0
                for clip in _clips_of(file, media, report):
                    yield split, _record(file, clip, media)
                    self._what[split][_what(clip)] += 1
                    made += 1
                    progress.advance(0, note=f"{file.relative[-40:]} {made} clips")
                report.used += made > 0
                progress.advance()

    def arranged(self, written: dict[str, Shards]) -> dict[str, list[Shards]]:
        """A split without records is left out, train never is."""
        media, report = self.builder_config.settings, self._report
        groups = {split: [split] for split in _SPLITS if split in written}
        if not groups:
            reasons = Counter(remark.reason for remark in report.skipped).most_common()
            listed = ", ".join(f"{count} {reason}" for reason, count in reasons) or "it is empty"
            raise UserError(f"nothing in {report.source} can be used ({listed}); add videos, sounds or images")
        if "train" not in groups:
            groups = {"train": list(groups)}
            report.notes.append("no file fell to train: too few files to split, all went to train")
        for split, share in (("validation", media.validation_fraction), ("test", media.test_fraction)):
            if share and split not in groups:
                report.notes.append(f"no split {split}: {report.used} files are too few for a fraction of {share:g}")
        report.clips = {split: dict(sum((self._what[p] for p in parts), Counter())) for split, parts in groups.items()}
        return {split: [written[part] for part in parts] for split, parts in groups.items()}

    def finished(self, folder: Path) -> None:
        self._report.write(folder)


def build(media: Media, data_dir: Path) -> MediaBuilder:
    """Returns the builder of the data set of `media` below `data_dir`; builds it and prints its report if need be."""
    media.check()
    if not media.source or not Path(media.folder()).exists():
        with quiet():
            return _builder(media, data_dir, newest(MediaBuilder, media, data_dir, FILE))
    folder = Path(media.folder())
    files, remarks = scan(media, excluded=_outputs(folder, data_dir))
    slug = re.sub(r"[^a-z0-9]+", "_", (media.name or folder.name).lower()).strip("_")[:40] or "media"
    name = f"{slug}-{media.key()}-{fingerprint(files)}"
    with quiet():
        if (ready := _builder(media, data_dir, name)).is_prepared():
            return ready
    with _quiet_decoders():
        builder = writing.prepare(lambda: _builder(media, data_dir, name, files=files, remarks=remarks))
    print(format_report(json.loads((Path(builder.data_path) / FILE).read_text())))
    return builder


def _outputs(folder: Path, data_dir: Path) -> tuple[Path, ...]:
    """Folders that hold data sets, which are no media even where they lie inside the user's folder."""
    inside = Path(os.path.realpath(data_dir)) != Path(os.path.realpath(folder))
    return (data_dir, data_dir / "media") if inside else (data_dir / "media",)


def _builder(media: Media, data_dir: Path, name: str, **found) -> MediaBuilder:
    config = Config(name=name, settings=media)
    return MediaBuilder(data_dir=str(data_dir), config=config, file_format="array_record", **found)


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
def _quiet_decoders() -> Iterator[None]:
    """No logs of libav and Pillow: errors are shown by the report."""
    pillow = logging.getLogger("PIL")
    level, pillow_level = av.logging.get_level(), pillow.level
    av.logging.set_level(None)
    pillow.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        pillow.setLevel(pillow_level)
        av.logging.set_level(level)
