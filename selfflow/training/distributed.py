"""A run on several processes: how they find each other, and how they stay together."""

import importlib.util
import os
import sys
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

_PATIENCE = 7 * 24 * 3600  # seconds that processes wait for each other: for data to be encoded, say
_MESSAGE_BYTES = 2048
_GRACE = 2.0
_number = count()


@dataclass(frozen=True)
class Processes:
    """Flags of a run on several processes, for where its surroundings (Cloud TPU, GKE, Slurm, Open MPI) do not tell."""

    coordinator: str = ""
    """HOST:PORT of process 0, which the others reach it by."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Number of this one, from 0."""

    def __post_init__(self):
        given = [bool(self.coordinator), self.processes is not None, self.process is not None]
        if any(given) and not all(given):
            raise UserError("coordinator, processes and process go together: give all three, or none of them")
        if all(given) and not (self.processes >= 1 and 0 <= self.process < self.processes):
            raise UserError(f"process is {self.process} of {self.processes} processes: they are counted from 0")
        if self.coordinator and not self.coordinator.rpartition(":")[2].isdigit():
            raise UserError(f"coordinator is {self.coordinator!r}: give HOST:PORT")

    def join(self) -> None:
        """Connects this process with the others, if there are any; to be called before any device is touched.

        Raises:
          UserError: if they cannot be reached.
        """
        if not self.coordinator and not _surrounded():
            return
        try:
            if self.coordinator:
                jax.distributed.initialize(self.coordinator, self.processes, self.process)
            else:
                jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            where = self.coordinator or "as the environment tells them"
            raise UserError(
                f"the processes of this run ({where}) do not find each other ({reason}): start all of them with "
                "--coordinator HOST:PORT --processes N --process I"
            ) from error
        Progress.silent = not is_primary()


def _surrounded() -> bool:
    """Whether the environment tells of several processes, or this is a TPU host, which may be one of several."""
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if int(os.environ.get(name) or 1) > 1:
            return True
    # GKE names the hosts of a slice, and the slices where there are more; its lone hosts are called localhost.
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in hosts or int(os.environ.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return True
    # JAX sets the variable where there is no TPU, and GKE always; on a lone TPU host the processes are one.
    return importlib.util.find_spec("libtpu") is not None and "TPU_SKIP_MDS_QUERY" not in os.environ


def is_multiprocess() -> bool:
    """Whether this is one of several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def abort(status: int) -> None:
    """Ends a process of several at once, after an error that the others may not share.

    Python's way out would wait for all of them, and they would wait for this one.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    if is_primary():
        time.sleep(_GRACE)  # the others end with the coordinator, which is here: let them say what they have to say
    os._exit(status)


def is_primary() -> bool:
    """Whether this is process 0, which alone writes metrics and speaks."""
    return jax.process_index() == 0


def barrier() -> None:
    """Returns once all processes have come here."""
    if is_multiprocess():
        from orbax.checkpoint import multihost

        # At a barrier of the coordinator: one over devices would give up on a slow process after half a minute on CPUs.
        everyone = set(range(jax.process_count()))
        multihost.sync_global_processes(f"selfflow-{next(_number)}", timeout=_PATIENCE, processes=everyone)


def run_on_all(work: Callable[[], T]) -> T:
    """Does `work` in every process; a `UserError` in any of them is raised in all."""
    result, message = None, ""
    try:
        result = work()
    except UserError as error:
        if not is_multiprocess():
            raise
        message = str(error)
    for number, text in enumerate(_of_all(message)):
        if text:
            raise UserError(f"process {number}: {text}")
    return result


def any_of_all(message: str) -> str:
    """The first message that is not empty, of all processes."""
    return next(filter(None, _of_all(message)), "")


def primary_first(work: Callable[[], T]) -> T:
    """Does `work` in process 0 and then in all others, which find what it left on a disk that they share."""
    if not is_multiprocess():
        return work()
    done = run_on_all(lambda: work() if is_primary() else None)
    return run_on_all(lambda: done if is_primary() else work())


def broadcast(tree: T) -> T:
    """A tree of arrays as process 0 has it."""
    if not is_multiprocess():
        return tree
    from jax.experimental import multihost_utils

    barrier()
    return jax.device_get(multihost_utils.broadcast_one_to_all(tree))


def check_agreed(value: T, what: str) -> T:
    """`value`, which all processes must have alike.

    Raises:
      UserError: if they do not.
    """
    if len(found := set(_of_all(repr(value)))) > 1:
        told = " and ".join(sorted(found)[:2])
        raise UserError(
            f"the processes differ in {what} ({told}): give all of them the same experiment, --workdir and --data-dir"
        )
    return value


def _of_all(text: str) -> list[str]:
    """What every process says, process 0 first."""
    if not is_multiprocess():
        return [text]
    from jax.experimental import multihost_utils

    barrier()
    padded = np.frombuffer(text.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b"\0"), np.uint8)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in multihost_utils.process_allgather(padded)]
