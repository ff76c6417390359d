"""The emulated console, which plays a game frame by frame."""

import importlib.util
from typing import Any

import numpy as np

from selfflow.errors import UserError, did_you_mean

SAMPLES_PER_FRAME = 512
"""Audio samples per frame, uint8 around 128: 30 720 Hz at 60 frames per second."""
FIRE = 1
# Games for two players. ale-py contains their files but ends the process when they are loaded.
_TWO_PLAYERS = ("combat", "joust", "maze_craze", "warlords")


class Console:
    """A game of ale-py; call `start` before playing.

    Raises:
      UserError: ale-py is missing, has no such game, or the game needs two players.
    """

    def __init__(self, game: str):
        if importlib.util.find_spec("ale_py") is None:
            raise UserError("atari: the games are part of ale-py, which is missing: pip install 'selfflow[atari]'")
        import ale_py
        from ale_py import roms

        games = sorted(set(roms.get_all_rom_ids()) - set(_TWO_PLAYERS))
        if game in _TWO_PLAYERS:
            raise UserError(f"atari.game = {game!r}: it needs two players and cannot be played; choose another game")
        if game not in games:
            raise UserError(f"atari.game = {game!r}: no such game; {did_you_mean(game.replace('-', '_'), games)}")
        self._rom = str(roms.get_rom_path(game))
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._new = ale_py.ALEInterface
        self._ale: Any = None

    def start(self) -> None:
        """Starts a new game, always from the same state of the console."""
        self._ale = self._new()
        self._ale.setInt("random_seed", 1)
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.setBool("sound_obs", True)
        self._ale.loadROM(self._rom)
        self._ale.reset_game()

    @property
    def actions(self) -> list[int]:
        """The actions that have an effect in this game, as numbers of ale-py."""
        return [action.value for action in self._ale.getMinimalActionSet()]

    def act(self, action: int) -> tuple[np.ndarray, float]:
        """Plays one frame, a sixtieth of a second.

        Returns:
          The audio of the frame, uint8 [512], and the points scored in it.
        """
        points = self._ale.act(action)
        return self._ale.getAudio().copy(), float(points)

    def screen(self) -> np.ndarray:
        """Returns the current frame, uint8 [210 or so, 160, 3]."""
        return self._ale.getScreenRGB()

    @property
    def lives(self) -> int:
        """Number of remaining lives."""
        return self._ale.lives()

    @property
    def over(self) -> bool:
        """Whether the game is over."""
        return self._ale.game_over()
