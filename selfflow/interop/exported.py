"""Exported weights: a folder that needs no run and no experiment, written by `selfflow export`.

`model.safetensors` holds the weights, float32; `config.json` a `Description`; `experiment.json` the experiment of the
run; `README.md` the card; `SHA256SUMS` the hashes of all but the card, which is there to be completed.

Two layouts of weights:

- A SiT has that of the released checkpoint (`released_sit_weights`), projector included: `load_released_sit` reads it.
- A joint transformer has the dotted names of its parameters: `model.` and the path in
  `nnx.to_pure_dict(nnx.state(model))`, as in `model.double.media.qkv.kernel`, and `projector.linear1.kernel` and so on
  for the student's head. Kernels are [inputs, outputs]; blocks of a kind are stacked along a first axis.
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
from selfflow.weights import check_keys, read_weights, sha256_of

WEIGHTS, CONFIG, SUMS = "model.safetensors", "config.json", "SHA256SUMS"


@dataclass(frozen=True)
class Encoder:
    """What made the latents or the captions' embeddings that a model was trained on."""

    settings: AnyAutoencoder | Text
    """Its settings."""
    identity: str
    """Kind and hash of its weights, normalisation included; empty where the run does not tell."""


@dataclass(frozen=True)
class Description:
    """What `config.json` says: all that rebuilds a model, and what its inputs are."""

    model: JointConfig | SiTConfig
    """The shape."""
    modalities: dict[str, Modality]
    """The latents that it takes, and how they are cut into tokens."""
    projector: bool
    """Whether the student's head is there."""
    weights: Literal["ema", "student"]
    """Which of the run's weights these are; the projector is always the student's."""
    step: int
    """After how many updates."""
    autoencoders: dict[str, Encoder]
    """What makes the latents of each modality."""
    text: Encoder | None
    """What makes the embeddings of captions."""
    format: Literal["selfflow-1"] = "selfflow-1"
    """Which form of folder this is."""


class Exported(NamedTuple):
    """A model from an exported folder.

    Attributes:
      model: it computes as its config says; of a SiT `model.projector` is the projector, too.
      config: its shape.
      modalities: the latents that it takes; `modalities[name].to_tokens(latents)` cuts them.
      projector: the student's head, or None.
      description: all that `config.json` says.
    """

    model: JointTransformer | SiT
    config: JointConfig | SiTConfig
    modalities: dict[str, Modality]
    projector: Projector | None
    description: Description


def load_exported(folder: str | PathLike) -> Exported:
    """Reads what `selfflow export` wrote, from `model.safetensors`, `config.json` and `SHA256SUMS` alone.

    Args:
      folder: the exported folder.

    Raises:
      UserError: if a file is missing, damaged or not the one that was hashed, or weights are missing, too many, of
        another shape, or not finite; the message names file and key.
    """
    folder = Path(folder)
    _verify(folder)
    told, path = _read_description(folder / CONFIG), folder / WEIGHTS
    weights = read_weights(path)
    model, projector = (_sit_of if isinstance(told.model, SiTConfig) else _joint_of)(path, weights, told)
    return Exported(model, told.model, told.modalities, projector, told)


def exported_layout(config: JointConfig | SiTConfig, params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Parameters as they stand in `model.safetensors`.

    Args:
      config: the shape.
      params: {"model": ...}, and {"projector": ...} where there is one, as `SelfFlowObjective.init` makes them.

    Returns:
      {key: float32 array}.
    """
    if isinstance(config, SiTConfig):
        projector = {"projector": params["projector"]} if "projector" in params else {}
        return released_layout(params["model"] | projector, config, bool(projector))
    return {name: np.ascontiguousarray(value, np.float32) for name, value in flat_by_name(params).items()}


def _verify(folder: Path) -> None:
    """Raises `UserError` unless the files that are read are those that were hashed."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give one that `selfflow export` wrote")
    path = folder / SUMS
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({error}): give a folder that `selfflow export` wrote") from None
    known = dict(reversed(line.split("  ", 1)) for line in lines if re.fullmatch("[0-9a-f]{64}  .+", line))
    for name in (WEIGHTS, CONFIG):
        if name not in known:
            raise UserError(f"{path} has no hash of {name}: it is damaged; copy the folder again")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: copy the folder again")
        if sha256_of(folder / name) != known[name]:
            raise UserError(f"{folder / name} is not the file that {SUMS} has the hash of: copy the folder again")


def _read_description(path: Path) -> Description:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): copy the folder again") from None
    return from_json(data, Description, str(path))


def _sit_of(path: Path, weights: dict[str, np.ndarray], told: Description) -> tuple[SiT, Projector | None]:
    """A SiT and its projector, of weights that are emptied on the way."""
    config, where = told.model, path.with_name(CONFIG)
    config.check(told.modalities, f"{where}: modalities")
    # Before a model of any size is made: the weights tell most sizes, too.
    found, projector = sit_config(path, weights, config.heads, config.patch_size)
    for name in ("width", "depth", "input_size", "channels", "labels", "learn_sigma"):
        if getattr(config, name) != getattr(found, name):
            raise UserError(
                f"{where}: model.{name} is {getattr(config, name)}, but weights tell {getattr(found, name)}"
            )
    if not abs(config.mlp_ratio - found.mlp_ratio) * config.width <= 1:
        raise UserError(f"{where}: model.mlp_ratio is {config.mlp_ratio}, but the weights tell {found.mlp_ratio}")
    if projector != told.projector:
        raise UserError(f"{where}: projector is {told.projector}, and {path.name} tells otherwise")
    model = sit_of(path, weights, config, projector)
    return model, model.projector


def _joint_of(
    path: Path, weights: dict[str, np.ndarray], told: Description
) -> tuple[JointTransformer, Projector | None]:
    """A joint transformer and its projector, of weights that are emptied on the way."""
    parts = {"model": lambda: JointTransformer(told.model, told.modalities, rngs=nnx.Rngs(0))}
    if told.projector:
        parts["projector"] = lambda: Projector(told.model.width, rngs=nnx.Rngs(0))
    try:
        with nnx.use_eager_sharding(False):
            split = {name: nnx.split(nnx.eval_shape(make)) for name, make in parts.items()}
    except (TypeError, ValueError, OverflowError, MemoryError) as error:  # sizes that no array can have
        raise UserError(f"{path.with_name(CONFIG)}: no model has such sizes ({type(error).__name__})") from error
    shapes = {name: nnx.to_pure_dict(state) for name, (_, state) in split.items()}
    expected = flat_by_name(shapes)
    check_keys(path, weights, expected, f"the model that {CONFIG} describes")
    for key, leaf in expected.items():
        if weights[key].shape != leaf.shape:
            raise UserError(f"{path}: {key} has shape {weights[key].shape}, and {CONFIG} tells {leaf.shape}")
    values = iter([jnp.asarray(weights.pop(key), jnp.float32) for key in expected])
    filled = jax.tree.map(lambda _: next(values), shapes)
    for name, (_, state) in split.items():
        nnx.replace_by_pure_dict(state, filled[name])
    merged = {name: nnx.merge(graph, state) for name, (graph, state) in split.items()}
    return merged["model"], merged.get("projector")
