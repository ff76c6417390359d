"""Settings of glibc's memory allocator for computation on CPUs."""

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
    """Sets the allocator to keep freed memory, on Linux with glibc and without an accelerator.

    By default glibc returns large blocks to the kernel as soon as they are freed. XLA's CPU backend allocates the
    temporaries of a program at every call, hundreds of megabytes in a training step, and each time the kernel clears
    their pages, a quarter of the CPU time of the quickstart's step. With this setting the process does not shrink from
    its peak size. All threads share one heap, because only the main heap can hold blocks above 64 MiB. This function
    must be called before other threads start.

    With an accelerator nothing is set: temporaries are in device memory, and the threads of a large host would contend
    for the single heap.

    Returns:
      Whether the allocator was configured.
    """
    if sys.platform != "linux" or has_accelerator(Path("/dev")):
        return False
    libc = ctypes.CDLL(None)
    # Other C libraries, such as musl, have no such parameters.
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: _LARGEST}
    return all([libc.mallopt(parameter, value) for parameter, value in settings.items()])


def has_accelerator(devices: Path) -> bool:
    """Returns whether a folder of device files, such as /dev, has a file of a GPU or a TPU."""
    return any(any(devices.glob(pattern)) for pattern in _ACCELERATORS)
