"""A run without progress prints where it hangs."""

import time

import pytest

from selfflow.training.loop import Limits
from tests.conftest import mentions
from tests.training.small import run


def hang(step):
    if step == 3:
        time.sleep(2.5)


@pytest.mark.resilience
def test_the_stacks_of_a_step_that_hangs_are_printed_and_the_run_continues(tmp_path, capfd):
    state = run(tmp_path, 5, before=hang, limits=Limits(hang_timeout=1.0))
    assert int(state.step) == 5
    before, stacks = capfd.readouterr().err.split("Timeout (0:00:02")
    assert mentions("step 1 s").search(before) and not mentions("in hang").search(before)
    assert mentions("in hang").search(stacks)
    time.sleep(2.1)
    assert "Timeout" not in capfd.readouterr().err
