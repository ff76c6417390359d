"""The released SiT of arXiv 2603.06507: its weights into `SiT`, and back.

The layout is that of the authors' inference code. Weights change place and are transposed, and nothing else: the turns
between their convention of time and ours are taken in `SiT.__call__`.
"""

import math
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from selfflow.errors import UserError
from selfflow.models.sit import PATCH_SIZES, SHAPES, SiT, SiTConfig, position_embedding
from selfflow.weights.read import check_keys, read_weights

# Linear layers: their released names and ours.
_OUTER = {
    "x_embedder.proj": "embed",
    "t_embedder.mlp.0": "time_in",
    "t_embedder.mlp.2": "time_out",
    "final_layer.adaLN_modulation.1": "final_modulation",
    "final_layer.linear": "readout",
}
_BLOCK = {
    "attn.qkv": "qkv",
    "attn.proj": "project",
    "mlp.fc1": "mlp_in",
    "mlp.fc2": "mlp_out",
    "adaLN_modulation.1": "modulation",
}
_POSITION = "pos_embed"
_LABELS = "y_embedder.embedding_table.weight"


class _Place(NamedTuple):
    """Where a released tensor stands in `nnx.to_pure_dict(nnx.state(model))`."""

    path: tuple[str, ...]
    layer: int | None
    transposed: bool


def load_released_sit(path: str | PathLike, *, num_heads: int | None, patch_size: int = 2) -> tuple[SiT, SiTConfig]:
    """Reads the weights of a released SiT.

    All other sizes are those of the weights. The model computes in float32; `model.projector` is the student's head,
    or None where the file has none.

    Args:
      path: `.pt` (a dict of weights, itself or under `model` or `state_dict`; nothing in it is run) or `.safetensors`,
        in float32, float16 or bfloat16; keys may begin with `module.`.
      num_heads: attention heads, which weights do not show: 16 for XL; None for those of the published SiT of this
        width.
      patch_size: latent positions that a token spans along each axis.

    Returns:
      The model and its config.

    Raises:
      UserError: if the file is damaged or of another format, holds anything but weights, lacks one or has one more, or
        a shape, a value or the given sizes do not fit; the message names file and key.
    """
    path = Path(path)
    weights = read_weights(path)
    config, projector = sit_config(path, weights, num_heads, patch_size)
    return sit_of(path, weights, config, projector), config


def sit_of(path: Path, weights: dict[str, np.ndarray], config: SiTConfig, projector: bool) -> SiT:
    """A SiT of a known shape with weights in the released layout.

    Args:
      path: the file that they were read from, for errors.
      weights: {key: array}; emptied on the way, so that no more than one copy of the whole is held.
      config: the shape.
      projector: whether the student's head is among them.

    Raises:
      UserError: if one is missing, is too many or has another shape, or positions are not the computed ones.
    """
    graph, state = nnx.split(_abstract(config, projector))
    places = dict(_places(config, projector))
    check_keys(path, weights, {_POSITION, *places}, "a released SiT")
    _check_positions(path, weights.pop(_POSITION), config)
    filled = nnx.to_pure_dict(state)
    keys: dict[tuple[str, ...], list[str]] = {}
    for key, place in places.items():
        shape = _at(filled, place.path).shape[0 if place.layer is None else 1 :]
        told = shape[::-1] if place.transposed else shape
        if weights[key].shape != told:
            raise UserError(
                f"{path}: {key} has shape {weights[key].shape}, and the model's other sizes tell {told}: "
                "they are of different models"
            )
        keys.setdefault(place.path, []).append(key)
    for (*parents, name), some in keys.items():
        tensors = [weights.pop(key).T if places[key].transposed else weights.pop(key) for key in some]
        whole = np.stack(tensors) if places[some[0]].layer is not None else tensors[0]
        _at(filled, parents)[name] = jnp.asarray(whole, jnp.float32)
    nnx.replace_by_pure_dict(state, filled)
    return nnx.merge(graph, state)


def released_sit_weights(model: SiT) -> dict[str, np.ndarray]:
    """The weights of a SiT in the released layout: what `load_released_sit` reads, to the bit.

    Args:
      model: with a projector or without.

    Returns:
      {key: float32 array}, in the order of the keys.
    """
    return released_layout(nnx.to_pure_dict(nnx.state(model)), model.config, model.projector is not None)


def released_layout(state: dict[str, Any], config: SiTConfig, projector: bool) -> dict[str, np.ndarray]:
    """The same from the parameters of a SiT, `nnx.to_pure_dict(nnx.state(model))`, without making one."""
    weights = {_POSITION: position_embedding(math.isqrt(config.tokens), config.width)[None]}
    fetched: dict[tuple[str, ...], np.ndarray] = {}
    for key, place in _places(config, projector):
        if place.path not in fetched:
            fetched[place.path] = np.asarray(_at(state, place.path), np.float32)
        tensor = fetched[place.path] if place.layer is None else fetched[place.path][place.layer]
        weights[key] = np.ascontiguousarray(tensor.T if place.transposed else tensor)
    return dict(sorted(weights.items()))


