"""Training loop."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax

from selfflow.errors import Interrupted, UserError, check_at_least
from selfflow.progress import Progress
from selfflow.training.checkpoints import Checkpoints
from selfflow.training.metrics import MetricsLog
from selfflow.training.signals import Interruption
from selfflow.training.state import State
from selfflow.training.task import Task
from selfflow.training.watchdog import dump_stacks_when_stalled


@dataclass(frozen=True)
class Cadence:
    """Intervals of logging, checkpoints and evaluation; may change when a run is resumed."""

    log_every: int = 50
    """Steps between diagnostics, such as ranks and cosines, which require an additional forward pass."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    keep_last: int = 2
    """Number of newest checkpoints to keep."""
    keep_every: int | None = None
    """Interval of additional checkpoints to keep: those at multiples of this step."""
    evaluate_every: int | None = None
    """Steps between evaluations of samples of the EMA (`evaluation`); None for never."""

    def __post_init__(self):
        check_at_least(self, "cadence.", log_every=1, checkpoint_every=1, keep_last=1, evaluate_every=1)
        if self.keep_every is not None and self.keep_every % self.checkpoint_every:
            raise UserError(
                f"cadence.keep_every is {self.keep_every}: give a multiple of checkpoint_every {self.checkpoint_every}"
            )


@dataclass(frozen=True)
class Limits:
    """Limits on consecutive non-finite steps and on time without progress; may change when a run is resumed."""

    max_skipped_steps: int = 10
    """Number of consecutive steps with a non-finite loss or gradient, whose updates are skipped, that stops a run."""
    hang_timeout: float = 1800.0
    """Seconds without a finished step, including compilation, after which the stacks of all threads are printed."""

    def __post_init__(self):
        check_at_least(self, "limits.", max_skipped_steps=1)
        if not 0 < self.hang_timeout < 1e6:
            raise UserError(f"limits.hang_timeout is {self.hang_timeout}: give seconds, above 0 and below a million")


class Hook(Protocol):
    """Protocol of hooks, which are called around every step, such as `profile.Trace`."""

    def before(self, step: int) -> None:
        """Called before a step, counted from 1."""
        ...

    def after(self, step: int, state: State) -> None:
        """Called after a step has been dispatched; its state may not be computed yet."""
        ...

    def close(self) -> None:
        """Called at the end of training, also after an error."""
        ...


def train(
    state: State,
    task: Task,
    *,
    steps: int,
    cadence: Cadence,
    limits: Limits,
    log: MetricsLog | None,
    checkpoints: Checkpoints,
    interruption: Interruption,
    hooks: Sequence[Hook] = (),
) -> State:
    """Trains a state up to step `steps`.

    Metrics are fetched one step late, so that the device does not idle. A checkpoint is written only after the metrics
    up to its step are on disk. After a skipped step, saving is postponed to the next step that is not skipped, because
    the state, although finite, may be the cause of non-finite losses. The last step is always saved.

    Args:
      state: initial state, at any step.
      task: task that provides batches, update, diagnostics and evaluation.
      steps: total number of steps.
      cadence: intervals of diagnostics, evaluation and checkpoints.
      limits: limits on skipped steps and on time without progress.
      log: log of the metrics; None in all processes except the primary.
      checkpoints: checkpoints of the run.
      interruption: stop request, checked after every step.
      hooks: hooks to call around every step.

    Returns:
      The state at step `steps`.

    Raises:
      UserError: if too many consecutive steps were skipped.
      Interrupted: if a signal requested a stop; raised after the state is saved.
    """
    start = number = int(state.step)
    rows = _Rows(task, limits, log, checkpoints)
    due = stop = False
    try:
        with (
            closing(task.batches(start)) as batches,
            Progress("train", steps, done=start, unit="step") as progress,
            dump_stacks_when_stalled(limits.hang_timeout) as report_progress,
        ):
            for number in range(start + 1, steps + 1):
                # Update. It is only dispatched; the row of the previous step is written while the device computes.
                for hook in hooks:
                    hook.before(number)
                with jax.profiler.StepTraceAnnotation("train", step_num=number):
                    requested = time.monotonic()
                    batch, facts = next(batches)
                    waiting = time.monotonic() - requested
                    diagnostics = {}
                    if number % cadence.log_every == 0 or number == steps:
                        diagnostics = task.diagnose(state)  # before the step, which may donate the state
                    state, metrics = task.step(state, batch)
                    checkpoints.check()
                    note = rows.write()
                for hook in hooks:
                    hook.after(number, state)

                # Evaluation, and the row of this step.
                if cadence.evaluate_every and number % cadence.evaluate_every == 0:
                    facts = facts | rows.evaluate(state)
                rows.add(_Row(number, facts, waiting, metrics | diagnostics))

                # Checkpoint. It remains due until a step is not skipped.
                stop = interruption.reached()
                due = due or number % cadence.checkpoint_every == 0
                if due or stop or number == steps:
                    note = rows.write()
                    if log is not None:
                        log.flush()
                    if not rows.skipped_in_a_row or number == steps:
                        checkpoints.save(state, number)
                        due = False
                progress.advance(note=note)
                report_progress()
                if stop:
                    break
            checkpoints.wait()
    finally:
        for hook in hooks:
            hook.close()
        if log is not None:
            log.flush()
    if stop:
        raise _interrupted(interruption, number, checkpoints.latest())
    return state


