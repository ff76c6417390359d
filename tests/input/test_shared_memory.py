import shlex
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.input import shared_memory
from selfflow.input.shared_memory import check_shared_memory
from tests.conftest import mentions
from tests.input.made import record, write

ROOT = Path(__file__).parents[2]


def test_needed_and_free_bytes_are_named(monkeypatch, tmp_path):
    free = 2 * 2**18 + 8 * 1000
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(free))
    check_shared_memory(2, 1000, tmp_path)
    with pytest.raises(UserError, match=mentions("loader.workers", 2, free + 8, free)):
        check_shared_memory(2, 1001, tmp_path)
    check_shared_memory(0, 10**15, tmp_path)
    check_shared_memory(2, 10**15, tmp_path / "missing")


# Run in a mount namespace with a small /dev/shm: a line says what is needed, and as much is enough.
_SMALL = """
import sys
from pathlib import Path
from selfflow.errors import UserError
from selfflow.input.batches import LoaderOptions
from tests.input.made import feed
from tests.input.test_batches import MIXTURE

if __name__ == "__main__":
    folders = {"a": Path(sys.argv[1]), "b": Path(sys.argv[2])}
    batches = feed(folders, MIXTURE, loader=LoaderOptions(workers=2)).batches(0, 200)
    try:
        batches.check_shared_memory()
        print("read", sum(1 for _ in batches))
    except UserError as error:
        print(error)
"""


@pytest.mark.resilience
def test_the_needed_bytes_are_enough(tmp_path):
    write(tmp_path / "a", [record(i) for i in range(20)], labels=np.arange(20) % 3, name="a")
    write(tmp_path / "b", [record(100 + i, ("image",)) for i in range(12)], name="b")
    largest = 5 * 4096  # 8 images, or 4 clips: five arrays of at most a page
    needed = 8 * largest + 2 * 2**18
    for size, expected in ((needed // 4096 * 4096, "read 200"), (needed // 4096 * 4096 - 4096, None)):
        run = shlex.join([sys.executable, "-c", _SMALL, str(tmp_path / "a"), str(tmp_path / "b")])
        command = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {run}"
        process = subprocess.run(["unshare", "-rm", "sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
        if "mount" in process.stderr.splitlines()[-1:] or "unshare" in process.stderr:
            pytest.skip("nothing can be mounted here")
        assert process.returncode == 0, process.stderr[-3000:]
        if expected:
            assert process.stdout.strip() == expected
        else:
            assert mentions("loader.workers", 2, needed, size).search(process.stdout)
