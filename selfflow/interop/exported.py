"""Exported weights: a folder of `selfflow export` that depends on no run and no experiment.

`model.safetensors` holds the weights in float32, `config.json` a `Description`, `experiment.json` the experiment of the
run, `README.md` the model card, and `SHA256SUMS` the hashes of all files but the card, which users edit.

There are two layouts of weights:

- A SiT has that of the released checkpoint (`released_sit_weights`), with the projector: `load_released_sit` reads it.
- A joint transformer has the dotted names of its parameters: `model.` and the path in
  `nnx.to_pure_dict(nnx.state(model))`, as in `model.double.media.qkv.kernel`, and `projector.linear1.kernel` and so on
  for the projector. Kernels are [inputs, outputs]; blocks of a kind are stacked along the first axis.
"""

import json
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from selfflow.autoencoders.config import AnyAutoencoder
from selfflow.encoders.text import Text
from selfflow.errors import UserError
from selfflow.interop.released_sit import released_layout, sit_config, sit_of
from selfflow.modality import Modality
from selfflow.models.joint import JointTransformer
from selfflow.models.joint_config import JointConfig
from selfflow.models.projector import Projector
from selfflow.models.sit import SiT, SiTConfig
from selfflow.serialization import from_json
from selfflow.training.state import flat_by_name
from selfflow.weights.read import check_keys, read_weights, sha256_of

WEIGHTS, CONFIG, SUMS = "model.safetensors", "config.json", "SHA256SUMS"


@dataclass(frozen=True)
class Encoder:
    """The encoder of the latents, or of the embeddings of captions, that a model was trained on."""

    settings: AnyAutoencoder | Text
    """Its config."""
    identity: str
    """Kind and hash of its weights and normalisation; empty if the run does not record it."""


@dataclass(frozen=True)
class Description:
    """The content of `config.json`: the shape of a model and of its inputs."""

    model: JointConfig | SiTConfig
    """Shape of the model."""
    modalities: dict[str, Modality]
    """Shapes of latents and patches."""
    projector: bool
    """Whether the projector is included."""
    weights: Literal["ema", "student"]
    """Weights of the run, EMA or student; the projector is always the student's."""
    step: int
    """Number of updates."""
    autoencoders: dict[str, Encoder]
    """The encoder of the latents of each modality."""
    text: Encoder | None
    """The encoder of captions."""
    format: Literal["selfflow-1"] = "selfflow-1"
    """Version of the format of the folder."""


class Exported(NamedTuple):
    """A model from an exported folder.

    Attributes:
      model: the model; a SiT has the projector as `model.projector`, too.
      config: shape of the model.
      modalities: shapes of latents; `modalities[name].to_tokens(latents)` converts them to tokens.
      projector: the student's projector, or None.
      description: the content of `config.json`.
    """

    model: JointTransformer | SiT
    config: JointConfig | SiTConfig
    modalities: dict[str, Modality]
    projector: Projector | None
    description: Description


def load_exported(folder: str | PathLike) -> Exported:
    """Loads a folder of `selfflow export` from its `model.safetensors`, `config.json` and `SHA256SUMS`.

    Args:
      folder: the exported folder.

    Raises:
      UserError: if a file is missing, damaged or does not have its hash, or weights are missing, unknown, of another
        shape, or not finite; the message names file and key.
    """
    folder = Path(folder)
    _verify(folder)
    description, path = _read_description(folder / CONFIG), folder / WEIGHTS
    weights = read_weights(path)
    build = _build_sit if isinstance(description.model, SiTConfig) else _build_joint
    model, projector = build(path, weights, description)
    return Exported(model, description.model, description.modalities, projector, description)


