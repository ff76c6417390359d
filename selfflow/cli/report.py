"""`selfflow report`: writes a run or a sweep as one HTML page, with its numbers as CSV."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from selfflow.errors import UserError, check_at_least
from selfflow.storage.paths import bucket_url

_EXAMPLE = "selfflow report runs/sight_and_sound --baseline shuffled"


@dataclass(frozen=True)
class Arguments:
    """Arguments of `selfflow report`."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """A run, several runs, or the folder of a sweep."""
    baseline: str = ""
    """Arm that the others are compared to; by default the first. Runs that differ only in their seeds form an arm."""
    probes: tuple[Path, ...] = ()
    """CSV files of `selfflow probe` outside of the run folders."""
    samples: int = 2
    """Clips to show for each component and arm."""
    megabytes: float = 16.0
    """Limit on the size of all samples in the page, in MB; the page states the number of omitted samples."""
    out: Path | None = None
    """Output folder; by default `report` in the folder of the run or the sweep, or next to several runs."""

    def __post_init__(self):
        if not self.runs:
            raise UserError(f"name a run or the folder of a sweep; example: {_EXAMPLE}")
        check_at_least(self, "--", samples=0)
        if not 0 <= self.megabytes < 1000:
            raise UserError(f"--megabytes is {self.megabytes:g}, expected at least 0 and less than 1000")


def main(arguments: list[str]) -> None:
    """Parses `RUN_OR_SWEEP [--baseline ARM] [--out DIR]` and writes the page."""
    description = f"Write a run or a sweep as one HTML page, with its numbers as CSV.\n\nexample: {_EXAMPLE}"
    options = tyro.cli(Arguments, prog="selfflow report", description=description, args=arguments)
    if options.out is None and any(map(bucket_url, options.runs)):
        raise UserError("--out is missing: give a local folder for the report of a run in object storage")
    if options.out is not None and bucket_url(options.out):
        raise UserError(f"--out is {bucket_url(options.out)}: give a local folder, and copy it to object storage")
    from selfflow.report.results import count_of, summarise
    from selfflow.report.study import open_study
    from selfflow.report.write import write_report

    study = open_study(options.runs, options.baseline)
    folder = options.out or study.folder / "report"
    report = write_report(study, folder, options.probes, options.samples, options.megabytes)
    runs, arms = count_of(len(study.members), "run"), count_of(len(study.arms), "arm")
    print(f"{study.name}: {runs} of {arms}, {len(study.done())} done")
    summary = summarise(report.measures)
    if summary.compared:
        result = f"{summary.significant} exclude 0" if summary.significant else "each contains 0: a null result"
        differences = count_of(summary.compared, "difference")
        print(f"{differences} to {study.baseline} with a 95 % interval: {result} (no correction is made)")
    for note in dict.fromkeys(report.notes):
        print(f"  left out: {note}")
    size = report.path.stat().st_size / 1e6
    print(f"{report.path} ({size:.1f} MB), and {', '.join(file.name for file in report.files)}")
