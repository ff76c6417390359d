"""`selfflow probe`: probes the layers of one or more runs; writes tables, CSV files and figures."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import tyro

from selfflow.errors import UserError

if TYPE_CHECKING:
    from selfflow.representation.probes.probe_run import Probing, Row
    from selfflow.run.run import Run

Number = TypeVar("Number", int, float)
_EXAMPLE = "selfflow probe runs/quickstart --targets material,count --layers all --tau 0.1,0.3,0.5"


@dataclass(frozen=True)
class Options:
    """Flags of `selfflow probe`; several values are separated by commas."""

    targets: str = ""
    """Probe targets: labels of the data set; for Collisions also shape, contacts (per clip), contact (per time step),
    position and velocity (per video token). By default all labels."""
    layers: str = "all"
    """Blocks whose features are probed, counted from 1, such as 2,4."""
    tau: str = "0.1"
    """Noise levels of the latents. The best layer and noise level are chosen on the validation split."""
    sources: str = ""
    """Input modalities of the network and the probe, such as video or video+audio; by default each modality of the
    component separately, and all together."""
    probe: Literal["logistic", "linear", "knn", "attentive", "few-shot"] = "logistic"
    """Probe of classes: logistic regression; linear, as in REPA and Self-Flow; knn, as in DINO; attentive, over all
    tokens, as in V-JEPA; few-shot, with 5 samples per class, as in MSN. Continuous targets use ridge regression."""
    weights: str = "ema"
    """Weights: ema, student, or untrained (random weights with open gates, for comparison)."""
    step: int | None = None
    """Checkpoint; by default the newest."""
    component: str = ""
    """Component of the mixture; by default the first."""
    split: str = "test"
    """Split that scores are computed on."""
    clips: int = 2048
    """Maximum number of training clips that probes are fitted on."""
    token_clips: int = 256
    """Number of clips of each split for targets per time step and per token."""
    retrieval: int = 0
    """Number of videos for audio retrieval, which picks the matching one of 16 audio clips by flow loss; 100 take
    minutes."""
    baseline: str = ""
    """Method that the others are compared with; by default the method of the first run. With several weights the name
    includes the weights, such as "shuffled, ema"."""
    csv: Path | None = None
    """Output file for all rows; by default probes/TARGETS_PROBE.csv in the run folder, or next to several run folders,
    with all flags that differ from their defaults in the name."""
    data_dir: Path | None = None
    """Data folder; by default the folder of each run's last session."""


class _Network(NamedTuple):
    """A network to probe.

    Attributes:
      run: the run.
      weights: weights of the run: ema, student or untrained.
      method: name of the method in tables.
    """

    run: "Run"
    weights: str
    method: str


