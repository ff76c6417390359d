"""Clips of episodes -> a TFDS data set."""

import dataclasses
import importlib.metadata
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from selfflow.data.atari import ACTION_NAMES, SPLITS, Atari
from selfflow.data.atari.console import Console
from selfflow.data.atari.episode import clips
from selfflow.data.writing import Config, RecordsBuilder, prepare
from selfflow.errors import UserError
from selfflow.progress import Progress

_EMPTY_EPISODES = 8


class AtariBuilder(RecordsBuilder, skip_registration=True):
    """Plays the game of `builder_config.settings`; use `Atari.build`."""

    name = "atari"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        settings = self.builder_config.settings

        def tensor(dtype: type, *shape: int) -> tfds.features.Tensor:
            return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

        still = (settings.size, settings.size, 3)
        scalar = tfds.features.Scalar
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"The game {settings.game} under a random policy: picture, sound, actions and score.",
            license=settings.licence,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "video": tensor(np.uint8, settings.frames, *still),
                    "audio": tensor(np.int16, settings.samples),
                    "image": tensor(np.uint8, *still),
                    "present": {name: scalar(np.bool_) for name in ("video", "audio", "image")},
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
        self.info.metadata["ale_py"] = importlib.metadata.version("ale-py")
        sounding = 0
        with Progress(f"building atari {settings.game}", sum(map(settings.clips, SPLITS)), unit="clips") as shown:
            for split in SPLITS:
                for made, record in enumerate(
                    itertools.islice(_clips(settings, console, split), settings.clips(split))
                ):
                    sounding += record["present"]["audio"]
                    shown.advance()
                    yield split, {"id": f"atari-{settings.game}-{split}-{made:06d}", **record}
        if not sounding:
            print(f"atari: {settings.game} made no sound; no clip has audio", file=sys.stderr)


def _clips(settings: Atari, console: Console, split: str) -> Iterator[dict]:
    empty = 0
    for number in itertools.count():
        made = 0
        for record in clips(settings, console, split, number):
            made += 1
            yield record
        empty = 0 if made else empty + 1
        if empty == _EMPTY_EPISODES:
            raise UserError(
                f"atari.frames = {settings.frames}: {_EMPTY_EPISODES} episodes of {settings.game} on end were over "
                f"before a clip of {settings.seconds:g} s was; lower frames or skip_seconds"
            )


def build(settings: Atari, data_dir: Path) -> AtariBuilder:
    """See `Atari.build`."""
    config = Config(name=settings.config_name, settings=settings)
    return prepare(lambda: AtariBuilder(data_dir=str(data_dir), config=config, file_format="array_record"))
