"""`selfflow probe`: what the layers of one run or of several know, as a table, CSV and figures."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from selfflow.errors import UserError

if TYPE_CHECKING:
    from selfflow.representation.probes.probe_run import Probing, Row
    from selfflow.run.run import Run

_EXAMPLE = "selfflow probe runs/quickstart --targets material,count --layers all --tau 0.1,0.3,0.5"
_FEW = 6  # runs whose layers are all printed


@dataclass(frozen=True)
class Options:
    """Flags of `selfflow probe`; several values are parted by commas."""

    targets: str = ""
    """What is asked: labels of the data; of Collisions also shape, contacts (of a clip), contact (of each moment),
    position and velocity (of each video token). By default the labels."""
    layers: str = "all"
    """Blocks, counted from 1, such as 2,4."""
    tau: str = "0.1"
    """Noise levels of the latents; with several, validation chooses one for the table, as it chooses the layer."""
    sources: str = ""
    """What the network sees and the probe reads, such as video or video+audio; by default each modality of the
    component alone, and all of them."""
    probe: Literal["logistic", "linear", "knn", "attentive", "few-shot"] = "logistic"
    """For classes: logistic regression; linear, as in REPA and Self-Flow; knn, as in DINO; attentive, over all tokens,
    as in V-JEPA; few-shot, of 5 samples of each class, as in MSN. Numbers are read by ridge regression."""
    weights: str = "ema"
    """ema, student, or untrained: fresh weights with open gates, to hold the others against."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    component: str = ""
    """The set of the mixture; by default the first."""
    split: str = "test"
    """The split that scores are of."""
    clips: int = 2048
    """Clips of train that probes are fitted on, if there are so many."""
    token_clips: int = 256
    """Clips of each split whose tokens or moments are probed one by one."""
    retrieval: int = 0
    """How many films of the split are also to find their own sounds among 16, by the flow loss: minutes for 100."""
    baseline: str = ""
    """Of several runs the method that others are held against; by default that of the first. With several weights it
    is named with its own, such as "shuffled, ema"."""
    csv: Path | None = None
    """File for all rows; by default probes/TARGETS_PROBE.csv in the run, or beside the runs where there are several,
    with all flags in its name that are given."""
    data_dir: Path | None = None
    """Where the data of the runs is; by default where it was when they were trained."""


def main(arguments: list[str]) -> None:
    """Parses `RUN [RUN ...] [--targets T,...] [--layers L,...] [--tau X,...]`, probes, prints and writes."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: selfflow probe RUN [RUN ...] [--FLAG VALUE ...]\n\nexample: {_EXAMPLE}\n")
        if not arguments:
            return
    flags = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    runs, options = (
        arguments[:flags],
        tyro.cli(Options, prog="selfflow probe RUN ...", description=f"example: {_EXAMPLE}", args=arguments[flags:]),
    )
    if not runs:
        raise UserError(f"name a run folder first; example: {_EXAMPLE}")
    probe(runs, options)


def probe(paths: list[str], options: Options) -> list["Row"]:
    """Probes runs one after the other, prints the tables and writes CSV and figures."""
    from selfflow.representation.comparison import write_rows
    from selfflow.representation.figures.layers import probe_curves
    from selfflow.representation.probes.probe_run import probe_run
    from selfflow.representation.retrieval import retrieval_rows
    from selfflow.run.arms import arms_of
    from selfflow.run.run import open_run

    asked, wanted = _asked(options), _names(options.weights)
    if unknown := [name for name in wanted if name not in ("ema", "student", "untrained")]:
        raise UserError(f"--weights {unknown[0]}: there are ema, student and untrained")
    runs = [open_run(path) for path in paths]
    if not asked.component and not asked.sources:
        _check_components(runs)
    out = options.csv or _place(paths, options)
    labelled = [
        (run, weights, method if len(wanted) == 1 else f"{method}, {weights}")
        for run, method in zip(runs, arms_of(runs))
        for weights in wanted
    ]
    baseline = _baseline(options.baseline, [label for _, _, label in labelled])
    rows: list[Row] = []
    for run, weights, label in labelled:
        step = None if weights == "untrained" else options.step
        more = {"method": label, "weights": weights, "step": step, "data_dir": options.data_dir}
        rows += probe_run(run, asked, **more)
        if options.retrieval:
            rows += retrieval_rows(run, options.retrieval, component=asked.component, split=asked.split, **more)
        write_rows(out, rows)  # what is done is kept, whatever befalls the next
    probe_curves(rows).savefig(out.with_suffix(".png"), dpi=150)
    _print(rows, baseline)
    print(f"\nAll rows: {out}\nCurves: {out.with_suffix('.png')}")
    return rows


def _check_components(runs: list["Run"]) -> None:
    """Raises `UserError` unless the first components of runs, which are asked, hold the same modalities."""
    shown = {}
    for run in runs:
        first, chosen = next(iter(run.experiment.mixture.items()), ("", None))
        shown.setdefault(frozenset(chosen.modalities) if chosen else None, (run, first))
    if len(shown) > 1:
        told = " and ".join(f"{first or 'none'} of {run.source}" for run, first in shown.values())
        raise UserError(
            f"first components hold other modalities ({told}): name a --component or --sources that all runs have"
        )


def _asked(options: Options) -> "Probing":
    from selfflow.representation.probes.probe_run import Probing

    def numbers(flag: str, text: str, kind: type) -> tuple:
        try:
            return tuple(kind(part) for part in _names(text))
        except ValueError:
            raise UserError(f"--{flag} {text}: give numbers parted by commas") from None

    return Probing(
        _names(options.targets),
        () if options.layers == "all" else numbers("layers", options.layers, int),
        numbers("tau", options.tau, float),
        _names(options.sources),
        options.probe,
        options.component,
        options.split,
        options.clips,
        options.token_clips,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, text.split(","))))


def _baseline(name: str, labels: list[str]) -> str:
    """The label that a baseline means: itself, or the one that has weights behind the name."""
    if not name or name in labels:
        return name
    found = {label for label in labels if label.startswith(f"{name}, ")}
    if len(found) != 1:
        raise UserError(f"--baseline {name!r}: there are {', '.join(map(repr, dict.fromkeys(labels)))}; name one")
    return found.pop()


def _place(paths: list[str], options: Options) -> Path:
    """Where the rows go where nothing is said: what is asked is in its name, so that no question takes another's."""
    from selfflow.storage.paths import bucket_url

    if any(bucket_url(path) for path in paths):
        raise UserError("--csv: name a local file for the rows of a run in a bucket")
    folder = Path(paths[0]) if len(paths) == 1 else Path(paths[0]).absolute().parent
    parts = [options.targets.replace(",", "_") or "labels", options.probe]
    for field in fields(Options):
        value = getattr(options, field.name)
        if field.name not in ("targets", "probe", "baseline", "csv", "data_dir") and value != field.default:
            parts.append(f"{field.name}={value}")
    return folder / "probes" / f"{'_'.join(parts).replace('/', '-')}.csv"


