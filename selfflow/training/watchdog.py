"""Stack traces of a run that makes no progress."""

import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def dump_stacks_when_stalled(seconds: float) -> Iterator[Callable[[], None]]:
    """Prints the stacks of all threads to stderr whenever no work has ended for some time; the work continues.

    Args:
      seconds: time without progress before the first print; later ones follow every `seconds` + 1.

    Yields:
      A function to call after each piece of work.
    """
    ended, last = threading.Event(), time.monotonic()

    def done() -> None:
        nonlocal last
        last = time.monotonic()
        # faulthandler uses a thread without Python, which also prints while something holds Python's global lock. The
        # line of `announce` comes one second before the stacks.
        faulthandler.dump_traceback_later(seconds + 1, repeat=True, file=sys.__stderr__)

    def announce() -> None:
        since, prints = last, 0
        while not ended.wait(max(0.0, since + seconds + prints * (seconds + 1) - time.monotonic())):
            if since != last:  # a piece of work has ended meanwhile
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
