"""Attention and its kernels: every block of every model calls `attention`.

All kernels compute softmax(q k^T / sqrt(H)) v over the visible keys, with the softmax in float32 or wider; the hardware
determines which kernel is used.
"""

from functools import partial
from typing import Callable, Literal, get_args

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from selfflow.errors import UserError
from selfflow.models.placement import BATCH_AXES, platform

Implementation = Literal["auto", "xla", "cudnn", "splash"]

_HALF = (jnp.bfloat16, jnp.float16)


def attention(
    q_BNAH: Float[Array, "B N A H"],
    k_BMAH: Float[Array, "B M A H"],
    v_BMAH: Float[Array, "B M A H"],
    seen_BM: Bool[Array, "B M"] | None = None,
    implementation: Implementation = "xla",
    interpret: bool = False,
) -> Float[Array, "B N D"]:
    """softmax(q k^T / sqrt(H)) v for all A heads, concatenated: D = A H.

    Every query attends to all visible keys, even if its own token is invisible, and N may differ from M. Finite
    invisible keys and values do not affect the result and receive no gradient. A sample should have at least one
    visible key; without visible keys, its results are finite and meaningless.

    The implementations agree up to rounding:

    - `xla` runs everywhere and holds all B A N M scores in memory.
    - `cudnn` is cuDNN's flash attention for NVIDIA GPUs, in bfloat16 or float16.
    - `splash` is Pallas' splash attention for TPUs. In bfloat16 it rounds q / sqrt(H), which `xla` does not.
    - `auto` selects `implementation_for` the devices of the current mesh, or the default backend without a mesh. Name
      the implementation to lower for another platform.

    Neither kernel can be partitioned by the compiler. Under `jax.set_mesh` both run per device: the batch is split over
    the axes `data` and `fsdp`, heads over `tensor`, if the mesh has these axes.

    Args:
      q_BNAH, k_BMAH, v_BMAH: queries, keys and values, of one type.
      seen_BM: visible keys; None for all.
      implementation: the kernel.
      interpret: run splash's kernel in Pallas' interpreter, which is slow but works on any platform, for tests.
        Otherwise splash compiles only for TPUs.

    Raises:
      UserError: if cuDNN does not support the inputs, or the mesh does not divide the batch or the heads.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(f"attention is {implementation!r}, expected one of {', '.join(get_args(Implementation))}")
    if implementation == "auto":
        implementation = implementation_for(platform(), q_BNAH.dtype)
    inputs = (q_BNAH, k_BMAH, v_BMAH) if seen_BM is None else (q_BNAH, k_BMAH, v_BMAH, seen_BM)
    if implementation == "xla":
        out_BNAH = _xla(*inputs)
    elif implementation == "cudnn":
        out_BNAH = _per_device(_cudnn, implementation)(*inputs)
    else:
        out_BNAH = _per_device(partial(_splash, interpret=interpret), implementation)(*inputs)
    return out_BNAH.reshape(*out_BNAH.shape[:2], -1)


def attention_weights(
    q_BNAH: Float[Array, "B N A H"],
    k_BMAH: Float[Array, "B M A H"],
    seen_BM: Bool[Array, "B M"] | None = None,
) -> Float[Array, "B A N M"]:
    """softmax(q k^T / sqrt(H)) over the visible keys, float32: the weights of the values in `attention`.

    For analysis: it holds all B A N M weights in memory for every implementation of attention.
    """
    score_BANM = jnp.einsum("bnah,bmah->banm", q_BNAH.astype(jnp.float32), k_BMAH.astype(jnp.float32))
    where = None if seen_BM is None else seen_BM[:, None, None, :]
    return jax.nn.softmax(score_BANM * q_BNAH.shape[-1] ** -0.5, axis=-1, where=where)


def implementation_for(platform: str, dtype) -> Implementation:
    """Returns the implementation that `auto` selects on a platform ("cpu", "gpu" or "tpu") for a dtype."""
    if platform == "tpu":
        return "splash"
    return "cudnn" if platform == "gpu" and jnp.dtype(dtype) in _HALF else "xla"


def _per_device(kernel: Callable, name: Implementation) -> Callable:
    """Maps `kernel(q, k, v[, seen])` over the samples and heads of each device; returns `kernel` if no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel
    batch = tuple(axis for axis in BATCH_AXES if axis in mesh.shape)
    heads = tuple(axis for axis in ("tensor",) if axis in mesh.shape)

    def sharded(q_BNAH: jax.Array, *others: jax.Array) -> jax.Array:
        for what, size, axes in (("a batch", q_BNAH.shape[0], batch), ("model.heads", q_BNAH.shape[2], heads)):
            parts = 1
            for axis in axes:
                parts *= mesh.shape[axis]
            if size % parts:
                raise UserError(
                    f"model.execution.attention {name!r}: {what} of {size} does not divide by {parts}, the mesh's "
                    f"{' x '.join(axes)}; change one of them, or set it to 'xla'"
                )
        spec = PartitionSpec(batch, None, heads, None)
        specs = (spec, spec, spec, PartitionSpec(batch, None))[: 1 + len(others)]
        # The kernels do not declare the mesh axes over which their outputs vary, which the check needs.
        return jax.shard_map(kernel, in_specs=specs, out_specs=spec, check_vma=False)(q_BNAH, *others)

    return sharded


