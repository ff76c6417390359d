"""The metrics of a run: one JSON object a step, and the same for TensorBoard."""

import json
import os
import shutil
from pathlib import Path

TIMINGS = ("seconds", "tokens_per_second")


class MetricsLog:
    """Writes `metrics.jsonl` and the TensorBoard events of a run folder.

    `metrics.jsonl` is the truth; events are made from it anew whenever a run is taken up, so that
    every step stands once in both.

    Args:
      folder: the run folder.
      step: the step that the run is taken up at; later rows, and a row cut off by a crash, go away.
    """

    def __init__(self, folder: Path, step: int):
        self.path = folder / "metrics.jsonl"
        self._folder = folder
        rows = [row for row in read_metrics(folder) if row["step"] <= step]
        partial = self.path.with_suffix(".partial")
        with partial.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)
        self._file = self.path.open("a")
        self._events = None
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        for row in rows:
            self._event(row)

    def write(self, row: dict) -> None:
        """Appends a row; it must have the key `step`."""
        self._file.write(json.dumps(row) + "\n")
        self._event(row)

    def _event(self, row: dict) -> None:
        if self._events is None:
            from tensorboardX import SummaryWriter  # half a second, and not needed to read metrics

            self._events = SummaryWriter(str(self._folder / "tensorboard"))
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._events.add_scalar(name, value, row["step"])

    def flush(self) -> None:
        """Makes all rows durable."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes both files."""
        self.flush()
        self._file.close()
        if self._events is not None:
            self._events.close()


def read_metrics(folder: Path) -> list[dict]:
    """All rows of a run's metrics, oldest first; a last line that a crash cut off is left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # only the end of the file can be cut off; what follows it was never written
        rows.append(row)
    return rows
