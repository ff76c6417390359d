"""`selfflow import`: the weights of a released SiT become a run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from selfflow.cli.folders import new_folder

if TYPE_CHECKING:
    from selfflow.config.experiment import Experiment
    from selfflow.models.sit import SiTConfig

_EXAMPLE = "selfflow import selfflow_imagenet256.pt --out runs/imagenet256"


@dataclass(frozen=True)
class Arguments:
    """What `selfflow import` is told."""

    file: tyro.conf.Positional[Path]
    """Weights of a SiT: .safetensors, or .pt, of which nothing is run."""
    out: Path
    """The run folder to make; it must not be there yet, or be empty."""
    num_heads: int | None = None
    """Attention heads, which weights do not show; by default those of the published SiT of this width."""
    patch_size: int = 2
    """Latent positions that a token spans along each axis: 1, 2, 4 or 8."""


def main(arguments: list[str]) -> None:
    """Parses `FILE --out DIR [--num-heads N] [--patch-size N]` and makes the run."""
    description = f"Make a run of the weights of a released SiT.\n\nexample: {_EXAMPLE}"
    given = tyro.cli(Arguments, prog="selfflow import", description=description, args=arguments)
    from flax import nnx

    from selfflow.interop import load_released_sit
    from selfflow.run.folder import import_run
    from selfflow.weights import sha256_of

    with new_folder(given.out) as folder:
        print(f"reading {given.file}", flush=True)
        model, config = load_released_sit(given.file, num_heads=given.num_heads, patch_size=given.patch_size)
        weights: dict[str, Any] = {"model": nnx.to_pure_dict(nnx.state(model))}
        if model.projector is not None:
            weights["projector"] = weights["model"].pop("projector")
        size = given.file.stat().st_size
        origin = {"file": str(given.file.absolute()), "bytes": size, "sha256": sha256_of(given.file)}
        print(f"writing {given.out}", flush=True)
        import_run(folder, _experiment(config, model.projector is not None), weights, origin)
    _say(given, config, weights, origin)


def _experiment(config: "SiTConfig", projector: bool) -> "Experiment":
    """The experiment of a run that is imported: a model without data and without a step."""
    from selfflow.config.experiment import Experiment
    from selfflow.objectives.alignment import NoAlignment, SelfFlow

    # Weights do not tell the layers: these are the paper's shares of the depth, 8 and 20 of 28.
    layer = lambda share: max(1, round(share * config.depth))
    return Experiment(
        data={},
        autoencoders={},
        patch={"image": (config.patch_size, config.patch_size)},
        mixture={},
        model=config,
        steps=0,
        alignment=SelfFlow(student_layer=layer(0.3), teacher_layer=layer(0.7)) if projector else NoAlignment(),
    )


def _say(given: Arguments, config: "SiTConfig", weights: dict[str, Any], origin: dict[str, Any]) -> None:
    import jax

    millions = {name: sum(x.size for x in jax.tree.leaves(tree)) / 1e6 for name, tree in weights.items()}
    projector = f"a projector of {millions['projector']:.2f} M" if "projector" in millions else "no projector"
    print(
        f"\n{given.out}: a SiT of {config.depth} blocks, width {config.width}, {config.heads} heads, "
        f"{config.labels} labels"
    )
    print(
        f"  for latents {config.input_size} x {config.input_size} x {config.channels} in patches of "
        f"{config.patch_size} x {config.patch_size}; {millions['model']:.2f} M parameters, {projector}"
    )
    print(f"  of {given.file}, {origin['bytes'] / 1e6:.1f} MB, sha256 {origin['sha256']}")
    print("next:")
    print(f"  selfflow train EXPERIMENT --init-from {given.out}   # an experiment with a SiT of this shape")
    print(f"  selfflow export {given.out} --out DIR")
