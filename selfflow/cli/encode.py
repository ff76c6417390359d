"""`selfflow encode`: the latents of an experiment, ahead of its training."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from selfflow.cli.parse import parse
from selfflow.latents.encode import EncodeShare

if TYPE_CHECKING:
    from selfflow.latents.store import Latents

_EXAMPLE = "selfflow encode experiments/quickstart.py --processes 2"


@dataclass(frozen=True)
class Options:
    """Flags of `selfflow encode` that are no fields of the experiment."""

    out: Path
    """Folder for what --inspect writes."""
    inspect: bool = False
    """Tell how each latent channel is distributed, how much is lost, and draw it: originals, what comes back, and the
    difference."""
    share: Annotated[EncodeShare, tyro.conf.arg(name="")] = EncodeShare()


def main(arguments: list[str]) -> None:
    """Parses `EXPERIMENT [--inspect] [--processes N] [--data-dir DIR] [--FIELD VALUE ...]` and encodes."""
    parsed = parse("encode", arguments, _EXAMPLE, lambda file: Options(Path(f"{file.stem}-latents")))
    if parsed is None:
        return
    experiment, options, data_dir = parsed
    from selfflow.config.resolve import resolve
    from selfflow.run.prepare_data import prepare_data

    setup = resolve(experiment)
    prepared = prepare_data(setup, data_dir, options.share)
    if prepared is None:
        print("this host's part is done; the latents are ready when the other hosts have done theirs")
        return
    feed, built = prepared
    for name, latents in feed.latents.items():
        say_latents(name, latents)
    if options.inspect:
        from selfflow.latents.inspect import inspect

        rates = {name: data.sample_rate for name, data in experiment.data.items()}
        inspect(experiment.autoencoders, rates, feed.latents, built, options.out)


def say_latents(name: str, latents: "Latents") -> None:
    """Prints what a folder of latents holds."""
    print(f"{name}: {', '.join(f'{split} {count}' for split, count in latents.records.items())} records")
    for m, made in latents.manifest["modalities"].items():
        quality = latents.manifest["quality"].get(m, {})
        spread = latents.manifest["statistics"][m]["std"]
        told = [made["identity"], *(f"{key} {value:.1f}" for key, value in quality.items())]
        print(f"  {m}: {', '.join(told)}, std of a channel {min(spread):.2f} to {max(spread):.2f}")
    for m, identity in latents.features.items():
        print(f"  {m}: features of {identity}, {latents.manifest['features'][m]['width']} channels")
    for split, bad in latents.manifest["unreadable"].items():
        print(f"  {split}: {len(bad)} records could not be encoded")
    print(f"  in {latents.path}")
