"""Whether features have collapsed: their effective rank."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def effective_rank(features: Float[Array, "M D"]) -> Float[Array, ""]:
    """exp(entropy of the normalised singular values), RankMe (arXiv 2210.02885); from 1 to D."""
    x = features.astype(jnp.float32)
    # R of x = QR has the singular values of x and is D x D, where M is many tokens. Not the Gram matrix: the roots
    # of its rounding errors look like directions.
    singular = jnp.linalg.svd(jnp.linalg.qr(x, mode="r"), compute_uv=False)
    p = singular / jnp.maximum(singular.sum(), 1e-12) + 1e-7
    return jnp.exp(-jnp.sum(p * jnp.log(p)))
