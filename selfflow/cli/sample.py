"""`selfflow sample`: draws video, audio and images from a run, with any context."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfflow.cli.folders import SETTINGS, claim_path, name_of_context, unused_path
from selfflow.cli.parse import parse_run
from selfflow.errors import UserError, check_at_least
from selfflow.sampling.generate import Sampler
from selfflow.serialization import to_json
from selfflow.storage.paths import bucket_url
from selfflow.training.sharding import Devices

if TYPE_CHECKING:
    from selfflow.input.reader import Reader

_EXAMPLE = "selfflow sample runs/any_to_any --modality audio --context video=clip.mp4 --count 8"
# Options that samples do not depend on.
_NO_SETTINGS = ("modality", "count", "batch_size", "devices", "out", "data_dir")


@dataclass(frozen=True)
class Options:
    """Flags of `selfflow sample`."""

    sampler: Sampler
    """Settings of the sampler; by default those of the run."""
    modality: str = ""
    """Modalities to generate, separated by commas: video,audio. With those of the context they must be a component of
    the run's mixture; by default the first."""
    context: tuple[str, ...] = ()
    """Context of the samples: a modality (video), first_frame, prefix:SECONDS, or all but the generated part
    inpaint_time:FROM,TO or inpaint_region:LEFT,TOP,RIGHT,BOTTOM; each from a file (video=clip.mp4) or by default from
    the run's test split. image@0.6 starts from an image at noise level 0.6."""
    count: int = 16
    """Number of samples."""
    seed: int = 0
    """Seed of the samples; sample i depends on the seed and i alone."""
    label: int | None = None
    """Class label of all samples; by default each draws one, if the run has labels."""
    caption: str = ""
    """Caption of all samples, if the run has captions."""
    step: int | None = None
    """Checkpoint; by default the newest."""
    weights: Literal["ema", "student"] = "ema"
    """Weights: EMA or student."""
    out: Path | None = None
    """Folder for the files; by default one in RUN/samples. Samples that exist are not drawn again."""
    batch_size: int = 16
    """Samples in a batch."""
    devices: Devices = Devices()
    """Sharding of weights and samples."""
    data_dir: Path | None = None
    """Folder of the run's data, for context from it; by default that of its training."""

    def __post_init__(self):
        check_at_least(self, "--", count=1, batch_size=1)


def main(arguments: list[str]) -> None:
    """Parses `RUN [--modality M,M] [--context CASE[=FILE] ...] [--count N] [--seed S]` and writes the files."""
    parsed = parse_run("sample", arguments, _EXAMPLE, lambda experiment: Options(experiment.sampler))
    if parsed is None:
        return
    path, options = parsed
    from selfflow.run.run import open_run
    from selfflow.run.sample_files import SHEET, write_sample_sheet, write_samples
    from selfflow.run.sampler import RunSampler, SampleRequest

    run = open_run(path)
    mesh = options.devices.several()
    model = run.model(options.weights, options.step, mesh)
    modalities = tuple(filter(None, options.modality.split(",")))
    request = SampleRequest(modalities, options.context, options.sampler, options.label, options.caption)

    def context_clips(component: str) -> "Reader":
        return run.held_out(component, data_dir=options.data_dir)

    sampler = RunSampler(run, request, model.params, context_clips, mesh)

    # A folder has samples of one setting only, so that more can be added to it and none is drawn twice.
    settings = {name: value for name, value in to_json(options).items() if name not in _NO_SETTINGS}
    source = run.source if bucket_url(path) else str(run.path.resolve())
    component = sampler.component
    settings = {"run": source, "component": component, **settings, "step": model.step}
    folder = options.out
    if folder is None:
        if bucket_url(path):
            raise UserError(f"{path} is in a bucket: name a local folder for the samples with --out")
        name = f"{component}{name_of_context(options.context)}_seed{options.seed}"
        folder = unused_path(run.path / "samples" / f"step_{model.step}" / name, settings)
    claim_path(folder, folder / SETTINGS, settings).mkdir(exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1), encoding="utf-8")

    write_samples(sampler, folder, options.count, options.seed, options.batch_size)
    suffixes = sorted({file.suffix for file in folder.iterdir() if file.stem.isdigit()})
    print(f"\n{options.count} samples in {folder}: {', '.join(f'*{suffix}' for suffix in suffixes)}")
    print(f"  {folder / SETTINGS} has their settings")
    if not sampler.media:
        print("  This run has no autoencoder: its samples are latents.")
        return
    context = f", context {' '.join(options.context)}" if options.context else ""
    title = f"{', '.join(sampler.modalities)}{context}: the {options.weights} at step {model.step}"
    shown = write_sample_sheet(sampler, folder, options.count, title)
    print(f"  {folder / SHEET} shows {shown} of them")
