"""`selfflow encode`: the latents of an experiment, ahead of its training."""

from typing import TYPE_CHECKING

from selfflow.cli.parse import parse
from selfflow.input.encode import Share

if TYPE_CHECKING:
    from selfflow.input.latents import Latents

_EXAMPLE = "selfflow encode experiments/quickstart.py --processes 2"


def main(arguments: list[str]) -> None:
    """Parses `EXPERIMENT [--processes N] [--host I --hosts N] [--data-dir DIR] [--FIELD VALUE ...]` and encodes."""
    parsed = parse("encode", arguments, _EXAMPLE, lambda file: Share())
    if parsed is None:
        return
    experiment, share, data_dir = parsed
    from selfflow.prepare import prepare

    prepared = prepare(experiment.resolved(), data_dir, share)
    if prepared is None:
        print("this host's part is done; the latents are ready when the other hosts have done theirs")
        return
    feed, _ = prepared
    for name, latents in feed.latents.items():
        say_latents(name, latents)


def say_latents(name: str, latents: "Latents") -> None:
    """Prints what a folder of latents holds."""
    print(f"{name}: {', '.join(f'{split} {count}' for split, count in latents.records.items())} records")
    for m, made in latents.manifest["modalities"].items():
        quality = latents.manifest["quality"].get(m, {})
        shown = ", ".join(f"{key} {value:.1f}" for key, value in quality.items())
        spread = latents.manifest["statistics"][m]["std"]
        print(f"  {m}: {made['identity']}, {shown}, std of a channel {min(spread):.2f} to {max(spread):.2f}")
    for m, identity in latents.features.items():
        print(f"  {m}: features of {identity}, {latents.manifest['features'][m]['width']} channels")
    for split, bad in latents.manifest["unreadable"].items():
        print(f"  {split}: {len(bad)} records could not be encoded")
    print(f"  in {latents.path}")
