"""Clips of media files as a TFDS data set."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import tensorflow_datasets as tfds

from selfflow.data.folder import File
from selfflow.data.folder_builder import FileRecord, FolderBuilder, build_folder, open_newest
from selfflow.data.media import Media
from selfflow.data.media.decode import Clip, clips
from selfflow.data.report import Notes
from selfflow.media import medium_of


class MediaBuilder(FolderBuilder, skip_registration=True):
    """Writes clips of the user's own videos, audio files and images."""

    name = "media"
    VERSION = tfds.core.Version("1.0.0")
    remedy: ClassVar[str] = "; add videos, audio files or images"

    def _info(self) -> tfds.core.DatasetInfo:
        media = self.builder_config.settings
        features = {"id": tfds.features.Text(), "present": {}, "quality": np.float32}
        for modality, shape in media.media_shapes().items():
            dtype = np.dtype(medium_of(modality).dtype).type
            # Absent media are zeros, which take almost no space compressed.
            features[modality] = tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.ZLIB)
            features["present"][modality] = np.bool_
        return tfds.core.DatasetInfo(
            builder=self,
            description="Clips of a folder of the user's own videos, audio files and images.",
            features=tfds.features.FeaturesDict(features),
        )

    def records_of(self, file: File, notes: Notes) -> Iterator[FileRecord]:
        media = self.builder_config.settings
        for clip in clips(file.path, media, notes):
            yield FileRecord(_content(clip), _record(file, clip, media))


def build(media: Media, data_dir: Path) -> MediaBuilder:
    """Returns the TFDS builder below `data_dir`; builds the data set and prints its report if it does not exist.

    A folder whose files changed (paths, sizes, times) is built again. If the folder does not exist, the newest data set
    that was built from it with these settings is used, and a line on stderr reports it.

    Raises:
      UserError: a setting is invalid, the folder cannot be read, or nothing in it can be used.
    """
    media.check()
    folder = Path(media.folder())
    if not media.source or not folder.exists():
        return open_newest(MediaBuilder, media, data_dir)
    files, remarks = media.contents(data_dir)
    with _quiet_decoders():
        return build_folder(MediaBuilder, media, data_dir, files, files=files, remarks=remarks)


def _record(file: File, clip: Clip, media: Media) -> dict[str, Any]:
    record: dict[str, Any] = {"id": file.relative, "present": {}, "quality": 1.0}
    if clip.start is not None:
        record["id"] = f"{file.relative}@{clip.start:.3f}"
    for modality, shape in media.media_shapes().items():
        array = getattr(clip, modality)
        record["present"][modality] = array is not None
        record[modality] = np.zeros(shape, medium_of(modality).dtype) if array is None else array
    return record


def _content(clip: Clip) -> str:
    if clip.video is not None:
        return "video" if clip.audio is None else "video with audio"
    return "image" if clip.audio is None else "audio"


@contextlib.contextmanager
def _quiet_decoders() -> Iterator[None]:
    """Silences the logs of libav and Pillow, whose errors are in the report."""
    pillow = logging.getLogger("PIL")
    level, pillow_level = av.logging.get_level(), pillow.level
    av.logging.set_level(None)
    pillow.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        pillow.setLevel(pillow_level)
        av.logging.set_level(level)
