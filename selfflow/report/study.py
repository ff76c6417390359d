"""What a report is of: the members of a sweep, some runs, or one run, and how far each of them is."""

import ast
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from selfflow.config.experiment import Experiment
from selfflow.errors import UserError
from selfflow.run.arms import arms_of, check_same_data, differing_fields
from selfflow.run.run import Run, open_run
from selfflow.serialization import to_json
from selfflow.storage.paths import bucket_url
from selfflow.sweep.folder import SWEEP


class Member(NamedTuple):
    """One run of a comparison.

    Attributes:
      name: of its run folder.
      arm: what members that differ in their seeds alone share.
      seed: `seed.init`, by which it is paired with members of other arms.
      run: as it was opened; None where there is none yet.
      summary: what the run measured of itself at its end; None where it is not done, and the member is in no mean.
      state: how far it is, in words.
      command: what trains it, as it is typed.
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
        """Whether it was trained to its end."""
        return self.summary is not None

    def score(self, name: str, *keys: str) -> float | None:
        """A number of `summary.json`; None where it is not there.

        Raises:
          UserError: if something else stands there.
        """
        found: Any = self.summary
        for key in (name, *keys):
            if not isinstance(found, dict):
                raise UserError(f"{self.run.path}/summary.json is damaged: {name} holds no table: restore it")
            found = found.get(key)
            if found is None:
                return None
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise UserError(
                f"{self.run.path}/summary.json is damaged: {'.'.join((name, *keys))} is no number: restore it"
            )
        return float(found)

    def keys(self, *names: str) -> list[str]:
        """The names in a table of `summary.json`; none where it is not there.

        Raises:
          UserError: if something else stands there.
        """
        found: Any = self.summary
        for name in names:
            found = found.get(name, {})
            if not isinstance(found, dict):
                raise UserError(f"{self.run.path}/summary.json is damaged: {name} holds no table: restore it")
        return list(found)


class Study(NamedTuple):
    """Runs that are reported of together.

    Attributes:
      name: of the folder.
      folder: where it lies, and the report beside it.
      question: what it was made for; empty where nobody said.
      asked_in: the file that the question stands in.
      baseline: the arm that others are held against; empty where there is one arm.
      members: in order.
      notes: what was left out, and why.
    """

    name: str
    folder: Path
    question: str
    asked_in: str
    baseline: str
    members: list[Member]
    notes: list[str]

    @property
    def arms(self) -> list[str]:
        """The arms, the baseline first."""
        return list(dict.fromkeys([*filter(None, [self.baseline]), *(member.arm for member in self.members)]))

    def done(self, arm: str = "") -> list[Member]:
        """The members that were trained to their end, of one arm or of all."""
        return [member for member in self.members if member.done and arm in ("", member.arm)]


def open_study(paths: Sequence[str], baseline: str = "") -> Study:
    """Opens a run, the folder of a sweep, or several runs.

    Args:
      paths: one of these, or several runs.
      baseline: the arm that others are held against; by default the first.

    Raises:
      UserError: if a folder holds no run, or a file in it is damaged; if two runs are one arm's with one seed; if there
        is no such arm.
    """
    folder, *others = paths
    alone = Path(folder)
    if others or bucket_url(folder) or (alone / "experiment.json").is_file():
        study = _of_runs([open_run(path) for path in paths], alone if not others else alone.absolute().parent)
    elif not alone.is_dir():
        raise UserError(f"{folder} is no folder: give a run, the folder of a sweep, or several runs")
    elif (alone / SWEEP).is_file():
        study = _of_sweep(alone)
    else:
        found = sorted((path.parent for path in alone.glob("*/experiment.json")), key=lambda path: _natural(path.name))
        if not found:
            raise UserError(f"{folder} holds no run (no experiment.json in it or one folder below): give another")
        runs = [Run(path) for path in found]
        flows = [run for run in runs if isinstance(run.experiment, Experiment)]
        if not flows:
            raise UserError(f"{folder} holds autoencoders alone, whose numbers are in their summary.json: give another")
        study = _of_runs(flows, alone)
        study.notes.extend(
            f"{run.name}: trained an autoencoder, whose numbers are in its summary.json"
            for run in runs
            if run not in flows
        )
    if baseline and baseline not in study.arms:
        raise UserError(f"--baseline {baseline}: there are {', '.join(study.arms)}")
    return study._replace(baseline=(baseline or study.arms[0]) if len(study.arms) > 1 else "")


def _of_runs(runs: list[Run], folder: Path) -> Study:
    arms = arms_of(runs) if len(runs) > 1 else [run.name for run in runs]
    members = [_member(run, arm, _command(run)) for run, arm in zip(runs, arms)]
    question, asked_in = _docstring(runs[0])
    return Study(folder.absolute().name if len(runs) > 1 else runs[0].name, folder, question, asked_in, "", members, [])


def _of_sweep(folder: Path) -> Study:
    """A sweep as its `sweep.json` tells of it."""
    told = _read_sweep(folder / SWEEP)
    members: list[Member] = []
    for index, one in enumerate(told["members"]):
        name, command = one["name"], shlex.join([*told["command"], "--index", str(index)])
        if not (folder / name / "experiment.json").is_file():
            members.append(Member(name, one["arm"], one["seed"], None, None, "not begun", command))
            continue
        members.append(_member(open_run(folder / name), one["arm"], command, one["steps"]))
    _check_arms(members, folder)
    known = {member.name for member in members}
    strangers = sorted(path.parent.name for path in folder.glob("*/experiment.json") if path.parent.name not in known)
    notes = [f"{', '.join(strangers)}: no member of this sweep, and left out"] if strangers else []
    return Study(folder.absolute().name, folder, told["question"], told["file"], "", members, notes)


def _read_sweep(path: Path) -> dict[str, Any]:
    """`sweep.json`, every field that is used checked."""
    wrong = lambda why: UserError(f"{path} is damaged ({why}): run `selfflow sweep` again, which writes it")
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise wrong(error) from error
    fields = {"file": str, "question": str, "command": list, "members": list}
    if not isinstance(told, dict) or (bad := [f for f, kind in fields.items() if not isinstance(told.get(f), kind)]):
        raise wrong(f"no {bad[0]}" if isinstance(told, dict) else "no object")
    if not told["members"] or not all(isinstance(word, str) for word in told["command"]):
        raise wrong("no members" if not told["members"] else "a command that is no words")
    fields = {"name": str, "arm": str, "seed": int, "steps": int}
    for one in told["members"]:
        bad = [f for f, kind in fields.items() if not isinstance(one, dict) or not isinstance(one.get(f), kind)]
        if bad or not one["arm"] or not one["name"] or set(one["name"]) & set("/\\") or one["name"].startswith("."):
            raise wrong(f"a member without {bad[0]}" if bad else f"a member called {one['name']!r} of {one['arm']!r}")
    return told


def _check_arms(members: list[Member], folder: Path) -> None:
    """Members of an arm differ in their seeds alone, or their mean tells nothing."""
    seen: dict[tuple[str, int], str] = {}
    first: dict[str, Member] = {}
    for member in members:
        if (other := seen.setdefault((member.arm, member.seed), member.name)) != member.name:
            raise UserError(
                f"{folder}: {other} and {member.name} are both {member.arm} with seed.init {member.seed}: leave one out"
            )
        if member.run is None:
            continue
        one = first.setdefault(member.arm, member)
        if differing := differing_fields(one.run.experiment, member.run.experiment):
            raise UserError(
                f"{folder}: {one.name} and {member.name} are both {member.arm}, and differ in {differing[0]}: take one "
                "of them out of the folder"
            )
    # Arms may differ in their data; where they do not, they are of the same records.
    alike: dict[str, list[Run]] = {}
    for member in members:
        if member.run is not None:
            alike.setdefault(json.dumps(to_json(member.run.experiment.data), sort_keys=True), []).append(member.run)
    for runs in alike.values():
        check_same_data(runs)


def _member(run: Run, arm: str, command: str, steps: int | None = None) -> Member:
    experiment, summary = run.experiment, run.summary()
    steps = experiment.steps if steps is None else steps
    about = lambda summary, state: Member(run.name, arm, experiment.seed.init, run, summary, state, command)
    if summary is not None:
        reached = summary.get("steps")
        if not isinstance(reached, int):
            raise UserError(f"{run.path}/summary.json is damaged: steps is {reached!r}: restore it from a copy")
        if reached >= steps:
            return about(summary, f"done, {reached} steps")
        return about(None, f"ended at step {reached} of {steps}")
    if run.provenance().get("imported"):
        return about(None, "weights were imported, and nothing was trained")
    rows = run.metrics()
    last = rows[-1].get("step", 0) if rows and isinstance(rows[-1], dict) else 0
    if not isinstance(last, int):
        raise UserError(f"{run.path}/metrics.jsonl is damaged (step is {last!r}): restore it from a copy")
    return about(None, f"not done: at step {last} of {steps}{', and its summary is missing' if last >= steps else ''}")


def _command(run: Run) -> str:
    """What trained a run, as its first session was called."""
    command = next((session["command"] for session in sessions(run) if session.get("command")), None)
    if not command:
        return ""
    program, *rest = map(str, command)
    return shlex.join(["selfflow" if program.endswith("__main__.py") else Path(program).name, *rest])


def sessions(run: Run) -> list[dict[str, Any]]:
    """What `provenance.json` tells of every time that the run was trained.

    Raises:
      UserError: if it is missing or damaged.
    """
    found = run.provenance().get("sessions", [])
    if not isinstance(found, list) or not all(isinstance(session, dict) for session in found):
        raise UserError(f"{run.path}/provenance.json is damaged: sessions holds no tables: restore it from a copy")
    for name, kind in (("packages", dict), ("command", list), ("devices", list)):
        if any(not isinstance(session.get(name) or kind(), kind) for session in found):
            raise UserError(f"{run.path}/provenance.json is damaged: {name} of a session: restore it from a copy")
    return found


def _docstring(run: Run) -> tuple[str, str]:
    """The docstring of the experiment file that trained a run, if it is still where it was, and the file."""
    for session in sessions(run):
        for word in session.get("command") or []:
            path = Path(str(word))
            if path.suffix == ".py" and path.name != "__main__.py" and path.is_file():
                try:
                    return ast.get_docstring(ast.parse(path.read_text())) or "", f"{path}, as it is now"
                except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
                    return "", ""  # a file that has become another since tells nothing of the run
    return "", ""


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Names in the order in which people count: run_2 before run_10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