def sit_config(path: Path, weights: dict[str, np.ndarray], heads: int | None, patch: int) -> tuple[SiTConfig, bool]:
    """The sizes that weights in the released layout tell, and whether there is a projector.

    Raises:
      UserError: if they lack a tensor that tells one, or are not of a SiT with so many heads and such patches.
    """

    def shape(key: str, axes: int) -> tuple[int, ...]:
        if key not in weights:
            raise UserError(f"{path} lacks {key}: give the weights of a released SiT")
        if weights[key].ndim != axes or 0 in weights[key].shape:
            raise UserError(f"{path}: {key} has shape {weights[key].shape}; give the weights of a released SiT")
        return weights[key].shape

    if patch not in PATCH_SIZES:
        raise UserError(f"patch_size is {patch}: it must be one of {PATCH_SIZES}")
    _, tokens, _ = shape(_POSITION, 3)
    width, token_size = shape("x_embedder.proj.weight", 2)
    if math.isqrt(tokens) ** 2 != tokens:
        raise UserError(f"{path}: {_POSITION} has {tokens} tokens, which form no square; only square latents are read")
    if token_size % patch**2:
        raise UserError(
            f"{path}: x_embedder.proj.weight takes tokens of {token_size} elements, no multiple of patch_size {patch} "
            "squared; give the model's own patch_size"
        )
    if heads is None:
        published = {width: heads for _, width, heads in SHAPES.values()}
        if width not in published:
            raise UserError(
                f"{path} of width {width} is none of the published SiTs, and weights do not tell their heads: "
                "--num-heads"
            )
        heads = published[width]
    if heads < 1 or width % heads or width % 4:
        raise UserError(f"{path}: width {width} is not divided by 4 and by num_heads {heads}; give the model's own")
    outputs = shape("final_layer.linear.weight", 2)[0]
    if outputs not in (token_size, 2 * token_size):
        raise UserError(
            f"{path}: final_layer.linear.weight has {outputs} rows, neither {token_size} nor {2 * token_size}: "
            "it is of another model"
        )
    # Counted, not read off the highest number: a missing block is then named as such.
    depth = max(1, len({key.split(".")[1] for key in weights if key.startswith("blocks.")}))
    hidden, labels = shape("blocks.0.mlp.fc1.weight", 2)[0], shape(_LABELS, 2)[0] - 1
    try:
        config = SiTConfig(
            width=width,
            heads=heads,
            depth=depth,
            mlp_ratio=hidden / width,
            patch_size=patch,
            input_size=math.isqrt(tokens) * patch,
            channels=token_size // patch**2,
            labels=labels,
            learn_sigma=outputs == 2 * token_size,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config, any(key.startswith("projector.") for key in weights)


def _abstract(config: SiTConfig, projector: bool) -> SiT:
    with nnx.use_eager_sharding(False):
        return nnx.eval_shape(lambda: SiT(config, projector=projector, rngs=nnx.Rngs(0)))


def _places(config: SiTConfig, projector: bool) -> Iterator[tuple[str, _Place]]:
    """Released keys and where they stand; the layers of a stack in order."""

    def linear(released: str, ours: tuple[str, ...], layer: int | None = None):
        yield f"{released}.weight", _Place((*ours, "kernel"), layer, True)
        yield f"{released}.bias", _Place((*ours, "bias"), layer, False)

    yield _LABELS, _Place(("label_embedding",), None, False)
    for released, name in _OUTER.items():
        yield from linear(released, (name,))
    for layer in range(config.depth):
        for released, name in _BLOCK.items():
            yield from linear(f"blocks.{layer}.{released}", ("blocks", name), layer)
    for name in ("linear1", "linear2") if projector else ():
        yield from linear(f"projector.{name}", ("projector", name))


def _check_positions(path: Path, given: np.ndarray, config: SiTConfig) -> None:
    expected = position_embedding(math.isqrt(config.tokens), config.width)[None]
    # Positions are no parameter: they are computed. Half precision rounds them.
    tolerance = 1e-5 if given.dtype == np.float32 else 5e-3
    if given.shape != expected.shape or np.abs(given.astype(np.float32) - expected).max() > tolerance:
        raise UserError(
            f"{path}: {_POSITION} is not the sine-cosine embedding (column first, then row) of "
            f"{config.tokens} tokens and width {config.width}; positions that were trained or scaled are not read"
        )


def _at(tree: dict[str, Any], path: Any) -> Any:
    for name in path:
        tree = tree[name]
    return tree
