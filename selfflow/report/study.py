"""Study of a report: runs of a sweep, of a folder or of a list, with their progress."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from selfflow.config.experiment import Experiment
from selfflow.errors import UserError
from selfflow.report.sessions import command_of, docstring_of
from selfflow.run.arms import arms_of, check_same_data, differing_fields
from selfflow.run.run import Run, open_run
from selfflow.serialization import to_json
from selfflow.storage.paths import bucket_url
from selfflow.sweep.folder import SWEEP


class Member(NamedTuple):
    """One run of a study, which may not have started yet.

    Attributes:
      name: name of the run folder.
      arm: name of the arm; runs that differ only in their seeds form an arm.
      seed: `seed.init`; runs of different arms with the same seed are paired.
      run: the opened run; None if it has not started.
      summary: content of `summary.json`; None until the run is finished. Unfinished runs are excluded from all means.
      state: description of the progress, for a table.
      command: shell command that trains the run.
    """

    name: str
    arm: str
    seed: int
    run: Run | None
    summary: dict[str, Any] | None
    state: str
    command: str

    @property
    def done(self) -> bool:
        """Whether the run was trained to its last step."""
        return self.summary is not None

    def score(self, name: str, *keys: str) -> float | None:
        """Returns a number in `summary.json` by its path of keys; None if a key is missing.

        Raises:
          UserError: if the value is not a number.
        """
        value: Any = self.summary
        for key in (name, *keys):
            if not isinstance(value, dict):
                raise self._damaged(f"{name} is not a table")
            value = value.get(key)
            if value is None:
                return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._damaged(f"{'.'.join((name, *keys))} is {value!r}, expected a number")
        return float(value)

    def keys(self, *names: str) -> list[str]:
        """Returns the keys of an object in `summary.json`; an empty list if it is missing.

        Raises:
          UserError: if the value is not an object.
        """
        table: Any = self.summary
        for name in names:
            table = table.get(name, {})
            if not isinstance(table, dict):
                raise self._damaged(f"{name} is not a table")
        return list(table)

    def _damaged(self, reason: str) -> UserError:
        return UserError(f"{self.run.path}/summary.json is damaged: {reason}: restore it from a copy")


class Study(NamedTuple):
    """Runs that are reported together.

    Attributes:
      name: name of the folder.
      folder: default folder of the report.
      question: docstring of the experiment file, which states the question of the study; empty if unknown.
      question_source: path of the experiment file.
      baseline: arm that the others are compared to; empty if there is only one arm.
      members: runs of the study, in order.
      notes: omissions and their reasons.
    """

    name: str
    folder: Path
    question: str
    question_source: str
    baseline: str
    members: list[Member]
    notes: list[str]

    @property
    def arms(self) -> list[str]:
        """Names of the arms, with the baseline first."""
        names = [self.baseline] if self.baseline else []
        return list(dict.fromkeys([*names, *(member.arm for member in self.members)]))

    def done(self, arm: str = "") -> list[Member]:
        """Returns the finished runs of one arm, by default of all arms."""
        return [member for member in self.members if member.done and arm in ("", member.arm)]


def open_study(paths: Sequence[str], baseline: str = "") -> Study:
    """Opens a run, the folder of a sweep, or several runs.

    Args:
      paths: a run, a folder of runs, or several runs.
      baseline: arm that the others are compared to; by default the first.

    Raises:
      UserError: if a folder has no run, a file in it is damaged, two runs of one arm have the same seed, or the
        baseline is not an arm.
    """
    first, *others = paths
    folder = Path(first)
    if others or bucket_url(first) or (folder / "experiment.json").is_file():
        study = _from_runs([open_run(path) for path in paths], folder if not others else folder.resolve().parent)
    elif not folder.is_dir():
        raise UserError(f"{first} is not a folder: give a run, the folder of a sweep, or several runs")
    elif (folder / SWEEP).is_file():
        study = _from_sweep(folder)
    else:
        study = _from_folder(folder)
    if baseline and baseline not in study.arms:
        raise UserError(f"--baseline is {baseline}, expected one of {', '.join(study.arms)}")
    if len(study.arms) == 1:
        return study  # without a baseline there are no differences
    return study._replace(baseline=baseline or study.arms[0])


def _from_folder(folder: Path) -> Study:
    """Returns the study of all runs in the subfolders of a folder, except those of autoencoders."""
    # Links, such as `latest`, are resolved, so that their runs are not counted twice.
    paths = {path.parent.resolve() for path in folder.glob("*/experiment.json")}
    if not paths:
        raise UserError(f"{folder} has no run (no experiment.json in it or one folder below): give another folder")
    runs, notes = [], []
    for path in sorted(paths, key=lambda path: _natural_order(path.name)):
        run = Run(path)
        if isinstance(run.experiment, Experiment):
            runs.append(run)
        else:
            notes.append(f"{run.name}: trained an autoencoder; its metrics are in its summary.json")
    if not runs:
        raise UserError(f"{folder} has only runs of autoencoders, which have no report: see their summary.json")
    return _from_runs(runs, folder)._replace(notes=notes)


def _from_runs(runs: list[Run], folder: Path) -> Study:
    """Returns the study of a list of runs, with arms inferred from names and experiments."""
    if len(runs) == 1:
        name, arms = runs[0].name, [runs[0].name]
    else:
        name, arms = folder.resolve().name, arms_of(runs)
    members = [_member(run, arm, command_of(run)) for run, arm in zip(runs, arms)]
    question, source = docstring_of(runs[0])
    return Study(name, folder, question, source, "", members, [])


def _from_sweep(folder: Path) -> Study:
    """Returns the study of the runs in `sweep.json`, including those that have not started."""
    sweep = _read_sweep(folder / SWEEP)
    members: list[Member] = []
    for index, entry in enumerate(sweep["members"]):
        name, arm = entry["name"], entry["arm"]
        command = shlex.join([*sweep["command"], "--index", str(index)])
        if (folder / name / "experiment.json").is_file():
            members.append(_member(open_run(folder / name), arm, command, entry["steps"]))
        else:
            members.append(Member(name, arm, entry["seed"], None, None, "not started", command))
    _check_arms(members, folder)
    _check_data(members)

    # Other runs in the folder are omitted, because `sweep.json` has no arm and no command for them.
    names = {path.parent.name for path in folder.glob("*/experiment.json")}
    others = sorted(names - {member.name for member in members})
    notes = [f"{', '.join(others)}: not a run of this sweep"] if others else []
    return Study(folder.resolve().name, folder, sweep["question"], sweep["file"], "", members, notes)


def _read_sweep(path: Path) -> dict[str, Any]:
    """Reads `sweep.json` and validates all fields that the report uses."""

    def damaged(reason: object) -> UserError:
        return UserError(f"{path} is damaged ({reason}): run `selfflow sweep` again, which writes it")

    try:
        sweep = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(error) from error
    if not isinstance(sweep, dict):
        raise damaged("not an object")
    for field, kind in {"file": str, "question": str, "command": list, "members": list}.items():
        if not isinstance(sweep.get(field), kind):
            raise damaged(f"no {field}")
    if not sweep["members"]:
        raise damaged("no members")
    if not all(isinstance(word, str) for word in sweep["command"]):
        raise damaged("command is not a list of strings")
    for entry in sweep["members"]:
        for field, kind in {"name": str, "arm": str, "seed": int, "steps": int}.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(field), kind):
                raise damaged(f"a member without {field}")
        name = entry["name"]
        # Names are used as paths below the folder; a crafted name must not lead out of it.
        if not entry["arm"] or not name or "/" in name or "\\" in name or name.startswith("."):
            raise damaged(f"a member with name {name!r} and arm {entry['arm']!r}")
    return sweep


def _check_arms(members: list[Member], folder: Path) -> None:
    """Raises `UserError` unless the runs of each arm differ only in their seeds, as required for their mean."""
    by_seed: dict[tuple[str, int], str] = {}
    first_of: dict[str, Member] = {}
    for member in members:
        other = by_seed.setdefault((member.arm, member.seed), member.name)
        if other != member.name:
            raise UserError(
                f"{folder}: {other} and {member.name} are both of arm {member.arm} with seed.init {member.seed}: move "
                "one of them out of the folder"
            )
        if member.run is None:
            continue
        first = first_of.setdefault(member.arm, member)
        fields = differing_fields(first.run.experiment, member.run.experiment)
        if fields:
            raise UserError(
                f"{folder}: {first.name} and {member.name} are both of arm {member.arm} and differ in {fields[0]}: "
                "move one of them out of the folder"
            )


def _check_data(members: list[Member]) -> None:
    """Raises `UserError` unless all runs with the same `data` settings were trained on the same records."""
    runs_by_data: dict[str, list[Run]] = {}
    for member in members:
        if member.run is not None:
            data = json.dumps(to_json(member.run.experiment.data), sort_keys=True)
            runs_by_data.setdefault(data, []).append(member.run)
    for runs in runs_by_data.values():
        check_same_data(runs)


def _member(run: Run, arm: str, command: str, steps: int | None = None) -> Member:
    """Returns the member for a run, which is finished at step `steps`, by default the steps of its experiment."""
    steps = run.experiment.steps if steps is None else steps
    summary = run.summary()
    if summary is None:
        state = _unfinished_state(run, steps)
    else:
        reached = summary.get("steps")
        if not isinstance(reached, int):
            raise UserError(f"{run.path}/summary.json is damaged: steps is {reached!r}: restore it from a copy")
        if reached >= steps:
            state = f"done, {reached} steps"
        else:
            # `steps` was increased after the run had ended.
            state, summary = f"ended at step {reached} of {steps}", None
    return Member(run.name, arm, run.experiment.seed.init, run, summary, state, command)


def _unfinished_state(run: Run, steps: int) -> str:
    """Describes the progress of a run without a summary, from the last row of its metrics."""
    if run.provenance().get("imported"):
        return "imported weights, not trained"
    rows = run.metrics()
    last = rows[-1].get("step", 0) if rows and isinstance(rows[-1], dict) else 0
    if not isinstance(last, int):
        raise UserError(f"{run.path}/metrics.jsonl is damaged: step is {last!r}: restore it from a copy")
    return f"not done: at step {last} of {steps}" + (", without a summary" if last >= steps else "")


def _natural_order(name: str) -> list[tuple[int, int, str]]:
    """Returns a sort key that orders run_2 before run_10."""
    key = []
    for part in re.split(r"(\d+)", name):
        if part.isdecimal():
            key.append((0, int(part), ""))
        elif part:
            key.append((1, 0, part))
    return key
