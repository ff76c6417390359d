"""The student's projector: maps its features to the channels of the alignment target."""

import jax
from flax import nnx
from jaxtyping import Array, Float


class Projector(nnx.Module):
    """Linear(D, 2D) - SiLU - Linear(2D, outputs), the form of the released weights (arXiv 2603.06507).

    Args:
      width: D, channels of the features.
      depth: number of linear layers, at least 1; hidden layers have 2D channels.
      outputs: channels of the target; D by default.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs, depth: int = 2, outputs: int | None = None):
        sizes = [width, *[2 * width] * (depth - 1), outputs or width]
        names = ["embed", *["mlp"] * (depth - 1), "embed"]
        self.depth = depth
        for i in range(depth):
            # The mesh may not divide the channels of another network.
            output = None if i == depth - 1 and sizes[depth] != width else names[i + 1]
            # Two equal logical axes cannot be mapped to one mesh axis.
            axes = (names[i], output if output != names[i] else None)
            linear = nnx.Linear(
                sizes[i],
                sizes[i + 1],
                rngs=rngs,
                kernel_init=nnx.initializers.xavier_uniform(),
                kernel_metadata={"out_sharding": axes},
                bias_metadata={"out_sharding": (axes[1],)},
            )
            setattr(self, f"linear{i + 1}", linear)

    def __call__(self, x_BND: Float[Array, "B N D"]) -> Float[Array, "B N E"]:
        # Flatten tokens, as in `layers.Dense`.
        flat = x_BND.reshape(-1, x_BND.shape[-1])
        for i in range(1, self.depth + 1):
            flat = getattr(self, f"linear{i}")(flat if i == 1 else jax.nn.silu(flat))
        return flat.reshape(*x_BND.shape[:-1], -1)


class Projectors(nnx.Module):
    """A projector for each aligned modality, to the channels of that modality's target.

    Args:
      width: D, channels of the features.
      outputs: channels of the target, by modality.
      depth: number of linear layers of each projector.
    """

    def __init__(self, width: int, outputs: dict[str, int], *, rngs: nnx.Rngs, depth: int):
        self.modalities = tuple(sorted(outputs))
        for m in self.modalities:
            setattr(self, m, Projector(width, rngs=rngs, depth=depth, outputs=outputs[m]))

    def __call__(self, features: dict[str, Float[Array, "B N D"]]) -> dict[str, Float[Array, "B N E"]]:
        return {m: getattr(self, m)(x_BND) for m, x_BND in features.items() if m in self.modalities}
