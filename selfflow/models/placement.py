"""Where activations live on a mesh of devices: samples over `data` and `fsdp`, and on demand tokens over `tensor`."""

import jax
from jax.sharding import PartitionSpec

# Mesh axes that the samples of a batch are split over, outermost first.
BATCH_AXES = ("data", "fsdp")


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """`x` with its leading axes split over the given mesh axes; as it is where no mesh is set.

    The compiler would find a placement by itself, and in long programs not always the intended one. Sizes need not
    divide: the last devices then hold less.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))
