"""A run that stands still says where."""

import time

from selfflow.training.loop import Limits
from tests.training.small import run


def standing_still(step):
    if step == 3:
        time.sleep(2.5)


def test_the_stacks_of_a_step_that_stands_still_are_printed_and_the_run_goes_on(tmp_path, capfd):
    state = run(tmp_path, 5, before=standing_still, limits=Limits(hang_timeout=1.0))
    assert int(state.step) == 5
    err = capfd.readouterr().err
    line, stacks = err.index("no step has ended for 1 s"), err.index("Timeout (0:00:02")
    assert line < stacks < err.index("in standing_still") and err.count("no step has ended") == 1
    time.sleep(2.1)
    assert "Timeout" not in capfd.readouterr().err
