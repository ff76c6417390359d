"""`selfflow evaluate`: computes metrics of a run's samples, and for comparison of real clips and noise."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfflow.cli.parse import parse_run
from selfflow.errors import UserError, check_at_least
from selfflow.sampling.generate import Sampler
from selfflow.serialization import to_json
from selfflow.training.sharding import Devices

if TYPE_CHECKING:
    from selfflow.input.reader import Reader
    from selfflow.run.run import Run
    from selfflow.run.sampler import RunSampler
    from selfflow.tasks.evaluate_samples import SampleReport

_EXAMPLE = "selfflow evaluate runs/any_to_any --modality audio --context video --samples 512"


@dataclass(frozen=True)
class Options:
    """Flags of `selfflow evaluate`."""

    sampler: Sampler
    """Settings of the sampler; by default the settings of the run."""
    features: tuple[str, ...] = ()
    """Features for the distances: layer (the teacher block of the run) or layer=K, effnet, logmel, birdnet,
    inception=FILE, i3d=FILE, clap=FOLDER; by default the features in the run's `evaluation`."""
    samples: int = 256
    """Number of samples. Distances are comparable only between equal numbers."""
    modality: str = ""
    """Modalities to generate, as in `selfflow sample`."""
    context: tuple[str, ...] = ()
    """Context of the samples, as in `selfflow sample`; without a file, clips of the validation split."""
    seed: int = 0
    """Seed of the samples."""
    step: int | None = None
    """Checkpoint; by default the newest."""
    weights: Literal["ema", "student"] = "ema"
    """Weights: EMA or student."""
    batch_size: int = 32
    """Samples in a batch."""
    reference: Path | None = None
    """File of real features that replaces the test split, from --save-reference, or statistics of ADM for FID. Requires
    a single extractor in --features."""
    save_reference: Path | None = None
    """Output file for the features of the real clips. Requires a single extractor in --features."""
    adm_npz: Path | None = None
    """Output file for the samples in the format of ADM's evaluator; images only."""
    calibrate: bool = False
    """Calibrate the physics verifier on clips of the test split (unchanged, decoded from their latents, and corrupted)
    instead of drawing samples."""
    out: Path | None = None
    """Output file for the results; by default in RUN/evaluations."""
    devices: Devices = Devices()
    """Sharding of weights and samples."""
    data_dir: Path | None = None
    """Data folder; by default the folder of the run's last session."""

    def __post_init__(self):
        check_at_least(self, "--", samples=4, batch_size=1)


def main(arguments: list[str]) -> None:
    """Parses `RUN [--samples N] [--features F ...] [--context CASE]` and prints the tables."""
    parsed = parse_run(
        "evaluate",
        arguments,
        _EXAMPLE,
        lambda experiment: Options(experiment.sampler, experiment.evaluation.features),
    )
    if parsed is None:
        return
    path, options = parsed
    from selfflow.run.run import open_run
    from selfflow.storage.paths import bucket_url

    run = open_run(path)
    if not run.experiment.data:
        raise UserError(f"{path} has no data to compare samples with: its weights were imported")
    if bucket_url(path) and not (options.out or options.calibrate):
        raise UserError(f"{path} is in object storage: name a local file for the results with --out")
    if options.calibrate:
        _calibrate(run, options)
    else:
        _evaluate(run, str(run.source) if bucket_url(path) else str(run.path.resolve()), options)