def main(arguments: list[str]) -> None:
    """Parses `RUN [RUN ...] [--targets T,...] [--layers L,...] [--tau X,...]` and probes the runs."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: selfflow probe RUN [RUN ...] [--FLAG VALUE ...]\n\nexample: {_EXAMPLE}\n")
        if not arguments:
            return
    runs = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    options = tyro.cli(
        Options, prog="selfflow probe RUN ...", description=f"example: {_EXAMPLE}", args=arguments[len(runs) :]
    )
    if not runs:
        raise UserError(f"name a run folder first; example: {_EXAMPLE}")
    probe(runs, options)


def probe(paths: list[str], options: Options) -> list["Row"]:
    """Probes runs one after the other, prints tables, and writes a CSV file and a figure."""
    from selfflow.cli.probe_tables import print_rows
    from selfflow.representation.comparison import write_rows
    from selfflow.representation.figures.layers import probe_curves
    from selfflow.representation.probes.probe_run import probe_run
    from selfflow.representation.retrieval import retrieval_rows
    from selfflow.run.arms import arms_of
    from selfflow.run.run import open_run

    settings, all_weights = _settings(options), _names(options.weights)
    for weights in all_weights:
        if weights not in ("ema", "student", "untrained"):
            raise UserError(f"--weights is {weights}, expected ema, student or untrained")
    runs = [open_run(path) for path in paths]
    if not settings.component and not settings.sources:
        check_components(runs)
    out = options.csv or default_path(paths, options)
    networks: list[_Network] = []
    for run, arm in zip(runs, arms_of(runs)):
        for weights in all_weights:
            networks.append(_Network(run, weights, arm if len(all_weights) == 1 else f"{arm}, {weights}"))
    baseline = match_baseline(options.baseline, [network.method for network in networks])

    rows: list[Row] = []
    for run, weights, method in networks:
        # Untrained weights have no checkpoint.
        step = None if weights == "untrained" else options.step
        network = {"method": method, "weights": weights, "step": step, "data_dir": options.data_dir}
        rows += probe_run(run, settings, **network)
        if options.retrieval:
            component, split = settings.component, settings.split
            rows += retrieval_rows(run, options.retrieval, component=component, split=split, **network)
        # Rows are written after every network, so that they are kept if a later network fails.
        write_rows(out, rows)
    probe_curves(rows).savefig(out.with_suffix(".png"), dpi=150)
    print_rows(rows, baseline)
    print(f"\nAll rows: {out}\nCurves: {out.with_suffix('.png')}")
    return rows


def check_components(runs: list["Run"]) -> None:
    """Raises `UserError` unless the first components of all runs have the same modalities."""
    first_with: dict[frozenset | None, str] = {}
    for run in runs:
        name, component = next(iter(run.experiment.mixture.items()), ("none", None))
        modalities = frozenset(component.modalities) if component else None
        first_with.setdefault(modalities, f"{name} of {run.source}")
    if len(first_with) > 1:
        raise UserError(
            f"first components have different modalities ({' and '.join(first_with.values())}): name a --component or "
            "--sources that all runs have"
        )


def _settings(options: Options) -> "Probing":
    from selfflow.representation.probes.probe_run import Probing

    return Probing(
        targets=_names(options.targets),
        layers=() if options.layers == "all" else _numbers("layers", options.layers, int),
        tau=_numbers("tau", options.tau, float),
        sources=_names(options.sources),
        probe=options.probe,
        component=options.component,
        split=options.split,
        clips=options.clips,
        token_clips=options.token_clips,
    )


def _names(text: str) -> tuple[str, ...]:
    """Splits text at commas, and removes empty values and repetitions."""
    return tuple(dict.fromkeys(filter(None, text.split(","))))


def _numbers(flag: str, text: str, convert: Callable[[str], Number]) -> tuple[Number, ...]:
    try:
        return tuple(convert(part) for part in _names(text))
    except ValueError:
        raise UserError(f"--{flag} {text}: give numbers separated by commas") from None


def match_baseline(name: str, labels: list[str]) -> str:
    """Returns the method for `--baseline`: an exact match, or the only method that starts with the name.

    Args:
      name: value of the flag; empty for none.
      labels: names of all methods, such as "shuffled, ema".
    """
    if not name or name in labels:
        return name
    matches = {label for label in labels if label.startswith(f"{name}, ")}
    if len(matches) != 1:
        raise UserError(f"--baseline is {name!r}, expected one of {', '.join(map(repr, dict.fromkeys(labels)))}")
    return matches.pop()


def default_path(paths: list[str], options: Options) -> Path:
    """Returns the default of `--csv`; the file name contains all flags that affect the rows."""
    from selfflow.storage.paths import bucket_url

    if any(bucket_url(path) for path in paths):
        raise UserError("--csv: name a local file for the rows of a run in object storage")
    folder = Path(paths[0]) if len(paths) == 1 else Path(paths[0]).resolve().parent
    parts = [options.targets.replace(",", "_") or "labels", options.probe]
    for field in fields(Options):
        value = getattr(options, field.name)
        if field.name not in ("targets", "probe", "baseline", "csv", "data_dir") and value != field.default:
            parts.append(f"{field.name}={value}")
    return folder / "probes" / f"{'_'.join(parts).replace('/', '-')}.csv"
