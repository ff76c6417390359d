"""Traces of some steps of a run."""

import jax
import pytest

from selfflow.errors import UserError
from selfflow.training.profile import Profile
from tests.training.small import run


def traced(folder) -> list[int]:
    (path,) = (folder / "profile").glob("plugins/profile/*/*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(path))
    found = []
    for plane in data.planes:
        for line in plane.lines:
            found += [dict(event.stats)["step_num"] for event in line.events if event.name == "train"]
    return sorted(found)


def test_the_trace_holds_the_steps_that_were_asked_for(tmp_path, capsys):
    run(tmp_path, 8, profile=Profile("3:6"))
    assert traced(tmp_path) == [3, 4, 5]
    out = capsys.readouterr().out
    assert f"traced steps 3 to 5: tensorboard --logdir {tmp_path / 'profile'}" in out and "traces" not in out


def test_steps_that_are_past_are_said(tmp_path, capsys):
    run(tmp_path, 3)
    run(tmp_path, 6, profile=Profile("2:6"))
    assert traced(tmp_path) == [4, 5] and "traces steps 4 to 5" in capsys.readouterr().out
    run(tmp_path, 7, profile=Profile("2:6"))
    assert "profile.steps 2:6: traces nothing, as the run is at step 6" in capsys.readouterr().out


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
    with pytest.raises(UserError, match="profile.steps is"):
        Profile(steps)
