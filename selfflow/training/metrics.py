"""Metrics of a run: one JSON object for each step, a copy as TensorBoard events, and a list of skipped steps."""

import json
import math
import os
import shutil
import time
from pathlib import Path

from selfflow.storage.atomic import atomic_write

EVALUATIONS = "evaluations"
TIMINGS = ("seconds", "waiting", "tokens_per_second")


class MetricsLog:
    """Writer of `metrics.jsonl`, `skipped.jsonl` and the TensorBoard events of a run folder.

    When a run is resumed, the events are rewritten from `metrics.jsonl`, so that every step occurs once in both.
    Non-finite values are null in JSON and omitted from the events. The event of a step includes the images and audio in
    `evaluations/step_N`.

    Args:
      folder: the run folder.
      step: step from which the run resumes; later rows and evaluations are removed, and a row that a crash truncated.
    """

    def __init__(self, folder: Path, step: int):
        self.path, self.skipped = folder / "metrics.jsonl", folder / "skipped.jsonl"
        self._folder = folder
        rows = _remove_after(self.path, step)
        self._file = self.path.open("a", encoding="utf-8")
        if self.skipped.exists():
            _remove_after(self.skipped, step)
        for evaluation in (folder / EVALUATIONS).glob("step_*"):
            number = evaluation.name.removeprefix("step_")
            if evaluation.is_dir() and number.isdigit() and int(number) > step:
                shutil.rmtree(evaluation)
        self._events = None
        for events in (folder / "tensorboard").glob("events.out.tfevents.*"):
            events.unlink()
        for row in rows:
            self._write_event(row)

    def write(self, row: dict) -> None:
        """Appends a row to `metrics.jsonl`; it must have the key `step`."""
        self._file.write(_line(row))
        self._write_event(row)

    def skip(self, row: dict) -> None:
        """Appends a row to `skipped.jsonl`, which is created on first use; the row must have the key `step`."""
        with self.skipped.open("a", encoding="utf-8") as file:
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())

    def _write_event(self, row: dict) -> None:
        # tensorboardX's SummaryWriter is not used, because on a full disk its thread ends, and the run would block.
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import RecordWriter

        if self._events is None:
            folder = self._folder / "tensorboard"
            folder.mkdir(exist_ok=True)
            self._events = RecordWriter(str(folder / f"events.out.tfevents.{time.time():.0f}.{os.getpid()}"))
            self._events.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        values = []
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                values.append(Summary.Value(tag=name, simple_value=value))
        values += _media_values(self._folder / EVALUATIONS / f"step_{row['step']}")
        event = Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values))
        self._events.write(event.SerializeToString())

    def flush(self) -> None:
        """Flushes all rows to disk."""
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


def _media_values(folder: Path) -> list:
    """Returns the images and audio of an evaluation as values of a TensorBoard event."""
    import soundfile
    from PIL import Image
    from tensorboardX.proto.summary_pb2 import Summary

    values = []
    for path in sorted(folder.glob("*.png")):
        try:
            with Image.open(path) as page:
                width, height = page.size
        except OSError:
            continue  # truncated by a crash; metrics do not depend on it
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes())
        values.append(Summary.Value(tag=f"samples/{path.stem}", image=image))
    for path in sorted(folder.glob("*.wav")):
        try:
            info = soundfile.info(path)
        except soundfile.LibsndfileError:
            continue
        audio = Summary.Audio(
            sample_rate=info.samplerate,
            num_channels=info.channels,
            length_frames=info.frames,
            encoded_audio_string=path.read_bytes(),
            content_type="audio/wav",
        )
        values.append(Summary.Value(tag=f"samples/{path.stem}", audio=audio))
    return values


def read_metrics(folder: Path) -> list[dict]:
    """Returns all rows of a run's metrics, oldest first, without a truncated last line."""
    return _read_rows(folder / "metrics.jsonl")


def _line(row: dict) -> str:
    finite = {}
    for name, value in row.items():
        finite[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return json.dumps(finite, allow_nan=False) + "\n"


def _remove_after(path: Path, step: int) -> list[dict]:
    """Removes the rows after a step from a file, and returns the remaining rows."""
    rows = [row for row in _read_rows(path) if row["step"] <= step]
    with atomic_write(path, durable=True) as partial:
        partial.write_text("".join(map(_line, rows)), encoding="utf-8")
    return rows


def _read_rows(path: Path) -> list[dict]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # only the last line can be truncated
        rows.append(row)
    return rows
