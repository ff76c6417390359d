"""Attention: one function, whose implementation follows the hardware."""

from typing import Literal

import jax
from jaxtyping import Array, Bool, Float

Implementation = Literal["auto", "xla", "cudnn", "splash"]


def attention(
    q: Float[Array, "B N A H"],
    k: Float[Array, "B M A H"],
    v: Float[Array, "B M A H"],
    seen_BM: Bool[Array, "B M"] | None = None,
    implementation: Implementation = "auto",
) -> Float[Array, "B N D"]:
    """softmax(q k^T / sqrt(H)) v for all heads, which are joined again; only tokens in `seen_BM` are attended to."""
    mask = None if seen_BM is None else seen_BM[:, None, None, :]
    out = jax.nn.dot_product_attention(q, k, v, mask=mask)
    return out.reshape(*out.shape[:2], -1)
