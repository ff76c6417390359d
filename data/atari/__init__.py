"""Atari: clips of a console game under a random policy, with audio and actions. Importing this module is cheap."""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from selfflow.data.checks import check_numbers, require
from selfflow.data.generated import GeneratedSettings, settings_hash
from selfflow.errors import check_above_zero, check_at_least

CONSOLE_FRAMES_PER_SECOND = 60
ACTION_NAMES = (
    *("NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT", "UPLEFT", "DOWNRIGHT", "DOWNLEFT", "UPFIRE"),
    *("RIGHTFIRE", "LEFTFIRE", "DOWNFIRE", "UPRIGHTFIRE", "UPLEFTFIRE", "DOWNRIGHTFIRE", "DOWNLEFTFIRE"),
)


@dataclass(frozen=True)
class Atari(GeneratedSettings):
    """The settings of the Atari data set; other settings define another data set."""

    kind: Literal["atari"] = "atari"
    """Name of the data set."""
    game: str = "pong"
    """Name of the game in ale-py: pong, breakout, ms_pacman, space_invaders and about a hundred others."""
    action_seconds: float = 0.4
    """Mean time for which the random policy holds an action, seconds."""
    skip_seconds: float = 2.0
    """Duration of play before the first clip of an episode, seconds."""
    clips_per_episode: int = 16
    """Maximum number of successive clips of an episode, after which the console is reset."""
    licence: ClassVar[str] = "ALE is GPL-2.0; the games belong to their makers"
    package: ClassVar[str] = "ale_py"
    extra: ClassVar[str] = "atari"

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, "action_seconds", "skip_seconds")
        check_numbers(self, "clips_per_episode", whole=True)
        check_above_zero(self, "atari.", "action_seconds", "clips_per_episode")
        check_at_least(self, "atari.", skip_seconds=0)
        within = self.frames_per_second <= CONSOLE_FRAMES_PER_SECOND
        require(within, self, "frames_per_second", f"the console has no more than {CONSOLE_FRAMES_PER_SECOND}")

    @property
    def config_name(self) -> str:
        """Name of the TFDS config, which depends on every setting."""
        return f"{re.sub(r'[^a-z0-9]+', '_', self.game.lower())}_{settings_hash(self)}"
