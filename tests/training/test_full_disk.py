"""A disk that gets full while a run goes on: said in words, and older checkpoints stay good."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.resilience

ROOT = Path(__file__).parents[2]


def test_a_full_disk_is_noticed_at_the_next_step_and_keeps_the_older_checkpoints(tmp_path):
    """A save of 1.6 MB begins with 200 kB left after step 6, and fails in the background."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = f"mount -t tmpfs -o size=12m tmpfs {shlex.quote(str(disk))}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mounted], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    command = shlex.join([sys.executable, "-m", "tests.training.full", str(disk / "run"), "200000"])
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mounted} && mkdir {shlex.quote(str(disk / 'run'))} && exec {command}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert "disk is full" in result["message"]
    assert result["step"] == 7 and result["saved"] == [3]
    assert result["steps"] == 12 and result["equal"]
