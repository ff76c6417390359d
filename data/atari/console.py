"""The console: which games there are, and playing one under a policy, frame by frame."""

import importlib.util
from typing import Any

import numpy as np

from selfflow.errors import UserError, did_you_mean

SAMPLES_PER_FRAME = 512
"""Of the console's sound, uint8 around 128, at 60 frames a second: 30 720 Hz."""
FIRE = 1
# For two players only: ale-py knows the files but ends the process when they are loaded.
_REFUSED = ("combat", "joust", "maze_craze", "warlords")


class Console:
    """A game that is played; starts switched off, see `start`.

    Raises:
      UserError: ale-py is missing, or has no such game, or not for one player.
    """

    def __init__(self, game: str):
        if importlib.util.find_spec("ale_py") is None:
            raise UserError("atari: the games come with ale-py, which is missing: pip install 'selfflow[atari]'")
        import ale_py
        from ale_py import roms

        games = sorted(set(roms.get_all_rom_ids()) - set(_REFUSED))
        if game in _REFUSED:
            raise UserError(f"atari.game = {game!r}: it needs two players and cannot be played; choose another game")
        if game not in games:
            raise UserError(f"atari.game = {game!r}: no such game; {did_you_mean(game.replace('-', '_'), games)}")
        self._rom = str(roms.get_rom_path(game))
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._new = ale_py.ALEInterface
        self._ale: Any = None

    def start(self) -> None:
        """Switches the console on: the same state every time, at the beginning of a game."""
        self._ale = self._new()
        self._ale.setInt("random_seed", 1)
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.setBool("sound_obs", True)
        self._ale.loadROM(self._rom)
        self._ale.reset_game()

    @property
    def actions(self) -> list[int]:
        """The actions that do something in this game, as numbers of ale-py."""
        return [action.value for action in self._ale.getMinimalActionSet()]

    def act(self, action: int) -> tuple[np.ndarray, float]:
        """Plays the next sixtieth of a second.

        Returns:
          Its sound, uint8 [512], and the points that it brought.
        """
        points = self._ale.act(action)
        return self._ale.getAudio().copy(), float(points)

    def screen(self) -> np.ndarray:
        """What is shown, uint8 [210 or so, 160, 3]."""
        return self._ale.getScreenRGB()

    @property
    def lives(self) -> int:
        return self._ale.lives()

    @property
    def over(self) -> bool:
        return self._ale.game_over()
