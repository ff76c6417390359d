"""Arms of a study (runs that differ only in their seeds), and comparison of experiments."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from selfflow.config.experiment import Experiment
from selfflow.config.files import diff, is_fixed
from selfflow.errors import UserError


class StudyRun(Protocol):
    """Protocol with the members of `selfflow.run.run.Run` that arms depend on.

    Attributes:
      name: name of the run folder.
      source: path or URL of the run.
      experiment: resolved experiment of the run.
    """

    name: str
    source: str
    experiment: Experiment

    def provenance(self) -> Mapping[str, Any]:
        """Returns the content of `provenance.json`."""
        ...


def arms_of(runs: Sequence[StudyRun]) -> list[str]:
    """Returns the name of each run's arm.

    Runs whose names differ only in a number at the end, such as `dual_1` and `dual_2`, form an arm with the common part
    as its name, if their experiments differ only in their seeds. Every other run is an arm with the name of the run.

    Raises:
      UserError: if two runs have the same name, or the same arm and seed, or were trained on different records.
    """
    check_same_data(runs)
    by_name: dict[str, StudyRun] = {}
    by_stem: dict[str, list[StudyRun]] = {}
    for run in runs:
        other = by_name.setdefault(run.name, run)
        if other is not run:
            raise UserError(
                f"{other.source} and {run.source} have one name, by which tables list runs: rename one of the folders"
            )
        by_stem.setdefault(_stem(run.name), []).append(run)

    arms: list[str] = []
    by_seed: dict[tuple[str, int], StudyRun] = {}  # arm, seed -> its run
    for run in runs:
        siblings = by_stem[_stem(run.name)]
        alike = all(not differing_fields(siblings[0].experiment, other.experiment) for other in siblings)
        arm = _stem(run.name) if len(siblings) > 1 and alike else run.name
        seed = run.experiment.seed.init
        other = by_seed.setdefault((arm, seed), run)
        if other is not run:
            raise UserError(f"{run.source} and {other.source} are both {arm} with seed.init {seed}: leave one out")
        arms.append(arm)
    return arms


def check_same_data(runs: Sequence[StudyRun]) -> None:
    """Raises `UserError` unless all runs were trained on the same records: other scores are not comparable."""
    first: dict[str, str] | None = None
    for run in runs:
        fingerprints = {}
        for dataset in run.provenance().get("datasets", {}).values():
            fingerprints[dataset["dataset"]] = dataset["fingerprint"]
        first = fingerprints if first is None else first
        if fingerprints != first:
            raise UserError(
                f"{run.source} was trained on {', '.join(fingerprints) or 'no data'} and {runs[0].source} on "
                f"{', '.join(first) or 'no data'}, or on other records of it: probe them separately"
            )


def differing_fields(one: Experiment, other: Experiment) -> list[str]:
    """Returns the fields in which two experiments differ, without seeds and fields that may change except `steps`."""
    names = [name for name in diff(one, other) if is_fixed(name) or name == "steps"]
    return [name for name in names if name.split(".")[0] != "seed"]


def _stem(name: str) -> str:
    """Returns a name without the number at its end."""
    return re.sub(r"[-_]?\d+$", "", name) or name
