"""`selfflow sample`: films with sound, sounds and pictures from a run, whatever is given to them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from selfflow.cli.parse import parse_run
from selfflow.errors import UserError, check_at_least
from selfflow.progress import Progress
from selfflow.sampling.generate import Sampler
from selfflow.serialization import to_json
from selfflow.storage.atomic import atomic_write
from selfflow.storage.paths import bucket_url
from selfflow.training.sharding import Devices

if TYPE_CHECKING:
    from selfflow.run.run import Run
    from selfflow.run.sampler import RunSampler

_EXAMPLE = "selfflow sample runs/any_to_any --modality audio --context video=clip.mp4 --count 8"
_STILLS_ON_A_SHEET, _CLIPS_ON_A_SHEET = 64, 8


@dataclass(frozen=True)
class Options:
    """Flags of `selfflow sample`."""

    sampler: Sampler
    """How samples are drawn; by default as the run says."""
    modality: str = ""
    """What to generate, with commas: video,audio. With what is given it must be a set that the run was trained on; by
    default its first."""
    context: tuple[str, ...] = ()
    """What is given: a modality (video), first_frame, prefix:SECONDS, inpaint_time:FROM,TO or
    inpaint_region:LEFT,TOP,RIGHT,BOTTOM (of what is missing), each from a file (video=clip.mp4), or else from the run's
    test split; image@0.6 starts from a
    picture with this much noise."""
    count: int = 16
    """Number of samples."""
    seed: int = 0
    """Sample i depends on the seed and i alone."""
    label: int | None = None
    """Class label of all samples; by default each draws one, where the run has labels."""
    caption: str = ""
    """What samples are to show, where the run has captions."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    weights: Literal["ema", "student"] = "ema"
    """The EMA or the student."""
    out: Path | None = None
    """Folder for the files; by default one below RUN/samples. Samples that are there are not made again."""
    batch_size: int = 16
    """Samples at once."""
    devices: Devices = Devices()
    """How weights and samples are spread over devices."""
    data_dir: Path | None = None
    """Where the data of the run is, if something of it is given; by default where it was when the run was trained."""

    def __post_init__(self):
        check_at_least(self, "--", count=1, batch_size=1)


def main(arguments: list[str]) -> None:
    """Parses `RUN [--modality M,M] [--context CASE[=FILE] ...] [--count N] [--seed S]` and writes the files."""
    parsed = parse_run("sample", arguments, _EXAMPLE, lambda experiment: Options(experiment.sampler))
    if parsed is None:
        return
    path, options = parsed
    from selfflow.run.run import open_run
    from selfflow.run.sampler import RunSampler, SampleRequest

    run = open_run(path)
    mesh = options.devices.several()
    model = run.model(options.weights, options.step, mesh)
    names = tuple(filter(None, options.modality.split(",")))
    wanted = SampleRequest(names, options.context, options.sampler, options.label, options.caption)
    sampler = RunSampler(run, wanted, model.params, lambda name: run.held_out(name, data_dir=options.data_dir), mesh)
    case = "".join(f"_{given.partition('=')[0].replace(':', '-')}" for given in options.context)
    told = to_json(options)
    for name in ("modality", "count", "batch_size", "devices", "out", "data_dir"):
        del told[name]
    where = run.source if bucket_url(path) else str(run.path.resolve())
    told = {"run": where, "component": sampler.component or "image", **told, "step": model.step}
    name = f"{sampler.component or 'image'}{case}_seed{options.seed}"
    folder = options.out or unused_path(_below(run, path) / f"step_{model.step}" / name, told)
    claim_path(folder, folder / _TOLD, told).mkdir(exist_ok=True)
    (folder / _TOLD).write_text(json.dumps(told, indent=1))
    _write(folder, sampler, options, model.step)


_TOLD, _SHEET = "samples.json", "sheet.png"


def _below(run: "Run", path: str) -> Path:
    if bucket_url(path):
        raise UserError(f"{path} is in a bucket: name a local folder for the samples with --out")
    return run.path / "samples"


def unused_path(path: Path, told: dict[str, Any]) -> Path:
    """The first of path, path-2, path-3, ... that is not there, or was made as `told`."""
    for number in range(1, 1000):
        tried = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        note = tried if tried.suffix else tried / _TOLD
        if not tried.exists() or not _differing(note, told):
            return tried
    raise UserError(f"{path} and 999 others are there: choose another --out")


def _differing(note: Path, told: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ from those that a file tells, as (there, now)."""
    try:
        before = json.loads(note.read_text())
    except (OSError, ValueError):
        before = {}
    return {name: (before.get(name), value) for name, value in told.items() if before.get(name) != value}


def claim_path(path: Path, note: Path, told: dict[str, Any]) -> Path:
    """Refuses a path where something of other settings lies, and makes its folder.

    Args:
      path: what is to be written: a file or a folder.
      note: the file in which its settings stand.
      told: the settings, as JSON data.
    """
    there = path.exists() and (path.is_file() or any(path.iterdir()))
    if there and (differing := _differing(note, told)):
        name, (before, now) = next(iter(differing.items()))
        raise UserError(f"--out {path} is there, made with another {name} ({before!r}, now {now!r}): choose another")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write(folder: Path, sampler: "RunSampler", options: Options, step: int) -> None:
    from selfflow.sampling.media_files import write_media, write_sheet

    path = lambda number: folder / f"{number:05d}.npz"
    missing = np.array([i for i in range(options.count) if not path(i).exists()], int)
    with Progress("sample", options.count, done=options.count - len(missing), unit="sample") as progress:
        for samples in sampler.batches(missing, options.seed, options.batch_size):
            for row, number in enumerate(samples.numbers):
                one = {m: x[row] for m, x in samples.media.items()}
                write_media(path(number).with_suffix(""), one, {m: media.rate for m, media in sampler.media.items()})
                # The latents come last: a sample is there once they are.
                with atomic_write(path(number)) as partial, partial.open("wb") as file:
                    np.savez(file, **{m: x[row] for m, x in samples.latents.items()})
                progress.advance()
    kinds = sorted({file.suffix for file in folder.iterdir() if file.stem.isdigit()})
    print(f"\n{options.count} samples in {folder}: {', '.join(f'*{kind}' for kind in kinds)}")
    print(f"  {folder / _TOLD} says what they were made of")
    if not sampler.media:
        print("  This run has no autoencoder: its samples are latents.")
        return
    stills = set(sampler.modalities) == {"image"}
    shown = []
    for number in range(min(options.count, _STILLS_ON_A_SHEET if stills else _CLIPS_ON_A_SHEET)):
        with np.load(path(number)) as latents:
            shown.append(sampler.decode({m: latents[m][None] for m in sampler.modalities}))
    together = {m: np.concatenate([one[m] for one in shown]) for m in sampler.media}
    rate = sampler.media["audio"].rate if "audio" in sampler.media else 0
    case = f", given {' '.join(options.context)}" if options.context else ""
    title = f"{', '.join(sampler.modalities)}{case}: the {options.weights} at step {step}"
    write_sheet(folder / _SHEET, {"sample": together}, rate, title, sampler.held_whole)
    print(f"  {folder / _SHEET} shows {len(shown)} of them")