def _interrupted(interruption: Interruption, step: int, saved: int | None) -> Interrupted:
    """Returns the exception for a stop after a step; `saved` is the step of the newest checkpoint."""
    cause = interruption.cause
    remedy = f"resumes from step {saved}, which is saved" if saved else "starts again, for nothing is saved yet"
    return Interrupted(f"stopped by {cause.name} after step {step}: the same command {remedy}", 128 + cause)


class _Row(NamedTuple):
    """Metrics of a step, which may still be on the device.

    Attributes:
      step: number of the step, from 1.
      facts: values of the batch and metrics of an evaluation, on the host.
      waiting: seconds that the loop waited for the batch.
      metrics: metrics of the step and diagnostics, on the device.
    """

    step: int
    facts: dict[str, Any]
    waiting: float
    metrics: dict[str, jax.Array]


class _Rows:
    """Writer of the metrics of each step, one step late; counts skipped steps.

    Attributes:
      skipped_in_a_row: number of consecutive skipped steps up to the last written row.
    """

    def __init__(self, task: Task, limits: Limits, log: MetricsLog | None, checkpoints: Checkpoints):
        self._task, self._limits, self._log, self._checkpoints = task, limits, log, checkpoints
        self._pending: _Row | None = None
        self._written = time.monotonic()
        self._skipped = self.skipped_in_a_row = 0

    def add(self, row: _Row) -> None:
        """Sets the pending row; the previous one must have been written."""
        self._pending = row

    def evaluate(self, state: State) -> dict[str, float]:
        """Returns metrics of samples of a state; the time of the evaluation is excluded from step durations."""
        jax.block_until_ready(state)  # so that the time of the step is not attributed to the evaluation
        start = time.monotonic()
        metrics = self._task.evaluate(state)
        self._written += time.monotonic() - start
        return metrics

    def write(self) -> str:
        """Writes the pending row, if any, and returns a short summary of it for the progress bar.

        Raises:
          UserError: if too many consecutive steps were skipped.
        """
        if self._pending is None:
            return ""
        row, self._pending = self._pending, None
        values = self._task.summarise(jax.device_get(row.metrics))  # blocks until the step has been computed
        now = time.monotonic()
        seconds, self._written = now - self._written, now
        facts = dict(row.facts)
        tokens, component = facts.pop("tokens"), facts["component"]
        rates = {"seconds": seconds, "tokens_per_second": tokens / seconds, "waiting": row.waiting}
        if self._log is not None:
            self._log.write({"step": row.step, **facts, **values, **rates})

        if values["skipped"]:
            self._skipped += 1
            self.skipped_in_a_row += 1
            if self._log is not None:
                self._log.skip({"step": row.step, "component": component, "ids": self._task.ids(row.step - 1)})
            if self.skipped_in_a_row == self._limits.max_skipped_steps:
                raise UserError(self._too_many(row.step))
        else:
            self.skipped_in_a_row = 0
        return f"{component} loss {values['loss']:.3f}" + (f", {self._skipped} skipped" if self._skipped else "")

    def _too_many(self, step: int) -> str:
        folder, saved = self._checkpoints.path.parent, self._checkpoints.latest()
        good = f"the last good checkpoint is step {saved}" if saved else "there is no checkpoint yet"
        return (
            f"loss or gradient was not finite in {self.skipped_in_a_row} steps in a row (limits.max_skipped_steps), "
            f"the last of them step {step}; {good}. Their samples are listed in {folder / 'skipped.jsonl'}: leave out "
            "damaged ones (--exclude), or lower optimizer.learning_rate or optimizer.clip in another --workdir"
        )
