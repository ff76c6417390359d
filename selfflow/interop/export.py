"""Writes the folder that `load_exported` reads; `selfflow.interop.exported` documents it."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from safetensors.numpy import save_file

from selfflow.errors import UserError
from selfflow.interop.card import damage_in, model_card
from selfflow.interop.exported import CONFIG, SUMS, WEIGHTS, Description, Encoder, exported_layout
from selfflow.models.execution import Execution
from selfflow.serialization import to_json
from selfflow.weights.read import sha256_of

if TYPE_CHECKING:
    from selfflow.run.run import Run

_EXPERIMENT = "experiment.json"


def export(
    run: "Run", folder: Path, *, step: int | None = None, weights: Literal["ema", "student"] = "ema"
) -> Description:
    """Writes weights, config, experiment, card and hashes into an empty folder.

    Args:
      run: an opened run.
      folder: folder to write to.
      step: step of the checkpoint; by default the newest.
      weights: the EMA, from which samples are drawn and features computed, or the student.

    Returns:
      The content of `config.json`.

    Raises:
      UserError: if the run has no such checkpoint, a file of it is damaged, or weights are not finite.
    """
    provenance = run.provenance()
    state = run.weights(step)
    params = {"model": state.frozen["ema"]} if weights == "ema" else {"model": state.params["model"]}
    # Only a projector of the released form has a layout: depth 2, onto features of the model itself.
    alignment = run.experiment.alignment
    if "projector" in state.params and alignment.projector_depth == 2 and alignment.target_channels is None:
        params["projector"] = state.params["projector"]
    with damage_in(run.path / "provenance.json"):
        description = _describe(run, provenance, int(state.step), weights, "projector" in params)
    sizes = {}
    for name, tree in params.items():
        sizes[name] = sum(x.size for x in jax.tree.leaves(tree))
    text = model_card(run, description, provenance, sizes)
    del state  # half of it is exported; the rest is freed
    tensors = exported_layout(description.model, params)
    for key, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise UserError(
                f"{run.path}, step {description.step}: {key} holds NaN or infinity: export an earlier --step"
            )
    (folder / CONFIG).write_text(json.dumps(to_json(description), indent=1) + "\n", encoding="utf-8")
    save_file(tensors, folder / WEIGHTS)
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors creates files that only their owner can read
    shutil.copyfile(run.path / _EXPERIMENT, folder / _EXPERIMENT)
    (folder / "README.md").write_text(text, encoding="utf-8")
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in (WEIGHTS, CONFIG, _EXPERIMENT)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    return description


def _describe(run: "Run", provenance: dict[str, Any], step: int, weights: Any, projector: bool) -> Description:
    experiment = run.experiment
    # All data sets have the same autoencoder for a modality, and the same encoder for captions.
    identities, text = {}, ""
    for dataset in provenance.get("datasets", {}).values():
        identities.update(dataset["autoencoders"])
        text = text or dataset["text"] or ""
    return Description(
        # The settings of execution depend on the hardware of the run.
        model=dataclasses.replace(experiment.model, execution=Execution()),
        modalities=run.objective.modalities,
        projector=projector,
        weights=weights,
        step=step,
        autoencoders={m: Encoder(config, identities.get(m, "")) for m, config in experiment.autoencoders.items()},
        text=Encoder(experiment.text, text) if experiment.text else None,
    )
