"""The folder of a sweep: `sweep.json` says of which comparison the runs in it are, and another is refused."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from selfflow.config.experiment import Experiment
from selfflow.config.files import diff, is_fixed
from selfflow.errors import UserError
from selfflow.serialization import from_json, to_json
from selfflow.storage.paths import url
from selfflow.storage.staging import locked
from selfflow.sweep.load import Sweep, overridden

SWEEP = "sweep.json"
_LOCK = "sweep.lock"
# Flags that say where and how members are trained, not what, by how many values follow them.
_HOW = {"--index": 1, "--jobs": 1, "--data-dir": 1, "--list": 0, "--no-list": 0}
_HOW |= {"--coordinator": 1, "--processes": 1, "--process": 1}


def describe(sweep: Sweep, arguments: list[str]) -> dict[str, Any]:
    """What `sweep.json` is to say, as JSON data.

    Args:
      sweep: the comparison.
      arguments: what followed `selfflow sweep` on the command line, the experiment file first.
    """
    return {
        "file": arguments[0],
        "question": sweep.question,
        "command": ["selfflow", "sweep", *_asked(arguments)],
        "budget": {name: value for name, value in to_json(sweep.budget).items() if value is not None} or None,
        "experiment": to_json(sweep.base),
        "members": [
            {
                "name": name,
                "arm": planned.member.arm or name,
                "seed": planned.experiment.seed.init,
                "overrides": to_json(planned.member.overrides),
                "steps": planned.experiment.steps,
                "flops": planned.flops,
            }
            for name, planned in sweep.members.items()
        ],
    }


def check_sweep(folder: Path, described: dict[str, Any]) -> None:
    """Raises `UserError` where a folder holds another sweep than the one that is described; writes nothing.

    The same sweep may have got more members; those that were there keep their lengths and all settings that say what
    is computed.
    """
    if not url(folder) and (folder / "experiment.json").exists():
        raise UserError(f"--workdir {folder} is a run folder: give the sweep a folder of its own")
    content = _read(folder)
    if content is None:
        return
    path = f"{url(folder) or folder}/{SWEEP}"
    try:
        before = json.loads(content)
        old = _experiments(before, path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}): remove it; what has begun is still compared with "
            "its run folder"
        ) from error
    new = _experiments(described, path)
    another = f"{url(folder) or folder} holds another sweep, of {before.get('file')}"
    for name in old:
        if name not in new:
            raise UserError(f"{another}: it has the member {name}, which is missing now: use another --workdir")
        for field, (was, now) in diff(old[name], new[name]).items():
            if field == "steps" or is_fixed(field):
                raise UserError(
                    f"{another}: {field} of its member {name} was {was!r}, now {now!r}: use another --workdir, or the "
                    "old value"
                )


def enter_sweep(folder: Path, described: dict[str, Any]) -> None:
    """Makes a folder that of a sweep, or takes up the same one in it; several processes may do so at once.

    Args:
      folder: on a disk or in a bucket.
      described: what `sweep.json` is to say.

    Raises:
      UserError: as `check_sweep`.
    """
    content = json.dumps(described, indent=1).encode()
    if where := url(folder):
        from selfflow.storage.store import write

        if not write(f"{where}/{SWEEP}", content, fresh=True):  # a store has no locks: the first one is there for all
            check_sweep(folder, described)
            write(f"{where}/{SWEEP}", content)
        return
    with locked(folder / _LOCK):
        check_sweep(folder, described)
        partial = folder / "sweep.partial"
        partial.write_bytes(content)
        os.replace(partial, folder / SWEEP)


def _read(folder: Path) -> bytes | None:
    if where := url(folder):
        from selfflow.storage.store import read

        return read(f"{where}/{SWEEP}")
    try:
        return (folder / SWEEP).read_bytes()
    except FileNotFoundError:
        return None


def _experiments(described: dict[str, Any], path: str) -> dict[str, Experiment]:
    base = from_json(described["experiment"], Experiment, path)
    return {
        member["name"]: dataclasses.replace(overridden(base, member["overrides"], path), steps=member["steps"])
        for member in described["members"]
    }


def _asked(arguments: list[str]) -> list[str]:
    """The arguments without those that say how."""
    kept, passed_over = [], 0
    for argument in arguments:
        flag, equals, _ = argument.partition("=")
        flag = flag.replace("_", "-")
        if passed_over:
            passed_over -= 1
        elif flag in _HOW:
            passed_over = 0 if equals else _HOW[flag]
        else:
            kept.append(argument)
    return kept
