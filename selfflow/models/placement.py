"""What the current mesh of devices is, and where activations live on it: samples over `data` and `fsdp`, and on demand
tokens over `tensor`."""

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
    """ "cpu", "gpu" or "tpu": that of the devices of the current mesh, or of the default backend where none is set.

    The devices of a mesh need not be those of this host: a program for a TPU pod can be compiled without one.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """`x` with its leading axes split over the given mesh axes; as it is where no mesh is set.

    The compiler would find a placement by itself, and in long programs not always the intended one. Sizes need not
    divide: the last devices then hold less.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))
