"""Progress of long work: a bar on a terminal, else a line every few seconds."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts work items and shows their number, rate and remaining time.

    Use as a context manager; call `advance()` after each item, or `advance(note="loss 1.23")`.

    Args:
      description: name of the work.
      total: number of items, if it is known.
      done: number of items that were done before.
      unit: unit of items.

    Attributes:
      silent: whether to print nothing in this process; set in all but one of several processes.
    """

    silent = False

    def __init__(self, description: str, total: int | None = None, done: int = 0, unit: str = "it"):
        self._description, self._total, self._unit = description, total, unit
        self._count = self._first = done
        self._note, self._printed = "", None
        self._start = self._last_line = time.monotonic()
        self._bar = None
        if not self.silent and sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns:
            self._bar = tqdm(desc=description, total=total, initial=done, unit=unit, dynamic_ncols=True, smoothing=0.05)

    def advance(self, count: int = 1, note: str = "") -> None:
        self._count += count
        self._note = note or self._note
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif not self.silent and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        self._last_line, self._printed = time.monotonic(), self._count
        elapsed = self._last_line - self._start
        rate = (self._count - self._first) / max(elapsed, 1e-9)
        text = f"{self._description}: {self._count}"
        if self._total is not None:
            text += f"/{self._total}"
        text += f" {self._unit}, {rate:.1f} {self._unit}/s, {elapsed:.0f} s"
        if self._total is not None and rate > 0 and self._count < self._total:
            text += f", {(self._total - self._count) / rate:.0f} s left"
        print(text + (f", {self._note}" if self._note else ""), file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            self._bar.close()
        elif not self.silent and self._count != self._printed:
            self._line()


def progress(items: Iterable[T], description: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Iterates over `items` and shows the progress; `total` is by default `len(items)`, if they have a length."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    with Progress(description, total, unit=unit) as shown:
        for item in items:
            yield item
            shown.advance()
