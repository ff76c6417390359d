"""A run that stands still says where: the stacks of all its threads, and then it goes on."""

import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def dump_stacks_when_stalled(seconds: float) -> Iterator[Callable[[], None]]:
    """Prints the stacks of all threads to stderr whenever nothing was done for a time.

    Args:
      seconds: for how long; one more between two prints.

    Yields:
      What to call after each piece of work.
    """
    ended, last = threading.Event(), time.monotonic()

    def done() -> None:
        nonlocal last
        last = time.monotonic()
        # By a thread without Python, which also speaks where Python's lock is what stands still. The line above the
        # stacks comes a second before them.
        faulthandler.dump_traceback_later(seconds + 1, repeat=True, file=sys.__stderr__)

    def announce() -> None:
        since, told = last, 0
        while not ended.wait(max(0.0, since + seconds + told * (seconds + 1) - time.monotonic())):
            if since != last:
                since, told = last, 0
            else:
                told += 1
                for_how_long = f"no step has ended for {time.monotonic() - since:.0f} s"
                print(
                    f"\n{for_how_long}: where every thread is follows, and the run goes on",
                    file=sys.__stderr__,
                    flush=True,
                )

    done()
    teller = threading.Thread(target=announce, name="stall", daemon=True)
    teller.start()
    try:
        yield done
    finally:
        faulthandler.cancel_dump_traceback_later()
        ended.set()
        teller.join()