def exported_layout(config: JointConfig | SiTConfig, params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Parameters in the layout of `model.safetensors`.

    Args:
      config: shape of the model.
      params: "model", and "projector" if there is one, as in `SelfFlowObjective.init`.

    Returns:
      {key: float32 array}.
    """
    if isinstance(config, SiTConfig):
        projector = {"projector": params["projector"]} if "projector" in params else {}
        return released_layout(params["model"] | projector, config, bool(projector))
    return {name: np.ascontiguousarray(value, np.float32) for name, value in flat_by_name(params).items()}


def _verify(folder: Path) -> None:
    """Checks the hashes of the files that are read."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one that `selfflow export` wrote")
    path = folder / SUMS
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({error}): give a folder that `selfflow export` wrote") from None
    hashes = {}
    for line in lines:
        if re.fullmatch("[0-9a-f]{64}  .+", line):
            value, name = line.split("  ", 1)
            hashes[name] = value
    for name in (WEIGHTS, CONFIG):
        if name not in hashes:
            raise UserError(f"{path} has no hash of {name}: it is damaged; copy the folder again")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: copy the folder again")
        if sha256_of(folder / name) != hashes[name]:
            raise UserError(f"{folder / name} does not have its hash in {SUMS}: copy the folder again")


def _read_description(path: Path) -> Description:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): copy the folder again") from None
    return from_json(data, Description, str(path))


def _build_sit(path: Path, weights: dict[str, np.ndarray], description: Description) -> tuple[SiT, Projector | None]:
    """Returns a SiT and its projector. `weights` is emptied, so that memory holds them once."""
    config, config_path = description.model, path.with_name(CONFIG)
    config.check(description.modalities, f"{config_path}: modalities")
    # Checked before a model of that size is built: weights have most sizes, too.
    actual, projector = sit_config(path, weights, config.heads, config.patch_size)
    for name in ("width", "depth", "input_size", "channels", "labels", "learn_sigma"):
        value, expected = getattr(config, name), getattr(actual, name)
        if value != expected:
            raise UserError(f"{config_path}: model.{name} is {value}, but that of the weights {expected}")
    if not abs(config.mlp_ratio - actual.mlp_ratio) * config.width <= 1:
        raise UserError(
            f"{config_path}: model.mlp_ratio is {config.mlp_ratio}, but that of the weights {actual.mlp_ratio}"
        )
    if projector != description.projector:
        raise UserError(f"{config_path}: projector is {description.projector}, but {projector} in {path.name}")
    model = sit_of(path, weights, config, projector)
    return model, model.projector


def _build_joint(
    path: Path, weights: dict[str, np.ndarray], description: Description
) -> tuple[JointTransformer, Projector | None]:
    """Returns a joint transformer and its projector. `weights` is emptied, so that memory holds them once."""
    # Structures and shapes first, without arrays.
    structures, states = {}, {}
    try:
        with nnx.use_eager_sharding(False):
            model = nnx.eval_shape(
                lambda: JointTransformer(description.model, description.modalities, rngs=nnx.Rngs(0))
            )
            structures["model"], states["model"] = nnx.split(model)
            if description.projector:
                projector = nnx.eval_shape(lambda: Projector(description.model.width, rngs=nnx.Rngs(0)))
                structures["projector"], states["projector"] = nnx.split(projector)
    except (TypeError, ValueError, OverflowError, MemoryError) as error:  # sizes that no array can have
        raise UserError(f"{path.with_name(CONFIG)}: no model has such sizes ({type(error).__name__})") from error
    shapes = {name: nnx.to_pure_dict(state) for name, state in states.items()}
    expected = flat_by_name(shapes)
    check_keys(path, weights, expected, f"the model of {CONFIG}")
    for key, leaf in expected.items():
        if weights[key].shape != leaf.shape:
            raise UserError(f"{path}: {key} has shape {weights[key].shape}, but {leaf.shape} in {CONFIG}")
    # `expected` lists the leaves in the order of the tree.
    values = iter([jnp.asarray(weights.pop(key), jnp.float32) for key in expected])
    params = jax.tree.map(lambda _: next(values), shapes)
    for name, state in states.items():
        nnx.replace_by_pure_dict(state, params[name])
    projector = nnx.merge(structures["projector"], states["projector"]) if description.projector else None
    return nnx.merge(structures["model"], states["model"]), projector
