"""The training loop: a state, a step, and a stream of batches."""

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
    """Intervals of logging, checkpoints and evaluation; may change in a run."""

    log_every: int = 50
    """Steps between diagnostics: ranks and cosines, which cost a forward pass."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    keep_last: int = 2
    """Newest checkpoints that are kept."""
    keep_every: int | None = None
    """Checkpoints at multiples of this step are kept, too."""
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
    """Limits on steps that are not finite and on time without progress; may change in a run."""

    max_skipped_steps: int = 10
    """Steps in a row whose loss or gradient is not finite, and whose updates are skipped, after which a run stops."""
    hang_timeout: float = 1800.0
    """Seconds without a finished step, compilation included, after which the stacks of all threads are printed."""

    def __post_init__(self):
        check_at_least(self, "limits.", max_skipped_steps=1)
        if not 0 < self.hang_timeout < 1e6:
            raise UserError(f"limits.hang_timeout is {self.hang_timeout}: give seconds, above 0 and below a million")


class Hook(Protocol):
    """Observes the steps of a run, such as `profile.Trace`."""

    def before(self, step: int) -> None:
        """Called before a step, counted from 1."""
        ...

    def after(self, step: int, state: State) -> None:
        """Called once a step has been dispatched; its state may not be computed yet."""
        ...

    def close(self) -> None:
        """Called at the end, after an error, too."""
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
    """Trains from a state to step `steps`.

    Metrics are fetched one step late, so that the device always has work waiting. A checkpoint is written only after
    the metrics up to its step are on disk. After a skipped step it waits for a step that is not skipped: the state is
    finite, and may still be the cause of losses that are not. The last step is always saved.

    Args:
      state: the state after any number of steps.
      task: batches, update, diagnostics and evaluation.
      steps: number of steps to reach.
      cadence: intervals of diagnostics, evaluation and checkpoints.
      limits: when to stop because of skipped steps, and when to report a run without progress.
      log: receives the metrics; None in all processes but the first.
      checkpoints: receives the states.
      interruption: a request to stop, read after every step.
      hooks: called around every step.

    Raises:
      UserError: if too many steps in a row were skipped.
      Interrupted: if the process was asked to stop; the state is saved.
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
                # The update. It is dispatched, not awaited: the row of the step before is written meanwhile.
                for hook in hooks:
                    hook.before(number)
                with jax.profiler.StepTraceAnnotation("train", step_num=number):
                    requested = time.monotonic()
                    batch, facts = next(batches)
                    waiting = time.monotonic() - requested
                    diagnostics = {}
                    if number % cadence.log_every == 0 or number == steps:
                        diagnostics = task.diagnose(state)  # before the step, which may reuse the state's memory
                    state, metrics = task.step(state, batch)
                    checkpoints.check()
                    note = rows.write()  # the row of the previous step
                for hook in hooks:
                    hook.after(number, state)

                # Evaluation, and this step's row.
                if cadence.evaluate_every and number % cadence.evaluate_every == 0:
                    facts = facts | rows.evaluate(state)
                rows.add(_Row(number, facts, waiting, metrics | diagnostics))

                # Checkpoint. It stays due until a step is not skipped.
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
    """The error of a run that was asked to stop after a step; `saved` is the step of its newest checkpoint."""
    cause = interruption.cause
    remedy = f"resumes from step {saved}, which is saved" if saved else "starts again, for nothing is saved yet"
    return Interrupted(f"stopped by {cause.name} after step {step}: the same command {remedy}", 128 + cause)


class _Row(NamedTuple):
    """A step whose metrics may still be on the device.

    Attributes:
      step: number of the step, from 1.
      facts: values of the batch and of an evaluation, which are on the host.
      waiting: seconds that the loop waited for the batch.
      metrics: values of the step and diagnostics, which are on the device.
    """

    step: int
    facts: dict[str, Any]
    waiting: float
    metrics: dict[str, jax.Array]


class _Rows:
    """Writes the metrics of each step one step late, and counts skipped steps.

    Attributes:
      skipped_in_a_row: skipped steps up to the last row that was written.
    """

    def __init__(self, task: Task, limits: Limits, log: MetricsLog | None, checkpoints: Checkpoints):
        self._task, self._limits, self._log, self._checkpoints = task, limits, log, checkpoints
        self._pending: _Row | None = None
        self._written = time.monotonic()
        self._skipped = self.skipped_in_a_row = 0

    def add(self, row: _Row) -> None:
        """Keeps the row of a step; that of the step before must have been written."""
        self._pending = row

    def evaluate(self, state: State) -> dict[str, float]:
        """Metrics of samples of a state; their time is excluded from the durations of steps."""
        jax.block_until_ready(state)  # or the time of the step would count as the evaluation's
        start = time.monotonic()
        metrics = self._task.evaluate(state)
        self._written += time.monotonic() - start
        return metrics

    def write(self) -> str:
        """Writes the pending row, if there is one, and returns a note on it for the progress bar.

        Raises:
          UserError: if too many steps in a row were skipped.
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
