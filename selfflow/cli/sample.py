"""`selfflow sample`: draws samples of video, audio and images from a run, with or without context."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from selfflow.cli.folders import SETTINGS, claim_path, name_of_context, unused_path
from selfflow.cli.parse import parse_run
from selfflow.errors import UserError, check_at_least
from selfflow.sampling.generate import Sampler
from selfflow.serialization import to_json
from selfflow.storage.paths import bucket_url
from selfflow.training.sharding import Devices

_EXAMPLE = "selfflow sample runs/any_to_any --modality audio --context video=clip.mp4 --count 8"
# Options that do not affect the samples in a folder.
_NO_SETTINGS = ("modality", "count", "batch_size", "devices", "out", "data_dir")


@dataclass(frozen=True)
class Options:
    """Flags of `selfflow sample`."""

    sampler: Sampler
    """Settings of the sampler; by default the settings of the run."""
    modality: str = ""
    """Modalities to generate, separated by commas, such as video,audio. Together with the modalities of the context
    they must form a component of the run's mixture; by default the first component."""
    context: tuple[str, ...] = ()
    """Context of the samples: a modality (video), first_frame, prefix:SECONDS, or everything outside of the generated
    part inpaint_time:FROM,TO or inpaint_region:LEFT,TOP,RIGHT,BOTTOM; from a file, as in video=clip.mp4, or by default
    from the run's test split. image@0.6 starts from an image at noise level 0.6."""
    count: int = 16
    """Number of samples."""
    seed: int = 0
    """Seed of the samples; sample i depends only on the seed and i."""
    label: int | None = None
    """Class label of all samples; by default a random one for each sample, if the run has labels."""
    caption: str = ""
    """Caption of all samples, if the run has captions."""
    step: int | None = None
    """Checkpoint; by default the newest."""
    weights: Literal["ema", "student"] = "ema"
    """Weights: EMA or student."""
    out: Path | None = None
    """Output folder; by default a subfolder of RUN/samples. Samples that exist are not drawn again."""
    batch_size: int = 16
    """Samples in a batch."""
    devices: Devices = Devices()
    """Sharding of weights and samples."""
    data_dir: Path | None = None
    """Data folder for context from the run's data; by default the folder of the run's last session."""

    def __post_init__(self):
        check_at_least(self, "--", count=1, batch_size=1)


def main(arguments: list[str]) -> None:
    """Parses `RUN [--modality M,M] [--context CASE[=FILE] ...] [--count N] [--seed S]` and writes samples."""
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
    context_clips = partial(run.held_out, data_dir=options.data_dir)
    sampler = RunSampler(run, request, model.params, context_clips, mesh)

    # All samples in a folder have the same settings, so that a later command can add samples with other numbers.
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
