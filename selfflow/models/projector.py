"""The student's head: its features on the way to the teacher's."""

import jax
from flax import nnx
from jaxtyping import Array, Float


class Projector(nnx.Module):
    """Linear(D, 2D) - SiLU - Linear(2D, D), the form of the released weights (arXiv 2603.06507)."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        make = lambda inputs, outputs, axes: nnx.Linear(
            inputs,
            outputs,
            rngs=rngs,
            kernel_init=nnx.initializers.xavier_uniform(),
            kernel_metadata={"out_sharding": axes},
            bias_metadata={"out_sharding": (axes[1],)},
        )
        self.linear1 = make(width, 2 * width, ("embed", "mlp"))
        self.linear2 = make(2 * width, width, ("mlp", "embed"))

    def __call__(self, x_BND: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        flat = x_BND.reshape(-1, x_BND.shape[-1])
        return self.linear2(jax.nn.silu(self.linear1(flat))).reshape(x_BND.shape)
