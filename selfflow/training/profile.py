"""Traces of some steps of a run, for XProf or TensorBoard's profile plugin."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from selfflow.errors import UserError
from selfflow.training.distributed import is_primary


@dataclass(frozen=True)
class Profile:
    """Steps to trace; may differ when a run is resumed."""

    steps: str = ""
    """FIRST:END, steps counted from 1, without END: `10:15` traces steps 10 to 14 into RUN/profile; empty for none."""

    def __post_init__(self):
        self.step_range()

    def step_range(self) -> range:
        """The numbers of the steps to trace."""
        if not self.steps:
            return range(0)
        match = re.fullmatch(r"(\d+):(\d+)", self.steps, re.ASCII)
        first, end = map(int, match.groups()) if match else (0, 0)
        if not 1 <= first < end:
            raise UserError(
                f"profile.steps is {self.steps!r}: write FIRST:END, two steps counted from 1, the first below the "
                "second, such as 10:15 for the steps 10 to 14"
            )
        return range(first, end)


class Trace:
    """Traces steps of a run that computes steps `start` + 1 to `steps`.

    Args:
      profile: which steps; those that the run has already computed are left out, and a line is printed.
      folder: the run folder; the trace is written to its folder `profile`.
      start, steps: number of finished steps, and of steps in all.
    """

    def __init__(self, profile: Profile, folder: Path, start: int, steps: int):
        requested = profile.step_range()
        self._steps = range(max(requested.start, start + 1), min(requested.stop, steps + 1))
        self._folder, self._running, self._last = folder / "profile", False, 0
        if len(self._steps) < len(requested) and is_primary():
            what = f"steps {self._steps[0]} to {self._steps[-1]}" if self._steps else "nothing"
            print(f"profile.steps {profile.steps}: traces {what}, as the run is at step {start}")

    def before(self, step: int) -> None:
        """Starts the trace before the first of its steps."""
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """Ends the trace after the last of its steps, once its results have been computed."""
        self._last = step
        if self._steps and step == self._steps[-1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends and writes a trace in progress."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            if is_primary():
                print(f"traced steps {self._steps[0]} to {self._last}: tensorboard --logdir {self._folder}")