def _evaluate(run: "Run", location: str, options: Options) -> None:
    from selfflow.cli.evaluation_tables import print_report
    from selfflow.cli.folders import claim_path, name_of_context, unused_path
    from selfflow.run.sampler import RunSampler, SampleRequest
    from selfflow.tasks.evaluate_samples import evaluate_samples
    from selfflow.tasks.sample_evaluator import SampleEvaluator

    mesh = options.devices.several()
    model = run.model(options.weights, options.step, mesh)
    source, built = run.open_data(options.data_dir)

    def context_clips(component: str) -> "Reader":
        """Reads context clips, never from the test split: no sample may contain part of a reference clip."""
        return run.held_out(component, ("validation", "train"), options.data_dir)

    modalities = tuple(filter(None, options.modality.split(",")))
    request = SampleRequest(modalities, options.context, options.sampler)
    sampler = RunSampler(run, request, model.params, context_clips, mesh)
    component = sampler.component
    if options.adm_npz and "image" not in sampler.modalities:
        raise UserError(f"--adm-npz: ADM's evaluator takes images, and {component} has none; add --modality image")
    evaluator = SampleEvaluator(run.setup, source, built, component, options.features, options.samples)
    if options.features and not evaluator.setup.feature_spaces:
        names = ", ".join(sampler.modalities)
        raise UserError(f"--features {' '.join(options.features)}: none applies to {names}")
    evaluator.set_weights(model.params, f"the {options.weights} of {run.source} at step {model.step}")

    # The path is checked before samples are drawn, so that errors in --out appear early.
    settings = {"run": location, "step": model.step, "component": component, **_settings(options)}
    cases = name_of_context(options.context)
    name = f"step_{model.step}_{options.weights}_{component}{cases}_seed{options.seed}_n{options.samples}"
    path = options.out or unused_path(run.path / "evaluations" / f"{name}.json", settings)
    out = claim_path(path, path, settings)
    report = evaluate_samples(
        evaluator,
        sampler,
        seed=options.seed,
        batch_rows=options.batch_size,
        reference=options.reference,
        save_reference=options.save_reference,
        adm_npz=options.adm_npz,
    )
    if report.saved:
        space, count = report.saved
        print(f"{options.save_reference}: {space} of {count} real clips")
    if options.adm_npz:
        print(f"{options.adm_npz}: {options.samples} samples for ADM's evaluator")
    _print_header(report, sampler, options)
    print_report(report)
    out.write_text(json.dumps(settings | _results(report, sampler), indent=1), encoding="utf-8")
    print(f"\nAll numbers: {out}")


def _print_header(report: "SampleReport", sampler: "RunSampler", options: Options) -> None:
    n, conditioned = options.samples, sampler.fully_conditioned
    case = f", context {' '.join(options.context)}" if options.context else ""
    modalities = ", ".join(sampler.modalities)
    print(f"\n{sampler.component} ({modalities}){case}: {n} samples, reference {report.reference}")
    count, split = report.real_clips
    print(f"Real clips: {count} others, of the {split} split; noise: the start of the samples, decoded.")
    if conditioned:
        print(f"{' and '.join(conditioned)} of the samples: context. Metrics of it alone are those of the data.")
    if n < 100:
        print(f"Distances of {n} samples are mostly noise: use hundreds of samples.")
    if not report.has_raw:
        print("The raw data does not exist: all real clips are decoded latents.")


def _settings(options: Options) -> dict[str, Any]:
    """Returns the flags that affect the results, as JSON data."""
    reference = options.reference and str(options.reference)
    flags = to_json(dataclasses.replace(options, reference=reference))
    names = ("samples", "context", "seed", "weights", "sampler", "features", "reference")
    return {name: flags[name] for name in names}


def _results(report: "SampleReport", sampler: "RunSampler") -> dict[str, Any]:
    """Returns the report as JSON data: metrics, comparisons of features and number of clips for each row."""
    numbers, spaces, counts = {}, {}, {}
    for row, metrics in report.rows.items():
        numbers[row] = metrics.numbers()
        spaces[row] = {space: comparison.to_json() for space, comparison in metrics.comparisons.items()}
        counts[row] = metrics.counts()
    return {
        "reference_set": report.reference,
        "modality": ", ".join(m for m in sampler.modalities if m not in sampler.fully_conditioned),
        "rows": numbers,
        "comparisons": spaces,
        "counts": counts,
    }


def _calibrate(run: "Run", options: Options) -> None:
    from selfflow.evaluation.physics.calibrate import as_text
    from selfflow.tasks.evaluate_samples import calibrate_verifier

    out = options.out or run.path / "evaluations" / "calibration.json"
    columns = calibrate_verifier(run, run.open_data(options.data_dir).built)
    print(as_text(columns))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        json.dumps({label: column._asdict() for label, column in columns.items()}, indent=1), encoding="utf-8"
    )
    print(f"\nThe checks are defined in data/collisions/README.md. All numbers: {out}")
