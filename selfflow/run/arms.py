"""Arms of a study: runs that differ in their seeds alone, and the fields in which runs differ."""

import re
from collections.abc import Sequence
from typing import Any

from selfflow.config.files import diff, is_fixed
from selfflow.errors import UserError


def arms_of(runs: Sequence[Any]) -> list[str]:
    """The name of each run's method: that of its folder without the number at its end, where runs differ in their seeds
    alone; else that of its folder.

    Args:
      runs: opened runs.

    Raises:
      UserError: if two runs differ in nothing, or were trained on other records.
    """
    check_same_data(runs)
    names = [run.name for run in runs]
    for run, name in zip(runs, names):
        if (other := runs[names.index(name)]) is not run:
            raise UserError(f"{other.source} and {run.source}: rows go by the name of a run: rename one of the folders")
    stems = [re.sub(r"[-_]?\d+$", "", name) or name for name in names]
    settings: dict[str, list[Any]] = {}
    for stem, run in zip(stems, runs):
        settings.setdefault(stem, []).append(run.experiment)
    methods = [
        stem
        if len(settings[stem]) > 1 and not any(differing_fields(settings[stem][0], other) for other in settings[stem])
        else name
        for stem, name in zip(stems, names)
    ]
    seen: dict[tuple[str, int], Any] = {}
    for method, run in zip(methods, runs):
        seed = run.experiment.seed.init
        if (other := seen.setdefault((method, seed), run)) is not run:
            raise UserError(f"{run.source} and {other.source} are both {method} with seed.init {seed}: leave one out")
    return methods


def check_same_data(runs: Sequence[Any]) -> None:
    """Raises `UserError` unless opened runs were trained on the same records, without which scores tell nothing."""
    fingerprints = [
        {s["dataset"]: s["fingerprint"] for s in run.provenance().get("datasets", {}).values()} for run in runs
    ]
    for run, found in zip(runs, fingerprints):
        if found != fingerprints[0]:
            raise UserError(
                f"{run.source} was trained on {', '.join(found) or 'no data'} and {runs[0].source} on "
                f"{', '.join(fingerprints[0]) or 'no data'}, or on other records of it: probe them apart"
            )


def differing_fields(one: Any, other: Any) -> list[str]:
    """The fields in which two experiments differ, of those that say what is computed, seeds apart."""
    found = [name for name in diff(one, other) if is_fixed(name) or name == "steps"]
    return [name for name in found if name.split(".")[0] != "seed"]
