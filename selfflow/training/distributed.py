"""Utilities for runs on several processes: connection, barriers and exchange of messages."""

import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import jax
import numpy as np

from selfflow.errors import UserError
from selfflow.progress import Progress

T = TypeVar("T")

_BARRIER_SECONDS = 7 * 24 * 3600  # long, because all processes wait while one of them encodes data
_MESSAGE_BYTES = 2048
_GRACE_SECONDS = 2.0
_NOTICE_SECONDS = 30.0  # waiting time for other processes after which a notice is printed
_barrier_number = count()


@dataclass(frozen=True)
class Processes:
    """Flags of a run on several processes; not needed on Cloud TPU, GKE, Slurm and Open MPI, which are detected."""

    coordinator: str = ""
    """HOST:PORT of process 0, which the others connect to."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Index of this process, from 0."""

    def __post_init__(self):
        flags = [bool(self.coordinator), self.processes is not None, self.process is not None]
        if any(flags) and not all(flags):
            raise UserError("coordinator, processes and process go together: give all three, or none of them")
        if all(flags) and not (self.processes >= 1 and 0 <= self.process < self.processes):
            raise UserError(f"process is {self.process} of {self.processes} processes: they are counted from 0")
        if self.coordinator and not self.coordinator.rpartition(":")[2].isdigit():
            raise UserError(f"coordinator is {self.coordinator!r}: give HOST:PORT")

    def connect(self) -> None:
        """Connects this process to the other processes of the run, if any; must be called before devices are used.

        Raises:
          UserError: if the other processes cannot be reached.
        """
        if not self.coordinator and not _launched_together():
            return
        where = f"at {self.coordinator}" if self.coordinator else "of the environment"
        number = f"process {self.process} of {self.processes}" if self.coordinator else "this process"
        line = f"{number} waits for the others {where}: start those that are missing"
        notice = threading.Timer(_NOTICE_SECONDS, print, (line,), {"file": sys.stderr, "flush": True})
        notice.daemon = True
        notice.start()
        try:
            if self.coordinator:
                jax.distributed.initialize(self.coordinator, self.processes, self.process)
            else:
                jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"the processes of this run ({where}) cannot connect ({reason}): start all of them with "
                "--coordinator HOST:PORT --processes N --process I"
            ) from error
        finally:
            notice.cancel()
        Progress.silent = not is_primary()


def _launched_together() -> bool:
    """Returns whether a launcher has started several processes, or this is a TPU host and may be one of several."""
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if int(os.environ.get(name) or 1) > 1:
            return True
    # GKE lists the hosts of a slice, and the number of slices if there are several; a single host is localhost.
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in hosts or int(os.environ.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return True
    # JAX sets the variable on machines without a TPU, and GKE always. A single TPU host connects to itself.
    return importlib.util.find_spec("libtpu") is not None and "TPU_SKIP_MDS_QUERY" not in os.environ


def is_multiprocess() -> bool:
    """Returns whether this is one of several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_primary() -> bool:
    """Returns whether this is process 0, the only one that prints and writes metrics."""
    return jax.process_index() == 0


def abort(status: int) -> None:
    """Ends this process at once, after an error that other processes may not have.

    During a regular exit of Python, this process and the others would wait for each other.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if is_primary():
        # The coordinator runs in this process, and the others end with it: give them time to print their errors.
        time.sleep(_GRACE_SECONDS)
    os._exit(status)


def barrier() -> None:
    """Blocks until all processes have reached this call."""
    if is_multiprocess():
        from orbax.checkpoint import multihost

        # Uses a barrier of the coordinator, because on CPUs a barrier over devices times out after 30 seconds.
        everyone = set(range(jax.process_count()))
        name = f"selfflow-{next(_barrier_number)}"
        multihost.sync_global_processes(name, timeout=_BARRIER_SECONDS, processes=everyone)


def run_on_all(work: Callable[[], T]) -> T:
    """Calls `work` in every process; a `UserError` in any of them is raised in all."""
    result, message = None, ""
    try:
        result = work()
    except UserError as error:
        if not is_multiprocess():
            raise
        message = str(error)
    for number, text in enumerate(_gather_text(message)):
        if text:
            raise UserError(f"process {number}: {text}")
    return result


def first_message(message: str) -> str:
    """Returns the first message of all processes that is not empty, or ""."""
    for text in _gather_text(message):
        if text:
            return text
    return ""


def primary_first(work: Callable[[], T]) -> T:
    """Calls `work` in process 0 and then in all others, which can use files that process 0 wrote on a shared disk."""
    if not is_multiprocess():
        return work()
    result = run_on_all(lambda: work() if is_primary() else None)
    return run_on_all(lambda: result if is_primary() else work())


def broadcast(tree: T) -> T:
    """Returns a tree with the arrays of process 0 in all processes."""
    if not is_multiprocess():
        return tree
    from jax.experimental import multihost_utils

    barrier()
    return jax.device_get(multihost_utils.broadcast_one_to_all(tree))


def check_agreed(value: T, what: str) -> T:
    """Returns `value` after checking that it is equal in all processes.

    Raises:
      UserError: if the values differ; `what` describes them in the message.
    """
    values = sorted(set(_gather_text(repr(value))))
    if len(values) > 1:
        raise UserError(
            f"the processes differ in {what} ({' and '.join(values[:2])}): give all of them the same experiment, "
            "--workdir and --data-dir"
        )
    return value


def _gather_text(text: str) -> list[str]:
    """Returns the texts of all processes in their order, each truncated to `_MESSAGE_BYTES`."""
    if not is_multiprocess():
        return [text]
    from jax.experimental import multihost_utils

    barrier()
    padded = np.frombuffer(text.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b"\0"), np.uint8)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in multihost_utils.process_allgather(padded)]
