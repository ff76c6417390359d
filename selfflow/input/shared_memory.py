"""Checks of the shared memory through which reader processes pass batches."""

import shutil
from pathlib import Path

from selfflow.errors import UserError

SHARED_MEMORY = Path("/dev/shm")
_BATCHES_PER_WORKER = 3  # one being written, one in the worker's queue and one that Grain has taken from it
_QUEUE_BYTES = 2**18  # semaphores of a worker
_BATCHES_IN_USE = 2  # of the current and the previous step, until they are on the device


def check_shared_memory(workers: int, batch_bytes: int, folder: Path = SHARED_MEMORY) -> None:
    """Checks that the batches of reader processes fit into shared memory; otherwise SIGBUS would end a process.

    Args:
      workers: reader processes.
      batch_bytes: size of the largest batch in bytes.
      folder: folder of POSIX shared memory; systems without it are not checked.

    Raises:
      UserError: naming the needed and the free bytes.
    """
    if not workers or not folder.is_dir():
        return
    needed = (_BATCHES_PER_WORKER * workers + _BATCHES_IN_USE) * batch_bytes + workers * _QUEUE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"loader.workers is {workers}, whose batches need {needed} bytes of {folder}, and {free} are free: enlarge "
            "it (docker run --shm-size), or set loader.workers to 0, which reads in threads"
        )
