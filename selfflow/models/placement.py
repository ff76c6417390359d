"""The placement of activations on the current mesh: samples over `data` and `fsdp`, and optionally tokens over
`tensor`."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Mesh axes that the samples of a batch are split over, outermost first.
BATCH_AXES = ("data", "fsdp")


def split_samples(x: np.ndarray, mesh: Mesh) -> jax.Array:
    """An array of samples [B, ...], alike in every process, split over `BATCH_AXES`, whose size must divide B."""
    x = np.asarray(x)
    where = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])


def platform() -> str:
    """The platform of the current mesh's devices, or of the default backend without a mesh: "cpu", "gpu" or "tpu".

    The devices of a mesh need not be those of this host: a program for a TPU pod can be compiled without one.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """`x` with its leading axes split over mesh axes; unchanged where no mesh is set.

    Without the constraint the compiler chooses a placement, which in long programs may differ from the intended one.
    Sizes need not divide: the last devices then hold less.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))
