import subprocess
import sys

import pytest

from selfflow.cli.allocator import has_accelerator

# Page faults of writing 100 MB from another thread, once the same has been written and freed before.
_FAULTS = """
import resource, sys, threading
from selfflow.cli import allocator
allocator.has_accelerator = lambda devices: False
if sys.argv[1] == "keep" and not allocator.keep_freed_memory():
    sys.exit("not set")
def write():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        b"x" * (100 << 20)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
faults = []
thread = threading.Thread(target=write)
thread.start()
thread.join()
print(faults[1])
"""


def _faults(mode: str) -> int:
    result = subprocess.run([sys.executable, "-c", _FAULTS, mode], capture_output=True, text=True, check=True)
    return int(result.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is the C library of Linux")
def test_freed_memory_is_kept_and_used_again():
    assert _faults("keep") < 100 < _faults("default")


@pytest.mark.parametrize(
    "device, expected",
    [("nvidia0", True), ("accel0", True), ("vfio/0", True), ("nvidiactl", False), ("vfio/vfio", False)],
)
def test_accelerators_have_device_files(tmp_path, device, expected):
    file = tmp_path / device
    file.parent.mkdir(exist_ok=True)
    file.touch()
    assert has_accelerator(tmp_path) is expected
