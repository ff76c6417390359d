"""A deletion that is killed, at any moment, leaves the old state or one that the same command finishes."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from selfflow.data.built import BuiltDataset
from selfflow.data.records import Records
from selfflow.data.stored import read_splits
from selfflow.data.verify import verify_data
from selfflow.errors import UserError
from selfflow.latents.delete.delete import delete_samples
from selfflow.latents.store import Latents
from selfflow.latents.verify import latents_folders, verify_latents
from tests.conftest import mentions
from tests.latents.home import copied
from tests.latents.test_delete import IDS, searched

pytestmark = pytest.mark.resilience


def count_steps(kill_at: int) -> list[int]:
    """Counts what changes the disk from now on, and kills this process before step `kill_at`."""
    steps = [0]

    def counted(plain):
        def call(*args, **kwargs):
            steps[0] += 1
            if steps[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*args, **kwargs)

        return call

    for name in ("replace", "link", "fsync", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    return steps


def in_child(task) -> int:
    """Runs a task in a fork and returns its exit status, 0 for one that raised nothing."""
    child = os.fork()
    if child == 0:
        try:
            task()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]


def kill_everywhere(original: tuple[BuiltDataset, Path], root: Path, number: int, of: int) -> None:
    """Kills a deletion before every `of`-th of its steps, from `number` on; forks, so no threads may run yet."""
    killed, step = 0, number
    while True:
        home = root / str(step)
        built, latents, _ = copied(original, home)

        def first():
            count_steps(step)
            delete_samples(built, IDS, home)

        def between():
            # At every moment the data set is complete: the old or the new one.
            lengths = {split.name: sum(split.lengths) for split in read_splits(built.folder).values()}
            assert lengths["train"] in (24, 17)
            for split, length in lengths.items():
                records = Records(built.settings, built.folder, split)
                assert len({records[i]["id"] for i in range(length)}) == length
            new = lengths["train"] == 17
            try:
                latents_there = Latents(latents)
                source = latents_there.open_split("train")
                assert len([source[i] for i in range(len(source))]) in (24, 17)
            except UserError as error:
                assert mentions(latents, "interrupted").search(str(error)) and new
            else:
                # Old latents of a new data set are refused by `encode`.
                assert len(source) == lengths["train"] or latents_there.manifest["deleted"] != built.deleted

        def again():
            done = delete_samples(built, IDS, home)
            assert done.left == [] and done.built.splits["train"] == 17
            assert verify_data(done.built) == [] and verify_latents(latents, done.built) == []
            (entry,) = done.built.deleted
            assert set(entry) == {"count", "when", "ids", "hashes"} and entry["count"] == 8
            assert searched(home, [i.encode() for i in IDS]) == set()
            assert not [path for path in home.rglob("*") if "partial" in path.name or ".new" in path.name]
            other = [f for f in latents_folders(home, built.name) if f != latents]
            assert {p.name for f in other for p in f.iterdir()} <= {"lock-0", "lock-finish"}

        status = in_child(first)
        assert status in (0, signal.SIGKILL), f"step {step}"
        assert in_child(between) == 0 and in_child(again) == 0, f"killed before step {step}"
        if status == 0:
            break
        killed, step = killed + 1, step + of
    print(killed)


_KILLED = """
import sys, pickle
from pathlib import Path
from tests.latents.test_delete_killed import kill_everywhere
kill_everywhere(*pickle.load(open(sys.argv[1], "rb")), int(sys.argv[2]), int(sys.argv[3]))
"""


def kills(original, tmp_path, number, of) -> int:
    (tmp_path / "arguments").write_bytes(pickle.dumps((original, tmp_path)))
    process = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path / "arguments"), str(number), str(of)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    return int(process.stdout.split()[-1])


def test_killed_at_some_moments_it_is_finished_by_the_same_command(original, tmp_path):
    assert kills(original, tmp_path, 3, 17) >= 4


@pytest.mark.slow
def test_killed_at_every_moment_it_is_finished_by_the_same_command(original, tmp_path):
    assert kills(original, tmp_path, 1, 1) >= 60
