"""Worker processes: their maximum number, and their handling of signals."""

import multiprocessing
import os
import signal
import threading


def cores() -> int:
    """Number of cores available to this process, which in a container may be below that of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_worker() -> None:
    """Initializer of worker processes: ignores interrupts, after which the parent ends its workers, and exits when the
    parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def start_reader(number: int, count: int) -> None:
    """Initializer of Grain's reader processes: `start_worker`, and ignores SIGTERM, too.

    A scheduler sends SIGTERM to all processes of a job, and the last step of the parent still needs a batch. Grain ends
    its readers by other means.
    """
    del number, count
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    start_worker()


def _end_with_parent() -> None:
    # A worker holds both ends of its queue, so that it would otherwise wait for a killed parent indefinitely.
    multiprocessing.parent_process().join()
    os._exit(1)
