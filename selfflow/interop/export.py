"""From a run to the folder that `load_exported` reads; what is in it stands in `selfflow.interop.exported`."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from safetensors.numpy import save_file

from selfflow.errors import UserError
from selfflow.interop.card import card, told_by
from selfflow.interop.exported import CONFIG, SUMS, WEIGHTS, Description, Encoder, exported_layout
from selfflow.models.execution import Execution
from selfflow.objectives.alignment import encoders_of
from selfflow.serialization import to_json
from selfflow.weights import sha256_of

if TYPE_CHECKING:
    from selfflow.run.run import Run

_EXPERIMENT = "experiment.json"


def export(
    run: "Run", folder: Path, *, step: int | None = None, weights: Literal["ema", "student"] = "ema"
) -> Description:
    """Writes weights, config, experiment, card and hashes into an empty folder.

    Args:
      run: an opened run.
      folder: where to.
      step: of which checkpoint; by default the newest.
      weights: the EMA, from which samples are drawn and features taken, or the student.

    Returns:
      What `config.json` says.

    Raises:
      UserError: if the run has no such checkpoint, its notes are damaged, or weights are not finite.
    """
    provenance = run.provenance()
    state = run.weights(step)
    params = {"model": state.frozen["ema"]} if weights == "ema" else {"model": state.params["model"]}
    # Others than the released one have no form that another reader knows; nor have those of encoders.
    alignment = run.experiment.alignment
    if "projector" in state.params and alignment.projector_depth == 2 and not encoders_of(alignment):
        params["projector"] = state.params["projector"]
    with told_by(run.path / "provenance.json"):
        told = _describe(run, provenance, int(state.step), weights, "projector" in params)
    counts = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in params.items()}
    text = card(run, told, provenance, counts)
    del state  # half of it is exported; the rest need not stay in memory
    tensors = exported_layout(told.model, params)
    for key, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise UserError(f"{run.path}, step {told.step}: {key} holds NaN or infinity: export an earlier --step")
    (folder / CONFIG).write_text(json.dumps(to_json(told), indent=1) + "\n")
    save_file(tensors, folder / WEIGHTS)
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets nobody else read what it writes
    shutil.copyfile(run.path / _EXPERIMENT, folder / _EXPERIMENT)
    (folder / "README.md").write_text(text)
    hashed = (WEIGHTS, CONFIG, _EXPERIMENT)
    (folder / SUMS).write_text("".join(f"{sha256_of(folder / name)}  {name}\n" for name in hashed))
    return told


def _describe(run: "Run", provenance: dict[str, Any], step: int, weights: Any, projector: bool) -> Description:
    experiment, datasets = run.experiment, provenance.get("datasets", {}).values()
    # One modality has one autoencoder in all data datasets; so have captions.
    made_by = {m: identity for each in datasets for m, identity in each["autoencoders"].items()}
    text = next((each["text"] for each in datasets if each["text"]), "")
    return Description(
        # How the run was computed is a matter of its hardware.
        model=dataclasses.replace(experiment.model, execution=Execution()),
        modalities=run.objective.modalities,
        projector=projector,
        weights=weights,
        step=step,
        autoencoders={m: Encoder(a, made_by.get(m, "")) for m, a in experiment.autoencoders.items()},
        text=Encoder(experiment.text, text) if experiment.text else None,
    )
