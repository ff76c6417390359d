"""How many worker processes there may be, and what each begins with."""

import multiprocessing
import os
import signal
import threading


def cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_worker() -> None:
    """Leaves an interrupt to the parent process, which then ends its workers, and ends with a killed parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def start_reader(number: int, count: int) -> None:
    """`start_worker` as Grain calls it, and leaves SIGTERM to the parent too: its last step still wants a batch.

    A scheduler sends it to all processes of a job. Grain ends its readers by other means.
    """
    del number, count
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    start_worker()


def _end_with_parent() -> None:
    # A worker holds both ends of its queue, so that it would wait for ever for a parent that was killed.
    multiprocessing.parent_process().join()
    os._exit(1)
