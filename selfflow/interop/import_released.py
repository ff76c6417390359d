"""Imports the weights of a released SiT into a run folder."""

from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from selfflow.config.experiment import Experiment
from selfflow.interop.released_sit import load_released_sit
from selfflow.models.sit import SiTConfig
from selfflow.objectives.alignment import NoAlignment, SelfFlow
from selfflow.run.folder import import_run
from selfflow.storage.new_folder import new_folder
from selfflow.weights.read import sha256_of


class ImportedRun(NamedTuple):
    """The result of an import.

    Attributes:
      config: config of the network.
      weights: parameters of the "model" and, where the file has one, of the "projector".
      origin: path, size in bytes and SHA-256 of the file.
    """

    config: SiTConfig
    weights: dict[str, Any]
    origin: dict[str, Any]


def import_released_sit(file: Path, out: Path, num_heads: int | None = None, patch_size: int = 2) -> ImportedRun:
    """Writes a run folder with the weights of a released SiT as student and EMA.

    Args:
      file: path of a .safetensors or .pt file; code in a .pt file is not executed.
      out: the run folder, which does not exist yet or is empty.
      num_heads: number of attention heads, which weights do not determine; by default that of the published SiT of
        this width.
      patch_size: latent positions in a token along each axis.

    Raises:
      UserError: if the file is damaged or of another model, or the folder exists and is not empty.
    """
    with new_folder(out) as folder:
        print(f"reading {file}", flush=True)
        model, config = load_released_sit(file, num_heads=num_heads, patch_size=patch_size)
        weights: dict[str, Any] = {"model": nnx.to_pure_dict(nnx.state(model))}
        if model.projector is not None:
            weights["projector"] = weights["model"].pop("projector")
        origin = {"file": str(file.absolute()), "bytes": file.stat().st_size, "sha256": sha256_of(file)}
        print(f"writing {out}", flush=True)
        import_run(folder, _experiment(config, model.projector is not None), weights, origin)
    return ImportedRun(config, weights, origin)


def _experiment(config: SiTConfig, projector: bool) -> Experiment:
    """Returns the experiment of an imported run: a model without data and without steps."""

    def layer(share: float) -> int:
        # Weights do not determine the layers of the alignment. The shares are those of the paper, where they give
        # layers 8 and 20 of 28.
        return max(1, round(share * config.depth))

    return Experiment(
        data={},
        autoencoders={},
        patch={"image": (config.patch_size, config.patch_size)},
        mixture={},
        model=config,
        steps=0,
        alignment=SelfFlow(student_layer=layer(0.3), teacher_layer=layer(0.7)) if projector else NoAlignment(),
    )
