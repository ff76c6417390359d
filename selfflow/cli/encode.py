"""`selfflow encode`: encodes the data of an experiment into latents."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from selfflow.cli.parse import parse
from selfflow.latents.encode import EncodeShare
from selfflow.media import medium_of

if TYPE_CHECKING:
    from selfflow.config.experiment import Experiment
    from selfflow.latents.inspect import Inspection
    from selfflow.latents.store import Latents
    from selfflow.run.prepare_data import RunData

_EXAMPLE = "selfflow encode experiments/quickstart.py --processes 2"


@dataclass(frozen=True)
class Options:
    """Flags of `selfflow encode` that are not fields of the experiment."""

    out: Path
    """Output folder of --inspect."""
    inspect: bool = False
    """Print statistics of the latent channels and reconstruction errors, and write images and clips of originals,
    reconstructions and their differences."""
    share: Annotated[EncodeShare, tyro.conf.arg(name="")] = EncodeShare()


def main(arguments: list[str]) -> None:
    """Parses `EXPERIMENT [--inspect] [--processes N] [--data-dir DIR] [--FIELD VALUE ...]` and encodes the data."""
    parsed = parse("encode", arguments, _EXAMPLE, lambda file: Options(Path(f"{file.stem}-latents")))
    if parsed is None:
        return
    experiment, options, data_dir = parsed
    from selfflow.config.resolve import resolve
    from selfflow.run.prepare_data import prepare_data

    setup = resolve(experiment)
    data = prepare_data(setup, data_dir, options.share)
    if data is None:
        print("the shards of this host are encoded; the latents are complete once the other hosts have finished")
        return
    for name, latents in data.source.latents.items():
        print_latents(name, latents)
    if options.inspect:
        _inspect(setup.experiment, data, options.out)


def print_latents(name: str, latents: "Latents") -> None:
    """Prints the contents of a folder of latents."""
    print(f"{name}: {', '.join(f'{split} {count}' for split, count in latents.records.items())} records")
    for m, metadata in latents.manifest["modalities"].items():
        std = latents.manifest["statistics"][m]["std"]
        parts = [metadata["identity"]]
        parts += [f"{metric} {value:.1f}" for metric, value in latents.manifest["quality"].get(m, {}).items()]
        print(f"  {m}: {', '.join(parts)}, std of a channel {min(std):.2f} to {max(std):.2f}")
    for m, identity in latents.features.items():
        print(f"  {m}: features of {identity}, {latents.manifest['features'][m]['width']} channels")
    for split, records in latents.manifest["unreadable"].items():
        print(f"  {split}: {len(records)} records could not be encoded")
    print(f"  in {latents.path}")


def _inspect(experiment: "Experiment", data: "RunData", folder: Path) -> None:
    """Prints statistics of the latents of each data set and modality, and writes the files of `--inspect`."""
    from selfflow.latents.inspect import inspect_latents

    rates = {}
    for name, config in experiment.data.items():
        rates[name] = {m: medium_of(m).rate(config) for m in experiment.autoencoders}
    print(f"\n{'latents':<24} {'std of a channel':>18} {'kurtosis, most':>15} {'largest':>8}   reconstruction")
    notes, files = [], []
    # Each row is printed as soon as it is computed, because decoding a data set takes minutes.
    for inspection in inspect_latents(experiment.autoencoders, data.source.latents, data.built, rates, folder):
        _print_inspection(inspection)
        notes += [f"{inspection.name} {inspection.modality}: {note}" for note in inspection.notes]
        files += inspection.files
    for note in notes:
        print(f"note: {note}")
    print(f"\n{len(files)} files in {folder}:")
    for file in files:
        print(f"  {file}")


def _print_inspection(inspection: "Inspection") -> None:
    title = f"{inspection.name} {inspection.modality}"
    if inspection.statistics is None:
        print(f"{title:<24} no readable record has it")
        return
    if inspection.reconstruction is not None:
        reconstruction = ", ".join(f"{name} {value:.2f}" for name, value in inspection.reconstruction.items())
    else:
        reconstruction = "no raw data" if inspection.can_decode else "no autoencoder that decodes"
    std, kurtosis = inspection.statistics["std"], inspection.statistics["kurtosis"]
    largest = inspection.statistics["largest"].max()
    # The kurtosis of constant channels is NaN, which differs from itself.
    finite = kurtosis[kurtosis == kurtosis]
    heaviest = f"{finite.max():.1f}" if finite.size else "-"
    print(f"{title:<24} {f'{std.min():.2f} to {std.max():.2f}':>18} {heaviest:>15} {largest:>8.1f}   {reconstruction}")
