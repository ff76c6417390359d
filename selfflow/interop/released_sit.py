"""The released SiT of arXiv 2603.06507: its weights into `SiT`, and back.

The layout is that of the authors' inference code. Weights are renamed, stacked and transposed, and nothing else:
`SiT.__call__` converts between its convention of time and that of this project.
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

# Linear layers: released name and name in `SiT`.
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
    """Where a released tensor is in `nnx.to_pure_dict(nnx.state(model))`.

    Attributes:
      path: keys of the parameter.
      layer: index along the first axis of a stack; None if it is not stacked.
      transposed: whether the released tensor is the transpose.
    """

    path: tuple[str, ...]
    layer: int | None
    transposed: bool


def load_released_sit(path: str | PathLike, *, num_heads: int | None, patch_size: int = 2) -> tuple[SiT, SiTConfig]:
    """Reads the weights of a released SiT.

    All other sizes are those of the weights. The model computes in float32; `model.projector` is the student's
    projector, or None if the file has none.

    Args:
      path: `.pt` (a dict of weights, or one under `model` or `state_dict`; nothing in it is executed) or
        `.safetensors`, in float32, float16 or bfloat16; keys may begin with `module.`.
      num_heads: attention heads, which weights do not determine: 16 for XL; None for those of the published SiT of
        this width.
      patch_size: latent positions in a token along each axis.

    Returns:
      The model and its config.

    Raises:
      UserError: if the file is damaged or of another format, has anything but weights, lacks one or has one more, or a
        shape, a value or an argument does not fit; the message names file and key.
    """
    path = Path(path)
    weights = read_weights(path)
    config, projector = sit_config(path, weights, num_heads, patch_size)
    return sit_of(path, weights, config, projector), config


def sit_of(path: Path, weights: dict[str, np.ndarray], config: SiTConfig, projector: bool) -> SiT:
    """Returns a SiT of a given shape with weights in the released layout.

    Args:
      path: path of the file with the weights, for errors.
      weights: {key: array}; emptied, so that memory holds them once.
      config: shape of the model.
      projector: whether the weights include the projector.

    Raises:
      UserError: if a weight is missing, unknown or of another shape, or the position embedding is not the fixed one.
    """
    graph, state = nnx.split(_abstract(config, projector))
    places = dict(_places(config, projector))
    check_keys(path, weights, {_POSITION, *places}, "a released SiT")
    _check_positions(path, weights.pop(_POSITION), config)
    params = nnx.to_pure_dict(state)
    # The released tensors of each parameter: one, or those of all layers.
    keys: dict[tuple[str, ...], list[str]] = {}
    for key, place in places.items():
        shape = _at(params, place.path).shape[0 if place.layer is None else 1 :]
        expected = shape[::-1] if place.transposed else shape
        if weights[key].shape != expected:
            raise UserError(
                f"{path}: {key} has shape {weights[key].shape}, but {expected} by the sizes of other weights: give the "
                "weights of one model"
            )
        keys.setdefault(place.path, []).append(key)
    for (*parents, name), keys_of_param in keys.items():
        tensors = [weights.pop(key).T if places[key].transposed else weights.pop(key) for key in keys_of_param]
        stacked = places[keys_of_param[0]].layer is not None
        _at(params, parents)[name] = jnp.asarray(np.stack(tensors) if stacked else tensors[0], jnp.float32)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def released_sit_weights(model: SiT) -> dict[str, np.ndarray]:
    """Returns the weights of a SiT in the released layout, bit for bit those that `load_released_sit` reads.

    Args:
      model: model with or without a projector.

    Returns:
      {key: float32 array}, in the order of the keys.
    """
    return released_layout(nnx.to_pure_dict(nnx.state(model)), model.config, model.projector is not None)


def released_layout(state: dict[str, Any], config: SiTConfig, projector: bool) -> dict[str, np.ndarray]:
    """Parameters of a SiT in the released layout.

    Args:
      state: `nnx.to_pure_dict(nnx.state(model))`.
      config: shape of the model.
      projector: whether the parameters include the projector.

    Returns:
      {key: float32 array}, in the order of the keys.
    """
    weights = {_POSITION: position_embedding(math.isqrt(config.tokens), config.width)[None]}
    fetched: dict[tuple[str, ...], np.ndarray] = {}
    for key, place in _places(config, projector):
        if place.path not in fetched:
            fetched[place.path] = np.asarray(_at(state, place.path), np.float32)
        tensor = fetched[place.path] if place.layer is None else fetched[place.path][place.layer]
        weights[key] = np.ascontiguousarray(tensor.T if place.transposed else tensor)
    return dict(sorted(weights.items()))


def sit_config(path: Path, weights: dict[str, np.ndarray], heads: int | None, patch: int) -> tuple[SiTConfig, bool]:
    """Returns the shape of weights in the released layout, and whether they include the projector.

    Args:
      path: path of the file with the weights, for errors.
      weights: {key: array}.
      heads: attention heads; None for those of the published SiT of this width.
      patch: latent positions in a token along each axis.

    Raises:
      UserError: if a weight that determines the shape is missing, or the arguments do not fit the weights.
    """
    if patch not in PATCH_SIZES:
        raise UserError(f"patch_size is {patch}, expected one of {PATCH_SIZES}")
    _, tokens, _ = _shape(path, weights, _POSITION, 3)
    width, token_size = _shape(path, weights, "x_embedder.proj.weight", 2)
    if math.isqrt(tokens) ** 2 != tokens:
        raise UserError(
            f"{path}: {_POSITION} has {tokens} tokens, expected a square number: give a SiT of square latents"
        )
    if token_size % patch**2:
        raise UserError(
            f"{path}: x_embedder.proj.weight takes tokens of {token_size} elements, which patch_size {patch} squared "
            "does not divide; give the model's own patch_size"
        )
    heads = _heads(path, width, heads)
    outputs, _ = _shape(path, weights, "final_layer.linear.weight", 2)
    if outputs not in (token_size, 2 * token_size):
        raise UserError(
            f"{path}: final_layer.linear.weight has {outputs} rows, expected {token_size} or {2 * token_size}: give "
            "the weights of a released SiT"
        )
    # Counted, not the highest index: a missing block is then named in the error.
    depth = max(1, len({key.split(".")[1] for key in weights if key.startswith("blocks.")}))
    hidden, _ = _shape(path, weights, "blocks.0.mlp.fc1.weight", 2)
    embeddings, _ = _shape(path, weights, _LABELS, 2)
    try:
        config = SiTConfig(
            width=width,
            heads=heads,
            depth=depth,
            mlp_ratio=hidden / width,
            patch_size=patch,
            input_size=math.isqrt(tokens) * patch,
            channels=token_size // patch**2,
            labels=embeddings - 1,  # the last means no label
            learn_sigma=outputs == 2 * token_size,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config, any(key.startswith("projector.") for key in weights)


def _shape(path: Path, weights: dict[str, np.ndarray], key: str, axes: int) -> tuple[int, ...]:
    if key not in weights:
        raise UserError(f"{path} lacks {key}: give the weights of a released SiT")
    shape = weights[key].shape
    if len(shape) != axes or 0 in shape:
        raise UserError(f"{path}: {key} has shape {shape}, expected {axes} axes: give the weights of a released SiT")
    return shape


def _heads(path: Path, width: int, heads: int | None) -> int:
    if heads is None:
        published = {width: heads for _, width, heads in SHAPES.values()}
        if width not in published:
            raise UserError(
                f"{path} has width {width}, which no published SiT has, and weights do not determine the number of "
                "heads: give --num-heads"
            )
        heads = published[width]
    if heads < 1 or width % heads or width % 4:
        raise UserError(f"{path}: width {width} is not a multiple of 4 and of num_heads {heads}; give the model's own")
    return heads


def _abstract(config: SiTConfig, projector: bool) -> SiT:
    with nnx.use_eager_sharding(False):
        return nnx.eval_shape(lambda: SiT(config, projector=projector, rngs=nnx.Rngs(0)))


def _places(config: SiTConfig, projector: bool) -> Iterator[tuple[str, _Place]]:
    """Released keys and their places; the layers of a stack in order."""

    def linear(released: str, path: tuple[str, ...], layer: int | None = None):
        yield f"{released}.weight", _Place((*path, "kernel"), layer, True)
        yield f"{released}.bias", _Place((*path, "bias"), layer, False)

    yield _LABELS, _Place(("label_embedding",), None, False)
    for released, name in _OUTER.items():
        yield from linear(released, (name,))
    for layer in range(config.depth):
        for released, name in _BLOCK.items():
            yield from linear(f"blocks.{layer}.{released}", ("blocks", name), layer)
    for name in ("linear1", "linear2") if projector else ():
        yield from linear(f"projector.{name}", ("projector", name))


def _check_positions(path: Path, positions: np.ndarray, config: SiTConfig) -> None:
    """Checks that the position embedding is the fixed one, which `SiT` computes."""
    expected = position_embedding(math.isqrt(config.tokens), config.width)[None]
    tolerance = 1e-5 if positions.dtype == np.float32 else 5e-3  # half precision rounds
    if positions.shape != expected.shape or np.abs(positions.astype(np.float32) - expected).max() > tolerance:
        raise UserError(
            f"{path}: {_POSITION} is not the sine-cosine embedding (column first, then row) of {config.tokens} tokens "
            f"and width {config.width}; trained or scaled position embeddings are not supported"
        )


def _at(tree: dict[str, Any], path: Any) -> Any:
    for name in path:
        tree = tree[name]
    return tree
