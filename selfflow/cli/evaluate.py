"""`selfflow evaluate`: how far samples of a run are from real clips, and whether they obey the world's laws."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from selfflow.cli.parse import parse_run
from selfflow.config.experiment import Experiment
from selfflow.errors import UserError
from selfflow.progress import Progress
from selfflow.sampling.generate import Sampler
from selfflow.serialization import to_json
from selfflow.training.sharding import Devices

if TYPE_CHECKING:
    from selfflow.data.built import BuiltDataset
    from selfflow.evaluation.gather import EvaluationSetup, SampleAccumulator
    from selfflow.input.batches import BatchSource
    from selfflow.run.run import Run
    from selfflow.run.sampler import RunSampler

_EXAMPLE = "selfflow evaluate runs/any_to_any --modality audio --context video --samples 512"
_REAL, _DECODED, _SAMPLES, _NOISE = "real clips", "real, decoded", "samples", "noise"


@dataclass(frozen=True)
class Options:
    """Flags of `selfflow evaluate`."""

    sampler: Sampler
    """How samples are drawn; by default as the run says."""
    features: tuple[str, ...] = ()
    """Whose features the distances are between: layer (the run's own teacher block) or layer=K, effnet, logmel,
    birdnet, inception=FILE, i3d=FILE, clap=FOLDER; by default as the run says."""
    samples: int = 256
    """Number of samples; distances of other numbers are other distances."""
    modality: str = ""
    """What to generate, as in `selfflow sample`."""
    context: tuple[str, ...] = ()
    """What is given, as in `selfflow sample`; without a file, clips of the validation split."""
    seed: int = 0
    """Of the samples."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    weights: Literal["ema", "student"] = "ema"
    """The EMA or the student."""
    batch_size: int = 32
    """Samples at once."""
    reference: Path | None = None
    """File of real features to hold samples against instead of the test split: what --save-reference wrote, or for
    FID statistics as ADM has them; with one extractor of --features."""
    save_reference: Path | None = None
    """Where to write the features of the real clips, with one extractor of --features."""
    adm_npz: Path | None = None
    """Where to write the samples as ADM's evaluator reads them (pictures alone)."""
    calibrate: bool = False
    """Measure the verifier of Collisions itself, on clips of the test split as they are, through the run's autoencoders
    and corrupted, and draw no samples."""
    out: Path | None = None
    """File for the results; by default one below RUN/evaluations."""
    devices: Devices = Devices()
    """How weights and samples are spread over devices."""
    data_dir: Path | None = None
    """Where the data of the run is; by default where it was when the run was trained."""

    def __post_init__(self):
        for name, least in (("samples", 4), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be at least {least}")


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
    from selfflow.cli.folders import claim_path, unused_path
    from selfflow.run.run import open_run
    from selfflow.run.sampler import RunSampler, SampleRequest
    from selfflow.storage.paths import url

    run = open_run(path)
    if not run.experiment.data:
        raise UserError(f"{path} has no data to hold samples against: its weights were imported")
    if url(path) and not (options.out or options.calibrate):
        raise UserError(f"{path} is in a bucket: name a local file for the results with --out")
    if options.calibrate:
        out = options.out or run.path / "evaluations" / "calibration.json"
        return _calibrate(run, run.feed(options.data_dir)[1], out)
    mesh = options.devices.several()
    model = run.model(options.weights, options.step, mesh)
    feed, built = run.feed(options.data_dir)
    names = tuple(filter(None, options.modality.split(",")))
    wanted = SampleRequest(names, options.context, options.sampler)
    # What is given comes from clips that samples are not held against: a part of a reference is no sample.
    given = lambda name: run.held_out(name, ("validation", "train"), options.data_dir)
    sampler = RunSampler(run, wanted, model.params, given, mesh)
    if options.adm_npz and "image" not in sampler.modalities:
        raise UserError(
            f"--adm-npz: ADM's evaluator takes pictures, and {sampler.component} has none; add --modality image"
        )
    case = "".join(f"_{given.partition('=')[0].replace(':', '-')}" for given in options.context)
    name = f"step_{model.step}_{options.weights}_{sampler.component}{case}_seed{options.seed}_n{options.samples}"
    where = run.source if url(path) else str(run.path.resolve())
    told = {"run": where, "step": model.step, "component": sampler.component, **_settings(options)}
    free = options.out or unused_path(run.path / "evaluations" / f"{name}.json", told)
    out = claim_path(free, free, told)
    of = f"the {options.weights} of {run.source} at step {model.step}"
    found = evaluate(run.experiment, feed, built, sampler, model.params, of, options)
    out.write_text(json.dumps(told | found, indent=1))
    print(f"\nAll numbers: {out}")


def _calibrate(run: "Run", built: dict[str, "BuiltDataset"], out: Path) -> None:
    from selfflow.evaluation.physics.calibrate import as_text, calibrate
    from selfflow.tasks.evaluating import physics_verifier, readable_records

    experiment = run.experiment
    name = next((n for n, found in built.items() if found.settings.verifier == "physics"), None)
    if name is None:
        raise UserError(f"--calibrate: {run.source} has no raw Collisions; they are what the verifier knows")
    settings = built[name].settings
    judges = physics_verifier(settings, ("video", "audio"), built[name]).judges
    records = list(readable_records(built[name].records("test")))
    through = {m: run.autoencoder(m) for m in ("video", "audio") if m in experiment.autoencoders}
    passed = lambda m: (lambda x: through[m].decode(through[m].encode(x[None]))[0]) if m in through else None
    columns = {"as they are": calibrate(records, settings, judges)}
    columns["through the autoencoders"] = calibrate(records, settings, judges, passed("video"), passed("audio"))
    print(as_text(columns))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({label: column._asdict() for label, column in columns.items()}, indent=1))
    print(f"\nWhat is checked and how: data/collisions/README.md. All numbers: {out}")


def _settings(options: Options) -> dict[str, Any]:
    told = to_json(dataclasses.replace(options, reference=options.reference and str(options.reference)))
    said = ("samples", "context", "seed", "weights", "sampler", "features", "reference")
    return {name: told[name] for name in said}


def evaluate(
    experiment: Experiment,
    feed: "BatchSource",
    built: dict[str, "BuiltDataset"],
    sampler: "RunSampler",
    weights: Any,
    of: str,
    options: Options,
) -> dict[str, Any]:
    """Prints the tables of samples beside real clips and noise; returns their numbers by row, as JSON data.

    Args:
      experiment, feed, built: of the run.
      sampler: draws the samples.
      weights: parameters of the model, for its own layer.
      of: what tells these weights from others.
      options: flags of the command.
    """
    from selfflow.cli.evaluation_tables import print_tables
    from selfflow.evaluation.gather import WATCHED, SampleAccumulator
    from selfflow.tasks.evaluating import (
        comparisons,
        evaluation_numbers,
        fitted_clips,
        physics_verifier,
        real_clips,
        reference_of,
        select_extractors,
    )

    name, n, size = sampler.component, options.samples, options.batch_size
    data = experiment.mixture[name].data
    looks = select_extractors(options.features, experiment, name, None)
    if options.features and not (looks.extractors or looks.layer):
        raise UserError(f"--features {' '.join(options.features)}: none looks at {', '.join(sampler.modalities)}")
    # Of what is given whole, samples tell no more than the data does.
    looks = looks._replace(extractors=tuple(e for e in looks.extractors if e.medium not in sampler.fully_conditioned))
    if looks.layer:
        looks = looks._replace(layer=looks.layer.of(weights, of))
    against = _reference(looks, options)
    # The judges and the rows of real clips have clips of their own, and none that they are held against.
    fitted = fitted_clips(built.get(data))
    train, test = (real_clips(experiment, feed, built, name, split) for split in ("train", "test"))
    others, numbers = train.numbers(fitted), test.numbers()
    if not len(numbers):
        test, numbers, others = train, others[len(others) // 2 :], others[: len(others) // 2]
    # Twice n, for the distance of real clips from real ones, and more for KID.
    numbers = numbers[: max(2 * n, WATCHED)]
    where = str(options.reference) if against else f"{len(numbers)} clips of the {test.split} split"
    if not against:
        against = dict(reference_of(test, numbers, looks, n, size).features)
    if options.save_reference:
        ((features, found),) = against.items()
        found.save(options.save_reference)
        print(f"{options.save_reference}: {features} of {found.count} real clips")
    looks = looks._replace(
        world=physics_verifier(experiment.data[data], experiment.mixture[name].modalities, built.get(data))
    )
    rows = {
        _REAL: train.batches(others[:n], size),
        _DECODED: train.batches(others[:n], size, decoded=True),
        _SAMPLES: ((s.latents, s.media) for s in sampler.batches(np.arange(n), options.seed, size)),
        _NOISE: _noise(sampler, n, size),
    }
    gathered: dict[str, SampleAccumulator] = {}
    for row, batches in rows.items():
        gathered[row] = SampleAccumulator(looks, n)
        passing = _passing(batches, gathered[row], row, n)
        if row == _SAMPLES and options.adm_npz:
            _write_adm(options.adm_npz, passing, n)
        else:
            for _ in passing:
                pass
    compared = {row: comparisons(against, found) for row, found in gathered.items() if found.count > 1}
    case = f", given {' '.join(options.context)}" if options.context else ""
    print(f"\n{name} ({', '.join(sampler.modalities)}){case}: {n} samples, against {where}")
    print(
        f"Real clips: {min(n, len(others))} others, of the {train.split} split; noise: what samples begin as, decoded."
    )
    if sampler.fully_conditioned:
        print(
            f"The {' and '.join(sampler.fully_conditioned)} of the samples is given: what is said of it alone is of the data."
        )
    if n < 100:
        print(f"Distances of {n} samples are mostly noise: take hundreds.")
    if test.built is None:
        print("The raw data is not there: all real clips are decoded latents.")
    print_tables(gathered, compared, _SAMPLES)
    verdicts = {row: verdict for row, found in gathered.items() if (verdict := found.verdict())}
    return {
        "against": where,
        "modality": ", ".join(m for m in sampler.modalities if m not in sampler.fully_conditioned),
        "rows": {row: evaluation_numbers(gathered[row], compared[row]) for row in compared},
        "distances": {row: {f: dataclasses.asdict(c) for f, c in found.items()} for row, found in compared.items()},
        "checked": {row: {check: told.n for check, told in v.rows.items()} for row, v in verdicts.items()},
    }


def _passing(
    batches: Iterator[Any], gathered: "SampleAccumulator", row: str, n: int
) -> Iterator[dict[str, np.ndarray]]:
    with Progress(row, n, unit="clip") as shown:
        for latents, media in batches:
            gathered.add(latents, media)
            yield media
            shown.advance(len(next(iter(latents.values()))))


def _noise(sampler: "RunSampler", n: int, size: int) -> Iterator[Any]:
    """Decoded noise: what a sampler starts from."""
    from selfflow.sampling.generate import sample_noise

    for start in range(0, n, size):
        numbers = np.arange(start, min(start + size, n))
        latents = {
            m: np.asarray(x.from_tokens(sample_noise(0, numbers, m, (x.tokens, x.token_size))))
            for m, x in sampler.modalities.items()
        }
        yield latents, sampler.decode(latents)


def _write_adm(path: Path, passing: Iterator[dict[str, np.ndarray]], n: int) -> None:
    from selfflow.evaluation.adm import write_adm

    write_adm(path, (media["image"] for media in passing), n)
    print(f"{path}: {n} samples for ADM's evaluator")


def _reference(looks: "EvaluationSetup", options: Options) -> dict[str, Any]:
    """The features of --reference by their name, none without it; refuses what cannot be before anything is drawn."""
    from selfflow.evaluation.accumulate import Accumulator, load_reference

    every = [*looks.extractors, *([looks.layer] if looks.layer else [])]
    for flag, path in (("--save-reference", options.save_reference), ("--reference", options.reference)):
        if path is not None and len(every) != 1:
            raise UserError(
                f"{flag} holds features of one extractor, and {len(every)} look at these samples: name one with "
                "--features, and one modality with --modality"
            )
    if options.save_reference and not options.save_reference.absolute().parent.is_dir():
        raise UserError(f"--save-reference {options.save_reference}: its folder is not there; make it first")
    if options.reference is None:
        return {}
    found = load_reference(options.reference, every[0])
    if isinstance(found, Accumulator) and found.samples != options.samples:
        raise UserError(
            f"--reference {options.reference} was gathered for Frechet distances of {found.samples} samples: give "
            f"--samples {found.samples}, or make it again"
        )
    return {f"{every[0].distance} {every[0].medium}": found}
