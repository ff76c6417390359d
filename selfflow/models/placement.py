"""The placement of activations on the current mesh: samples over `data` and `fsdp`, and optionally tokens over
`tensor`."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Mesh axes that the samples of a batch are split over, outermost first.
BATCH_AXES = ("data", "fsdp")


def split_samples(x: np.ndarray, mesh: Mesh) -> jax.Array:
    """Splits an array [B, ...] that is equal in every process over `BATCH_AXES`, whose size must divide B."""
    x = np.asarray(x)
    where = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])


def platform() -> str:
    """Returns the platform of the current mesh, or of the default backend without one: "cpu", "gpu" or "tpu".

    The devices of a mesh need not be those of this host: a program for a TPU pod can be compiled on any host.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Constrains the leading axes of `x` to mesh axes; returns `x` unchanged if no mesh is set.

    Without the constraint the compiler chooses a placement, which in long programs may differ from the intended one.
    The mesh need not divide the sizes; the last devices then hold less.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))
