"""Traces of some steps of a run."""

import jax
import pytest

from selfflow.errors import UserError
from selfflow.training.profile import Profile
from tests.conftest import mentions
from tests.training.small import run


def traced(folder) -> list[int]:
    (path,) = (folder / "profile").glob("plugins/profile/*/*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(path))
    steps = []
    for plane in data.planes:
        for line in plane.lines:
            steps += [dict(event.stats)["step_num"] for event in line.events if event.name == "train"]
    return sorted(steps)


def test_the_trace_holds_the_steps_of_the_range(tmp_path, capsys):
    run(tmp_path, 8, profile=Profile("3:6"))
    assert traced(tmp_path) == [3, 4, 5]
    (line,) = capsys.readouterr().out.splitlines()
    assert mentions("3 5 tensorboard --logdir", tmp_path / "profile").search(line)


def test_steps_of_the_range_that_are_past_are_named(tmp_path, capsys):
    run(tmp_path, 3)
    run(tmp_path, 6, profile=Profile("2:6"))
    assert traced(tmp_path) == [4, 5] and mentions("profile.steps 2:6 4 5 3").search(capsys.readouterr().out)
    run(tmp_path, 7, profile=Profile("2:6"))
    assert mentions("profile.steps 2:6 nothing 6").search(capsys.readouterr().out)


def test_a_run_that_fails_within_its_trace_ends_it(tmp_path):
    def fail(step):
        if step == 4:
            raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        run(tmp_path / "a", 8, profile=Profile("3:6"), before=fail)
    run(tmp_path / "b", 8, profile=Profile("3:6"))
    assert traced(tmp_path / "b") == [3, 4, 5]


@pytest.mark.parametrize("steps", ["10", "5:5", "6:5", "0:3", "-1:3", "a:b", "1:2:3", ":4", "1.5:3"])
def test_impossible_ranges_are_named(steps):
    with pytest.raises(UserError, match=mentions("profile.steps", repr(steps))):
        Profile(steps)
