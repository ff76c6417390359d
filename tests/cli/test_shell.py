"""`selfflow` as a process of a shell: closed pipes and Ctrl-C."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.resilience
COMMAND = [sys.executable, "-m", "selfflow"]


@pytest.mark.parametrize("arguments", [["--help"], ["data", "list"], ["data", "build", "--help"]])
def test_a_closed_pipe_ends_a_command_silently(arguments):
    reader, writer = os.pipe()
    os.close(reader)  # as `selfflow ... | true`
    process = subprocess.run([*COMMAND, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True)
    assert (process.returncode, process.stderr) == (1, "")


@pytest.mark.parametrize("seconds", [0.2, 0.5, 1.0])
def test_sigint_while_modules_are_imported_shows_no_traceback(seconds):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*COMMAND, "plan", "--help"], **pipes)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130, 0)  # 0: the command was faster
    assert "Traceback" not in error


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_stop_no_command(closed):
    command = shlex.join([*COMMAND, "data", "list"])
    process = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    assert ("collisions" in process.stdout) == (" >&-" not in f" {closed}")