def _xla(q_BNAH: jax.Array, k_BMAH: jax.Array, v_BMAH: jax.Array, seen_BM: jax.Array | None = None) -> jax.Array:
    seen_B11M = None if seen_BM is None else seen_BM[:, None, None, :]
    if q_BNAH.dtype in _HALF:  # jax.nn computes products in this dtype in the backward pass, too
        return jax.nn.dot_product_attention(q_BNAH, k_BMAH, v_BMAH, mask=seen_B11M, implementation="xla")
    score_BANM = jnp.einsum("bnah,bmah->banm", q_BNAH, k_BMAH)
    if seen_B11M is not None:
        score_BANM = jnp.where(seen_B11M, score_BANM, jnp.finfo(score_BANM.dtype).min / 2)
    largest_BAN1 = jax.lax.stop_gradient(score_BANM.max(axis=-1, keepdims=True))
    weight_BANM = jnp.exp((score_BANM - largest_BAN1) * q_BNAH.shape[-1] ** -0.5)
    # Dividing by the sum after the product with the values saves one pass over all scores, forward and backward.
    total_BNA1 = weight_BANM.sum(axis=-1).swapaxes(1, 2)[..., None]
    return jnp.einsum("banm,bmah->bnah", weight_BANM, v_BMAH) / total_BNA1


def _cudnn(q_BNAH: jax.Array, k_BMAH: jax.Array, v_BMAH: jax.Array, seen_BM: jax.Array | None = None) -> jax.Array:
    if q_BNAH.dtype not in _HALF:
        raise UserError(
            f"model.execution.attention 'cudnn' computes in bfloat16, and model.dtype is {q_BNAH.dtype}: "
            "set model.dtype to 'bfloat16' or model.execution.attention to 'xla'"
        )
    batch, keys, _, size = k_BMAH.shape
    # Pass lengths even if all keys are visible: without them the backward pass of several versions of cuDNN gives NaN
    # for sequences that are not multiples of its tiles (github.com/NVIDIA/cudnn-frontend, issues 160 and 1072).
    seen_B = jnp.full(batch, keys, jnp.int32)
    if seen_BM is not None:
        # cuDNN implements a mask as a bias of every score, and computes the bias's gradient. The order of keys does not
        # matter: with the visible keys first, their number is enough.
        reorder = jax.vmap(lambda x, order: x.at[order].get(unique_indices=True, mode="promise_in_bounds"))
        order_BM = jnp.argsort(~seen_BM, axis=1)
        k_BMAH, v_BMAH = reorder(k_BMAH, order_BM), reorder(v_BMAH, order_BM)
        # Without any key, versions before 9.25 return NaN (issue 943 there).
        seen_B = jnp.maximum(seen_BM.sum(axis=1, dtype=jnp.int32), 1)

    def pad(x: jax.Array) -> jax.Array:
        # cuDNN needs even numbers of queries and keys, and heads of a multiple of 8.
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, -size % 8)))

    try:
        out_BNAH = jax.nn.dot_product_attention(
            pad(q_BNAH),
            pad(k_BMAH),
            pad(v_BMAH),
            scale=size**-0.5,
            key_value_seq_lengths=seen_B,
            implementation="cudnn",
        )
    except (NotImplementedError, RuntimeError) as error:  # heads are too large, or cuDNN is missing
        raise UserError(f"model.execution.attention 'cudnn': {error} Set model.execution.attention to 'xla'") from error
    return out_BNAH[:, : q_BNAH.shape[1], :, :size]


def _splash(
    q_BNAH: jax.Array, k_BMAH: jax.Array, v_BMAH: jax.Array, seen_BM: jax.Array | None = None, *, interpret: bool
) -> jax.Array:
    queries, heads, size = q_BNAH.shape[1:]
    keys = k_BMAH.shape[1]
    block_q, block_k = _block(queries), _block(keys)
    padding_q, padding_k = -queries % block_q, -keys % block_k
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([splash_attention.FullMask((queries + padding_q, keys + padding_k))] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=block_q,
            block_kv=block_k,
            block_q_dkv=block_q,
            block_kv_dkv=block_k,
            block_q_dq=block_q,
            block_kv_dq=block_k,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    # In float32, since bfloat16 would round 1 / sqrt(H) itself and so change the temperature of all scores alike.
    q_BNAH = (q_BNAH.astype(jnp.float32) * size**-0.5).astype(q_BNAH.dtype)

    def heads_first(x: jax.Array, padding: int) -> jax.Array:
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))

    qkv = heads_first(q_BNAH, padding_q), heads_first(k_BMAH, padding_k), heads_first(v_BMAH, padding_k)
    if seen_BM is None and not padding_k:
        out_BANH = jax.vmap(kernel)(*qkv)
    else:
        # Tokens attend within their segment: all queries and the visible keys are in segment 1, other keys in 0.
        seen_BM = jnp.ones(k_BMAH.shape[:2], bool) if seen_BM is None else seen_BM
        key_segment_BM = jnp.pad(seen_BM.astype(jnp.int32), ((0, 0), (0, padding_k)))
        segments = splash_attention.SegmentIds(jnp.ones(queries + padding_q, jnp.int32), key_segment_BM)
        out_BANH = jax.vmap(kernel, in_axes=(0, 0, 0, splash_attention.SegmentIds(None, 0)))(*qkv, segments)
    return out_BANH[:, :, :queries].swapaxes(1, 2)


def _block(length: int) -> int:
    """Returns the largest block of 128 to 512 tokens that pads to at most 1.25 times the length with blocks of 128.

    The kernel takes multiples of 128, the lanes of a TPU. Each block has a fixed cost, so larger blocks justify some
    padding (MaxText takes 512 throughout); the factor is a guess, not a measurement.
    """

    def padded(block: int) -> int:
        return length + -length % block

    return max(block for block in (128, 256, 384, 512) if padded(block) <= 1.25 * padded(128))
