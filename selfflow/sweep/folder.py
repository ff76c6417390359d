"""Folder of a sweep, with its description in `sweep.json`."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from selfflow.config.experiment import Experiment
from selfflow.config.files import diff, is_fixed
from selfflow.errors import UserError
from selfflow.serialization import from_json, to_json
from selfflow.storage.atomic import atomic_write
from selfflow.storage.lock import locked
from selfflow.storage.paths import bucket_url
from selfflow.sweep.load import Sweep, with_overrides

SWEEP = "sweep.json"
_LOCK = "sweep.lock"
# Flags that affect only the execution of the runs, with the number of values that follow each.
_LAUNCH_FLAGS = {"--index": 1, "--jobs": 1, "--data-dir": 1, "--list": 0, "--no-list": 0}
_LAUNCH_FLAGS |= {"--coordinator": 1, "--processes": 1, "--process": 1}


def describe(sweep: Sweep, arguments: list[str]) -> dict[str, Any]:
    """Returns the content of `sweep.json`, as JSON data.

    Args:
      sweep: the sweep.
      arguments: arguments of `selfflow sweep`; the first is the experiment file.
    """
    members = []
    for name, run in sweep.runs.items():
        members.append(
            {
                "name": name,
                "arm": run.member.arm or name,
                "seed": run.experiment.seed.init,
                "overrides": to_json(run.member.overrides),
                "steps": run.experiment.steps,
                "flops": run.flops,
            }
        )
    budget = {name: value for name, value in to_json(sweep.budget).items() if value is not None}
    return {
        "file": arguments[0],
        "question": sweep.question,
        "command": ["selfflow", "sweep", *_without_launch_flags(arguments)],
        "budget": budget or None,
        "experiment": to_json(sweep.base),
        "members": members,
    }


def check_sweep(folder: Path, description: dict[str, Any]) -> None:
    """Raises `UserError` if a folder has a different sweep; writes nothing.

    Runs may be added to a sweep. Existing runs must keep their lengths and all fields that may not change in a run.

    Args:
      folder: folder on a disk or in a bucket; it need not exist.
      description: result of `describe`.
    """
    if not bucket_url(folder) and (folder / "experiment.json").exists():
        raise UserError(f"--workdir {folder} is a run folder: give the sweep a folder of its own")
    content = _read(folder)
    if content is None:
        return
    path = f"{bucket_url(folder) or folder}/{SWEEP}"
    try:
        before = json.loads(content)
        old = _experiments(before, path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}): remove it; runs are still compared with their own "
            "experiment.json"
        ) from error
    new = _experiments(description, path)
    another = f"{bucket_url(folder) or folder} has another sweep, of {before.get('file')}"
    for name in old:
        if name not in new:
            raise UserError(f"{another}: it has the run {name}, which is missing now: use another --workdir")
        for field, (was, now) in diff(old[name], new[name]).items():
            if field == "steps" or is_fixed(field):
                raise UserError(
                    f"{another}: {field} of its run {name} was {was!r}, now {now!r}: use another --workdir, or the "
                    "old value"
                )


def enter_sweep(folder: Path, description: dict[str, Any]) -> None:
    """Writes `sweep.json` to the folder of a sweep; safe to call from several processes at once.

    Args:
      folder: folder on a disk or in a bucket.
      description: result of `describe`.

    Raises:
      UserError: as in `check_sweep`.
    """
    content = json.dumps(description, indent=1).encode()
    where = bucket_url(folder)
    if where:
        from selfflow.storage.object_store import write_object

        # Object stores have no locks: the first process creates the object, the others check it before they write.
        if not write_object(f"{where}/{SWEEP}", content, fresh=True):
            check_sweep(folder, description)
            write_object(f"{where}/{SWEEP}", content)
        return
    with locked(folder / _LOCK):
        check_sweep(folder, description)
        with atomic_write(folder / SWEEP) as partial:
            partial.write_bytes(content)


def _read(folder: Path) -> bytes | None:
    where = bucket_url(folder)
    if where:
        from selfflow.storage.object_store import read_object

        return read_object(f"{where}/{SWEEP}")
    try:
        return (folder / SWEEP).read_bytes()
    except FileNotFoundError:
        return None


def _experiments(description: dict[str, Any], path: str) -> dict[str, Experiment]:
    """Returns the experiment of each run in a description, by the name of the run."""
    base = from_json(description["experiment"], Experiment, path)
    experiments = {}
    for member in description["members"]:
        experiment = with_overrides(base, member["overrides"], path)
        experiments[member["name"]] = dataclasses.replace(experiment, steps=member["steps"])
    return experiments


def _without_launch_flags(arguments: list[str]) -> list[str]:
    """Returns the arguments without flags that affect only the execution."""
    others, values_to_skip = [], 0
    for argument in arguments:
        flag, equals, _ = argument.partition("=")
        flag = flag.replace("_", "-")
        if values_to_skip:
            values_to_skip -= 1
        elif flag in _LAUNCH_FLAGS:
            values_to_skip = 0 if equals else _LAUNCH_FLAGS[flag]
        else:
            others.append(argument)
    return others