def _print(rows: list["Row"], baseline: str) -> None:
    from selfflow.representation.probes.probe_run import best

    several = len({(row.run, row.weights) for row in rows}) > 1
    for target, source in dict.fromkeys((row.target, row.source) for row in rows):
        some = [row for row in rows if (row.target, row.source) == (target, source)]
        metric = some[0].metric.replace("_", " ").replace("r2", "R^2")
        chance = f", chance {some[0].chance:.3f}" if some[0].chance else ""
        print(f"\n{target} from {source}: {metric} of the {some[0].probe} on {some[0].split}{chance}")
        if not some[0].layer:  # what the network as a whole was asked
            for row in some if not several else ():
                print(f"  {row.method}: {row.test:.3f}")
            if several:
                _compare(some, baseline)
            continue
        chosen = best(some)
        if len({(row.run, row.weights) for row in some}) <= _FEW or not chosen:
            _print_layers(some)
        if several and not chosen and len({(row.layer, row.tau) for row in some}) == 1:
            _compare(some, baseline)
        if several and chosen:
            print("  with the layer and the tau that validation chooses for each run:")
            _compare(chosen, baseline)
        for row in chosen if not several else ():
            sure = f" [{row.low:.3f}, {row.high:.3f}], by a bootstrap over test clips" if row.low == row.low else ""
            print(f"  chosen on validation: block {row.layer}, tau {row.tau:g}: {row.test:.3f}{sure}")


def _print_layers(rows: list["Row"]) -> None:
    layers, width = sorted({row.layer for row in rows}), max(len(row.method) for row in rows)
    print(f"  {'':<{width}}  {'tau':>5}  " + " ".join(f"{f'block {layer}':>8}" for layer in layers))
    for run, method, tau in dict.fromkeys((r.run, r.method, r.tau) for r in rows):
        cells = {r.layer: r.test for r in rows if (r.run, r.method, r.tau) == (run, method, tau)}
        print(f"  {method:<{width}}  {tau:>5g}  " + " ".join(_cell(cells.get(layer)) for layer in layers))


def _cell(score: float | None) -> str:
    return f"{'-':>8}" if score is None else f"{score:>8.3f}"  # a run may have fewer blocks than another


def _compare(rows: list["Row"], baseline: str) -> None:
    from selfflow.representation.comparison import compare_methods

    told = "  in brackets: 95 %, Student's t over training seeds"
    if baseline and baseline not in {row.method for row in rows}:
        for method in compare_methods(rows):
            print(f"  {method._replace(difference=None).summary()}")
        print(f"{told}; {baseline} was not asked this, and nothing is held against it")
        return
    for method in compare_methods(rows, baseline):
        print(f"  {method.summary()}")
    print(f"{told}; differences to {baseline or rows[0].method}, by seed")
