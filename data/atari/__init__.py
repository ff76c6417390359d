"""Atari: clips of a console game under a random policy, with their sound and actions. Importing this is cheap."""

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfflow.errors import UserError
from selfflow.serialization import digest

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

SPLITS = ("train", "validation", "test")
SOURCE_FRAMES_PER_SECOND = 60
ACTION_NAMES = (
    *("NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT", "UPLEFT", "DOWNRIGHT", "DOWNLEFT", "UPFIRE"),
    *("RIGHTFIRE", "LEFTFIRE", "DOWNFIRE", "UPRIGHTFIRE", "UPLEFTFIRE", "DOWNRIGHTFIRE", "DOWNLEFTFIRE"),
)
_POSITIVE = ("frames", "frames_per_second", "size", "sample_rate", "action_seconds", "clips_per_episode")
_WHOLE = ("frames", "size", "sample_rate", "seed", "clips_per_episode", *(f"{split}_clips" for split in SPLITS))


@dataclass(frozen=True)
class Atari:
    """The settings of the Atari data set; a changed setting is another data set on disk."""

    kind: Literal["atari"] = "atari"
    """Tells this data set from the others in an experiment file."""
    game: str = "pong"
    """Which game, as ale-py calls it: pong, breakout, ms_pacman, space_invaders and about a hundred others."""
    frames: int = 25
    """Frames of a clip."""
    frames_per_second: float = 12.5
    """Frames per second of a clip, at most the console's 60."""
    size: int = 32
    """Height and width of a frame, pixels: the whole screen, resized."""
    sample_rate: int = 8000
    """Samples of sound per second; must give a whole number per clip."""
    train_clips: int = 512
    """Clips of the split train."""
    validation_clips: int = 64
    """Clips of the split validation."""
    test_clips: int = 64
    """Clips of the split test."""
    seed: int = 0
    """Seed of the policy; every episode draws from (seed, split, number of the episode)."""
    action_seconds: float = 0.4
    """Mean time for which the random policy holds an action, seconds."""
    skip_seconds: float = 2.0
    """Play before the first clip of an episode, seconds."""
    clips_per_episode: int = 16
    """Most clips of an episode, one after another; then the console is reset."""

    def __post_init__(self):
        for name in (*_POSITIVE, "seed", "skip_seconds", *(f"{split}_clips" for split in SPLITS)):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value)):
                raise UserError(f"atari.{name} = {value!r}: must be a finite number")
            if name in _WHOLE and not isinstance(value, int):
                raise UserError(f"atari.{name} = {value!r}: must be a whole number")
            if value < 0 or name in _POSITIVE and value == 0:
                raise UserError(
                    f"atari.{name} = {value!r}: must {'be above 0' if name in _POSITIVE else 'not be negative'}"
                )
        if self.train_clips < 1:
            raise UserError("atari.train_clips = 0: train needs a clip")
        if self.frames_per_second > SOURCE_FRAMES_PER_SECOND:
            raise UserError(f"atari.frames_per_second = {self.frames_per_second:g}: the console shows no more than 60")
        samples = self.frames * self.sample_rate / self.frames_per_second
        if abs(samples - round(samples)) > 1e-6:
            raise UserError(
                f"atari.sample_rate = {self.sample_rate}: {self.frames} frames at {self.frames_per_second:g} would "
                f"last {samples:.3f} samples, not a whole number; change one of the three"
            )

    @property
    def seconds(self) -> float:
        """Length of a clip."""
        return self.frames / self.frames_per_second

    @property
    def samples(self) -> int:
        """Samples of sound in a clip."""
        return round(self.seconds * self.sample_rate)

    @property
    def config_name(self) -> str:
        """Name of the TFDS config: every setting changes it."""
        game = re.sub(r"[^a-z0-9]+", "_", self.game.lower())
        return f"{game}_{digest(dataclasses.asdict(self), 10)}"

    def clips(self, split: str) -> int:
        """Number of clips of `split`."""
        return getattr(self, f"{split}_clips")

    @property
    def licence(self) -> str:
        """Licence of the records."""
        return "ALE is GPL-2.0; the games belong to their makers"

    def media_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the media of a record, by modality."""
        still = (self.size, self.size, 3)
        return {"video": (self.frames, *still), "audio": (self.samples,), "image": still}

    def build(self, data_dir: Path) -> "tfds.core.DatasetBuilder":
        """Returns the TFDS builder of this set under `data_dir`; plays the game first if the set is not there.

        Raises:
          UserError: ale-py is missing, it has no such game, the game cannot be played by one, or gives no clips;
            or `data_dir` cannot be written.
        """
        from selfflow.data.atari.builder import build

        return build(self, Path(data_dir))
