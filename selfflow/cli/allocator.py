"""How glibc's allocator treats large arrays on machines that compute on their CPU."""

import ctypes
import sys
from pathlib import Path

# Parameters of mallopt(3), from malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_ARENA_MAX = -8
_LARGEST = 2**31 - 1

# Device files of NVIDIA GPUs (also under WSL), AMD GPUs and TPUs.
_ACCELERATORS = ("nvidia[0-9]*", "dxg", "kfd", "accel*", "vfio/[0-9]*")


def keep_freed_memory() -> bool:
    """Lets the process keep the memory of freed arrays, on Linux with glibc and without an accelerator.

    By default glibc returns large blocks to the kernel as soon as they are freed. XLA's CPU backend allocates the
    temporaries of a program at every call, hundreds of megabytes in a training step, and the kernel then clears every
    page of them again: a quarter of the CPU time of the quickstart's step. The price is that the process keeps its
    largest size. All threads share one heap, because only that one holds blocks above 64 MiB; call this before other
    threads start.

    With an accelerator, temporaries are in its memory, and one heap would make the threads of a large host wait for
    each other.

    Returns:
      Whether the allocator was set.
    """
    if sys.platform != "linux" or has_accelerator(Path("/dev")):
        return False
    libc = ctypes.CDLL(None)
    # musl and others have neither the function nor the problem.
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: _LARGEST}
    return all([libc.mallopt(parameter, value) for parameter, value in settings.items()])


def has_accelerator(devices: Path) -> bool:
    """Whether a folder of device files has one of a GPU or a TPU."""
    return any(any(devices.glob(pattern)) for pattern in _ACCELERATORS)
