import time

import jax
import pytest

from selfflow.errors import UserError
from selfflow.training import distributed
from selfflow.training.distributed import Processes
from tests.conftest import mentions


@pytest.mark.parametrize("seconds, lines", [(0.0, 0), (0.3, 1)])
def test_a_process_that_waits_for_others_says_so(seconds, lines, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "_NOTICE_SECONDS", 0.1)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: time.sleep(seconds))
    Processes("localhost:1234", 2, 0).connect()
    time.sleep(0.2)
    error = capsys.readouterr().err
    assert len(error.splitlines()) == lines
    assert not lines or mentions("localhost:1234 process 0 2").search(error)


def test_processes_that_cannot_connect_are_an_error_without_a_later_line(monkeypatch, capsys):
    def refuse(*arguments):
        raise RuntimeError("DEADLINE_EXCEEDED: barrier timed out")

    monkeypatch.setattr(distributed, "_NOTICE_SECONDS", 0.1)
    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match=mentions("localhost:1234 --coordinator DEADLINE_EXCEEDED")):
        Processes("localhost:1234", 2, 1).connect()
    time.sleep(0.2)
    assert capsys.readouterr().err == ""
