"""`selfflow import`: creates a run folder from the weights of a released SiT."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    from selfflow.interop.import_released import ImportedRun

_EXAMPLE = "selfflow import selfflow_imagenet256.pt --out runs/imagenet256"


@dataclass(frozen=True)
class Arguments:
    """Arguments of `selfflow import`."""

    file: tyro.conf.Positional[Path]
    """Weights of a SiT as .safetensors or .pt; code in a .pt file is not executed."""
    out: Path
    """The run folder to create; it must be empty or not exist."""
    num_heads: int | None = None
    """Number of attention heads; by default as in the published SiT of the same width."""
    patch_size: int = 2
    """Latent positions in a token along each axis: 1, 2, 4 or 8."""


def main(arguments: list[str]) -> None:
    """Parses `FILE --out DIR [--num-heads N] [--patch-size N]` and creates the run."""
    description = f"Create a run from the weights of a released SiT.\n\nexample: {_EXAMPLE}"
    options = tyro.cli(Arguments, prog="selfflow import", description=description, args=arguments)
    from selfflow.interop.import_released import import_released_sit

    imported = import_released_sit(options.file, options.out, options.num_heads, options.patch_size)
    _print_run(options, imported)


def _print_run(options: Arguments, imported: "ImportedRun") -> None:
    import jax

    config, origin = imported.config, imported.origin
    millions = {}
    for name, tree in imported.weights.items():
        millions[name] = sum(x.size for x in jax.tree.leaves(tree)) / 1e6
    projector = f"a projector of {millions['projector']:.2f} M" if "projector" in millions else "no projector"
    print(
        f"\n{options.out}: a SiT of {config.depth} blocks, width {config.width}, {config.heads} heads, "
        f"{config.labels} labels"
    )
    print(
        f"  for latents {config.input_size} x {config.input_size} x {config.channels} in patches of "
        f"{config.patch_size} x {config.patch_size}; {millions['model']:.2f} M parameters, {projector}"
    )
    print(f"  from {options.file}, {origin['bytes'] / 1e6:.1f} MB, sha256 {origin['sha256']}")
    print("next:")
    print(f"  selfflow train EXPERIMENT --init-from {options.out}   # an experiment with a SiT of this shape")
    print(f"  selfflow export {options.out} --out DIR")
