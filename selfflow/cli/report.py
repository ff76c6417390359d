"""`selfflow report`: a run or a sweep as one HTML page, with its figures as CSV."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from selfflow.errors import UserError, check_at_least
from selfflow.storage.paths import bucket_url

_EXAMPLE = "selfflow report runs/sight_and_sound --baseline shuffled"


@dataclass(frozen=True)
class Arguments:
    """What `selfflow report` is told."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """A run, the folder of a sweep, or several runs."""
    baseline: str = ""
    """The arm that the others are held against; by default the first. Members that differ in their seeds alone are one
    arm."""
    probes: tuple[Path, ...] = ()
    """CSV files of `selfflow probe`, besides those that lie with the runs."""
    samples: int = 2
    """Clips of each set of each arm."""
    megabytes: float = 16.0
    """What all samples may take in the page; those that do not fit are counted in it."""
    out: Path | None = None
    """The folder to write into; by default `report` in the run or in the sweep, or beside several runs."""

    def __post_init__(self):
        if not self.runs:
            raise UserError(f"name a run or the folder of a sweep; example: {_EXAMPLE}")
        check_at_least(self, "--", samples=0)
        if not 0 <= self.megabytes < 1000:
            raise UserError(f"--megabytes is {self.megabytes:g}: give a number from 0 to 1000")


def main(arguments: list[str]) -> None:
    """Parses `RUN_OR_SWEEP [--baseline ARM] [--out DIR]` and writes the page."""
    description = f"Write a run or a sweep as one HTML page, with its figures as CSV.\n\nexample: {_EXAMPLE}"
    given = tyro.cli(Arguments, prog="selfflow report", description=description, args=arguments)
    if given.out is None and any(map(bucket_url, given.runs)):
        raise UserError("--out: name a local folder for the report of a run in a bucket")
    if given.out is not None and bucket_url(given.out):
        raise UserError(f"--out {bucket_url(given.out)}: write to a local folder, and copy it into the bucket")
    from selfflow.report.measures import shown
    from selfflow.report.study import open_study
    from selfflow.report.write import write_report

    study = open_study(given.runs, given.baseline)
    written = write_report(study, given.out or study.folder / "report", given.probes, given.samples, given.megabytes)
    size = written.path.stat().st_size / 1e6
    members, arms = _count(len(study.members), "member"), _count(len(study.arms), "arm")
    print(f"{study.name}: {members} of {arms}, {len(study.done())} done")
    held = [
        (m, one) for m in written.measures for one in m.methods if one.difference and one.difference.low is not None
    ]
    if held:
        clear = sum(shown(m, one) for m, one in held)
        told = f"{clear} exclude 0" if clear else "each holds 0: a null result"
        print(f"{len(held)} differences to {study.baseline} with a 95 % interval: {told} (no correction is made)")
    for note in dict.fromkeys(written.notes):
        print(f"  left out: {note}")
    print(f"{written.path} ({size:.1f} MB), and {', '.join(file.name for file in written.files)}")


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
