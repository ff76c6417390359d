"""Profiling of some steps of a run, for XProf or TensorBoard's profile plugin."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from selfflow.errors import UserError
from selfflow.training.distributed import is_primary


@dataclass(frozen=True)
class Profile:
    """Steps to profile. A resumed run may profile other steps."""

    steps: str = ""
    """FIRST:END, counted from 1, END excluded: `10:15` traces steps 10 to 14 into RUN/profile; empty for none."""

    def __post_init__(self):
        self.step_range()

    def step_range(self) -> range:
        """Returns the step numbers to trace."""
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
    """Hook that traces some of the steps `start` + 1 to `steps` of a run.

    Args:
      profile: steps to trace; steps that the run has already computed are left out, and a message is printed.
      folder: the run folder; the trace is written to its subfolder `profile`.
      start: number of finished steps.
      steps: number of steps of the whole run.
    """

    def __init__(self, profile: Profile, folder: Path, start: int, steps: int):
        requested = profile.step_range()
        self._steps = range(max(requested.start, start + 1), min(requested.stop, steps + 1))
        self._folder, self._running, self._last = folder / "profile", False, 0
        if len(self._steps) < len(requested) and is_primary():
            what = f"steps {self._steps[0]} to {self._steps[-1]}" if self._steps else "nothing"
            print(f"profile.steps {profile.steps}: traces {what}, as the run is at step {start} of {steps}")

    def before(self, step: int) -> None:
        """Starts the trace before its first step."""
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """Ends the trace after its last step, once the results of the step have been computed."""
        self._last = step
        if self._steps and step == self._steps[-1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a trace in progress and writes it."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            if is_primary():
                print(f"traced steps {self._steps[0]} to {self._last}: tensorboard --logdir {self._folder}")
