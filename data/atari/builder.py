"""The TFDS builder of Atari."""

import dataclasses
import importlib.metadata
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from selfflow.data.atari import ACTION_NAMES, Atari
from selfflow.data.atari.console import Console
from selfflow.data.atari.episode import clips
from selfflow.data.writing import Config, RecordsBuilder, prepare
from selfflow.errors import UserError
from selfflow.progress import Progress

_MOST_EMPTY_EPISODES = 8


class AtariBuilder(RecordsBuilder, skip_registration=True):
    """Plays the game of `builder_config.settings`."""

    name = "atari"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        settings = self.builder_config.settings

        def tensor(dtype: type, *shape: int) -> tfds.features.Tensor:
            return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

        image = (settings.size, settings.size, 3)
        scalar = tfds.features.Scalar
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"The game {settings.game} under a random policy: video, audio, actions and score.",
            license=settings.licence,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "video": tensor(np.uint8, settings.frames, *image),
                    "audio": tensor(np.int16, settings.samples),
                    "image": tensor(np.uint8, *image),
                    "present": dict.fromkeys(("video", "audio", "image"), scalar(np.bool_)),
                    "quality": scalar(np.float32),
                    "action": tensor(np.int32, settings.frames),
                    "score": tensor(np.float32, settings.frames),
                    "lives": scalar(np.int32),
                }
            ),
            metadata=tfds.core.MetadataDict(settings=dataclasses.asdict(settings), actions=list(ACTION_NAMES)),
        )

    def records(self) -> Iterator[tuple[str, dict]]:
        settings = self.builder_config.settings
        console = Console(settings.game)
        # Added here and not in `_info`, because a built data set is read without ale-py.
        self.info.metadata["ale_py"] = importlib.metadata.version("ale-py")
        with_audio = 0
        total = sum(map(settings.clips, settings.splits))
        with Progress(f"building atari {settings.game}", total, unit="clips") as progress:
            for split in settings.splits:
                records = itertools.islice(_endless_clips(settings, console, split), settings.clips(split))
                for number, record in enumerate(records):
                    with_audio += record["present"]["audio"]
                    progress.advance()
                    yield split, {"id": f"atari-{settings.game}-{split}-{number:06d}", **record}
        # Clips of silent games have video only.
        if not with_audio:
            print(f"atari: {settings.game} makes no sound; no clip has audio", file=sys.stderr)


def _endless_clips(settings: Atari, console: Console, split: str) -> Iterator[dict]:
    """Yields the records of successive episodes without end.

    Raises:
      UserError: several successive episodes are shorter than a clip.
    """
    empty = 0
    for number in itertools.count():
        count = 0
        for record in clips(settings, console, split, number):
            count += 1
            yield record
        empty = 0 if count else empty + 1
        if empty == _MOST_EMPTY_EPISODES:
            raise UserError(
                f"atari.frames = {settings.frames}: {empty} episodes of {settings.game} in a row ended before a clip "
                f"of {settings.seconds:g} s did; lower frames or skip_seconds"
            )


def build(settings: Atari, data_dir: Path) -> AtariBuilder:
    """Returns the TFDS builder below `data_dir`; plays the game first if the data set does not exist.

    Raises:
      UserError: ale-py is missing, it has no such game, the game needs two players or yields no clips, or `data_dir`
        cannot be written.
    """
    config = Config(name=settings.config_name, settings=settings)
    return prepare(lambda: AtariBuilder(data_dir=str(data_dir), config=config, file_format="array_record"))
