"""Watchdog that prints stack traces of a run without progress."""

import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def dump_stacks_when_stalled(seconds: float) -> Iterator[Callable[[], None]]:
    """Context in which the stacks of all threads are printed to stderr when no progress is reported for some time.

    Args:
      seconds: time without progress until the first print; the print is repeated every `seconds` + 1 seconds.

    Yields:
      A function that reports progress.
    """
    ended, last = threading.Event(), time.monotonic()

    def done() -> None:
        nonlocal last
        last = time.monotonic()
        # faulthandler uses a C thread, which can print even while another thread holds the GIL. The line of `announce`
        # is printed one second before the stacks.
        faulthandler.dump_traceback_later(seconds + 1, repeat=True, file=sys.__stderr__)

    def announce() -> None:
        since, prints = last, 0
        while not ended.wait(max(0.0, since + seconds + prints * (seconds + 1) - time.monotonic())):
            if since != last:  # progress was reported meanwhile
                since, prints = last, 0
            else:
                prints += 1
                print(
                    f"\nno step has ended for {time.monotonic() - since:.0f} s; the stacks of all threads follow, and "
                    "the run continues",
                    file=sys.__stderr__,
                    flush=True,
                )

    done()
    announcer = threading.Thread(target=announce, name="watchdog", daemon=True)
    announcer.start()
    try:
        yield done
    finally:
        faulthandler.cancel_dump_traceback_later()
        ended.set()
        announcer.join()
