"""Trains onto a small disk that gets full, tells how that ends, frees it and goes on; run by test_full_disk.py.

python -m tests.training.full FOLDER BYTES-LEFT
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from selfflow.errors import system_error_message
from selfflow.training.checkpoints import Checkpoints
from tests.training.small import run

WIDTH = 100_000  # four arrays of 400 kB


def main(folder: Path, left: int) -> None:
    filler, reached = folder / "filler", []

    def before(step):
        reached.append(step)
        if step == 5:
            while not (folder / "checkpoints" / "3").exists():
                time.sleep(0.01)
            fill(filler, left)
        if step > 6:
            time.sleep(0.5)  # so that the save in the background has failed

    result = {}
    try:
        run(folder, 12, before=before, width=WIDTH)
    except Exception as error:
        result |= {"message": system_error_message(error), "step": reached[-1]}
    filler.unlink()
    checkpoints = Checkpoints(folder)
    result["saved"] = checkpoints.steps()
    checkpoints.close()
    state = run(folder, 12, width=WIDTH)
    whole = run(folder.with_name("whole"), 12, width=WIDTH)
    result |= {
        "steps": int(state.step),
        "equal": bool(np.array_equal(state.params["model"]["w"], whole.params["model"]["w"])),
    }
    print(json.dumps(result), flush=True)
    os._exit(0)  # as the command does: threads that could not write would print long warnings


def fill(path: Path, left: int) -> None:
    """Takes all of a disk but some bytes."""
    file = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(file, bytes(4096))
    except OSError:
        os.ftruncate(file, max(os.fstat(file).st_size - left, 0))
    os.close(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
