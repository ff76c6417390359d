"""The metrics of a run: one JSON object a step, and the same for TensorBoard; and the steps that were skipped."""

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
    """Writes `metrics.jsonl`, `skipped.jsonl` and the TensorBoard events of a run folder.

    `metrics.jsonl` is the truth; events are made from it anew whenever a run is taken up, so that
    every step stands once in both. A number that is not finite is null there, which keeps it JSON, and
    stands in no event. The event of a step has the pictures and sounds in `evaluations/step_N`, too.

    Args:
      folder: the run folder.
      step: the step that the run is taken up at; later rows and pictures, and a row cut off by a crash, go away.
    """

    def __init__(self, folder: Path, step: int):
        self.path, self.skipped = folder / "metrics.jsonl", folder / "skipped.jsonl"
        self._folder = folder
        rows = _cut(self.path, step)
        self._file = self.path.open("a")
        if self.skipped.exists():
            _cut(self.skipped, step)
        for later in (folder / EVALUATIONS).glob("step_*"):
            number = later.name.removeprefix("step_")
            if later.is_dir() and number.isdigit() and int(number) > step:
                shutil.rmtree(later)
        self._events = None
        for events in (folder / "tensorboard").glob("events.out.tfevents.*"):
            events.unlink()
        for row in rows:
            self._event(row)

    def write(self, row: dict) -> None:
        """Appends a row; it must have the key `step`."""
        self._file.write(_line(row))
        self._event(row)

    def skip(self, row: dict) -> None:
        """Appends a row to `skipped.jsonl`, which is made with the first; it must have the key `step`."""
        with self.skipped.open("a") as file:
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())

    def _event(self, row: dict) -> None:
        # Not tensorboardX's SummaryWriter: its thread dies on a full disk, and the run then waits for it for ever.
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import RecordWriter

        if self._events is None:
            folder = self._folder / "tensorboard"
            folder.mkdir(exist_ok=True)
            self._events = RecordWriter(str(folder / f"events.out.tfevents.{time.time():.0f}.{os.getpid()}"))
            self._events.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if name != "step" and isinstance(value, int | float) and math.isfinite(value)
        ]
        values += _shown(self._folder / EVALUATIONS / f"step_{row['step']}")
        event = Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values))
        self._events.write(event.SerializeToString())

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


def _shown(folder: Path) -> list:
    """The pictures and sounds that an evaluation left, as they are, for TensorBoard."""
    import soundfile
    from PIL import Image
    from tensorboardX.proto.summary_pb2 import Summary

    values = []
    for path in sorted(folder.glob("*.png")):
        try:
            with Image.open(path) as page:
                width, height = page.size
        except OSError:
            continue  # cut off by a crash: a picture is no reason not to go on
        shown = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes())
        values.append(Summary.Value(tag=f"samples/{path.stem}", image=shown))
    for path in sorted(folder.glob("*.wav")):
        try:
            told = soundfile.info(path)
        except soundfile.LibsndfileError:
            continue
        shown = Summary.Audio(
            sample_rate=told.samplerate,
            num_channels=told.channels,
            length_frames=told.frames,
            encoded_audio_string=path.read_bytes(),
            content_type="audio/wav",
        )
        values.append(Summary.Value(tag=f"samples/{path.stem}", audio=shown))
    return values


def read_metrics(folder: Path) -> list[dict]:
    """All rows of a run's metrics, oldest first; a last line that a crash cut off is left out."""
    return _rows(folder / "metrics.jsonl")


def _line(row: dict) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def _cut(path: Path, step: int) -> list[dict]:
    """Takes the rows after a step out of a file, and returns the others."""
    rows = [row for row in _rows(path) if row["step"] <= step]
    with atomic_write(path, durable=True) as partial:
        partial.write_text("".join(map(_line, rows)))
    return rows


def _rows(path: Path) -> list[dict]:
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
