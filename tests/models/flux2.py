"""FLUX.2's transformer by the names of diffusers: its weights as ours, and a small one that was recorded."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from selfflow.modality import Modality
from selfflow.models.joint import Caption, JointTransformer
from selfflow.models.joint_config import JointConfig

GOLDEN = Path(__file__).parents[1] / "goldens" / "flux2_small.safetensors"
# Both kinds of block, a stack of one and one of two; two frequencies for each axis; no size equals another.
CONFIG = JointConfig(
    width=32, heads=2, double_blocks=1, single_blocks=2, mlp_ratio=1.5, rotary=(4, 4, 4, 4), labels=2, text=6
)
VIDEO = Modality((3, 4, 6, 2), (1, 2, 2), period=12.5)  # a centre of time is no whole number

# Linear layers of a block: those of diffusers, side by side where there are several, and ours.
_MEDIA = {
    "qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "project": ("attn.to_out.0",),
    "mlp_in": ("ff.linear_in",),
    "mlp_out": ("ff.linear_out",),
}
_TEXT = {
    "qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "project": ("attn.to_add_out",),
    "mlp_in": ("ff_context.linear_in",),
    "mlp_out": ("ff_context.linear_out",),
}
_SINGLE = {"inputs": ("attn.to_qkv_mlp_proj",), "outputs": ("attn.to_out",)}
_OUTER = {
    "time_in": "time_guidance_embed.timestep_embedder.linear_1",
    "time_out": "time_guidance_embed.timestep_embedder.linear_2",
    "double_text": "double_stream_modulation_txt.linear",
    "double_media": "double_stream_modulation_img.linear",
    "single_modulation": "single_stream_modulation.linear",
    "final_modulation": "norm_out.linear",
}

Weights = dict[str, np.ndarray]


def double_block(weights: Weights, prefix: str = "") -> dict:
    """Weights of a `Flux2TransformerBlock`, or their gradients, as those of a `DoubleBlock`."""
    return {
        "text": _linears(weights, prefix, _TEXT) | _norms(weights, prefix, "norm_added_q", "norm_added_k"),
        "media": _linears(weights, prefix, _MEDIA) | _norms(weights, prefix, "norm_q", "norm_k"),
    }


def single_block(weights: Weights, prefix: str = "") -> dict:
    """Weights of a `Flux2SingleTransformerBlock`, or their gradients, as those of a `SingleBlock`."""
    return _linears(weights, prefix, _SINGLE) | _norms(weights, prefix, "norm_q", "norm_k")


def transformer(weights: Weights, config: JointConfig, modality: str) -> dict:
    """Weights of a `Flux2Transformer2DModel`, or their gradients, as those of a `JointTransformer`.

    Our labels are the last channels of its text: see `context`.
    """
    stacked = lambda blocks: jax.tree.map(lambda *x: np.stack(x), *blocks)
    text = weights["context_embedder.weight"].T
    return {ours: _linear(weights, theirs) for ours, theirs in _OUTER.items()} | {
        "embed": {modality: _linear(weights, "x_embedder")},
        "readout": {modality: _linear(weights, "proj_out")},
        "text_embed": {"kernel": text[: config.text]},
        "label_embedding": text[config.text :],
        "double": stacked([double_block(weights, f"transformer_blocks.{i}.") for i in range(config.double_blocks)]),
        "single": stacked(
            [single_block(weights, f"single_transformer_blocks.{i}.") for i in range(config.single_blocks)]
        ),
    }


def context(label_B: np.ndarray, caption_BLC: np.ndarray, labels: int) -> np.ndarray:
    """Our text stream as theirs, [B, 1 + L, C + labels + 1]: the label in channels of its own, then a caption."""
    batch, length, channels = caption_BLC.shape
    whole = np.zeros((batch, 1 + length, channels + labels + 1), np.float32)
    whole[np.arange(batch), 0, channels + label_B] = 1
    whole[:, 1:, :channels] = caption_BLC
    return whole


def ids(modality: Modality, text: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the text's and of the media's tokens, [N, 4]: their ids."""
    places = np.zeros((text, 4), np.float32)
    places[:, 3] = np.arange(text)
    return places, modality.coordinates()


def ours(config: JointConfig, modality: Modality, params: dict, inputs: Weights):
    """Our transformer in all that is compared: (velocity and taps of all blocks, gradients to inputs and weights).

    Args:
      params: as `transformer` gives them.
      inputs: `tokens` [B, N, P], `tau` [B], `label` [B], `caption` [B, L, C], and `weight` [B, N, P], whose product
        with the velocity is what is differentiated.
    """
    with nnx.use_eager_sharding(False):
        make = lambda: JointTransformer(config, {"video": modality}, rngs=nnx.Rngs(0))
        graph = nnx.graphdef(nnx.eval_shape(make))
    batch, count = inputs["tokens"].shape[:2]

    def loss(params, tokens, caption):
        out = nnx.merge(graph, nnx.State(params))(
            {"video": tokens},
            {"video": inputs["tau"][:, None]},
            inputs["label"],
            {"video": jnp.zeros((batch, count), jnp.int32)},
            taps=tuple(range(1, config.depth + 1)),
            caption=Caption(caption, jnp.ones(caption.shape[:2], bool)),
        )
        return jnp.sum(out.velocity["video"] * inputs["weight"]), out

    differentiate = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    (weights, tokens, caption), out = differentiate(params, inputs["tokens"], inputs["caption"])
    taps = {f"tap.{block}": x["video"] for block, x in out.taps.items()}
    return {"velocity": out.velocity["video"]} | taps, {"tokens": tokens, "caption": caption}, weights


def assert_near(actual: dict, expected: dict, tolerance: float) -> None:
    """Norm of the difference over that of what is expected, of every array of a tree."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected)):
        assert np.shape(a) == np.shape(b), jax.tree_util.keystr(path)
        error = np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
        assert error < tolerance, f"{jax.tree_util.keystr(path)}: relative error {error:.2g}"


def recorded() -> dict[str, Weights]:
    """The golden by its parts: `weight`, `input`, `output`, `input_gradient` and `weight_gradient`."""
    parts: dict[str, Weights] = {}
    for key, value in load_file(GOLDEN).items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = value.astype(np.float32) if value.dtype == np.float16 else value
    return parts


def _linears(weights: Weights, prefix: str, names: dict[str, tuple[str, ...]]) -> dict:
    kernels = {ours: [weights[f"{prefix}{name}.weight"].T for name in theirs] for ours, theirs in names.items()}
    return {ours: {"kernel": np.concatenate(parts, axis=1)} for ours, parts in kernels.items()}


def _linear(weights: Weights, name: str) -> dict:
    return _linears(weights, "", {name: (name,)})[name]


def _norms(weights: Weights, prefix: str, query: str, key: str) -> dict:
    scale = lambda name: {"scale": weights[f"{prefix}attn.{name}.weight"]}
    return {"query_norm": scale(query), "key_norm": scale(key)}
