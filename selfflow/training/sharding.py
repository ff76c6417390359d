"""Sharding: the mesh of devices, and rules that map logical axes of arrays to axes of the mesh.

Trained parameters and frozen trees are sharded by their logical axes, and the optimizer's moments in the same way as
the parameters (ZeRO-3, arXiv 1910.02054, over `fsdp`). Batches are sharded by samples over `data` and `fsdp`. The
shardings of all other arrays are chosen by the compiler.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from selfflow.errors import UserError
from selfflow.models.placement import BATCH_AXES
from selfflow.training.objective import Axes, Objective
from selfflow.training.state import State, flat_by_name, parameter_name

# Names of the logical axes of parameters.
LOGICAL_AXES = ("layers", "embed", "heads", "mlp")


@dataclass(frozen=True)
class Devices:
    """Distribution of a run over devices; may change when the run is resumed."""

    data: int = -1
    """Size of the data axis: copies of the parameters, each with a part of the batch; -1 for all remaining devices."""
    fsdp: int = 1
    """Size of the fsdp axis: devices over which parameters, EMA, moments and samples are split; -1 for the rest."""
    tensor: int = 1
    """Size of the tensor axis: devices over which heads and hidden channels are split; -1 for the rest."""
    slices: int = 1
    """Number of TPU slices, connected by the data-centre network (DCN). Slices split the data axis: each holds an equal
    number of copies of the parameters, so that only gradients are exchanged between slices."""
    rules: dict[str, str] = field(default_factory=lambda: {"embed": "fsdp", "heads": "tensor", "mlp": "tensor"})
    """Mesh axis of each logical axis of parameters; other axes are not split."""

    def __post_init__(self):
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            if size != -1 and size < 1:
                raise UserError(f"devices.{name} is {size}: give 1 or more, or -1 for the rest")
        if list(sizes.values()).count(-1) > 1:
            raise UserError("devices: only one of data, fsdp and tensor can be -1, the rest")
        if self.slices < 1:
            raise UserError(f"devices.slices is {self.slices}: give 1 or more")
        for logical, axis in self.rules.items():
            if axis not in sizes:
                raise UserError(f"devices.rules.{logical} is {axis!r}, expected one of {', '.join(sizes)}")
            if logical not in LOGICAL_AXES:
                raise UserError(f"devices.rules has {logical!r}: parameters have the axes {', '.join(LOGICAL_AXES)}")

    def shape(self, count: int) -> dict[str, int]:
        """Returns the sizes of the mesh axes on `count` devices.

        Raises:
          UserError: if the product of the sizes is not `count`.
        """
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        fixed = math.prod(size for size in sizes.values() if size > 0)
        product = " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 0)
        if -1 not in sizes.values() and fixed != count:
            raise UserError(f"devices: {product} does not make {count} devices; set one of them to -1 for the rest")
        if count % fixed:
            raise UserError(f"devices: {product} does not divide the number of devices, {count}: change one of them")
        sizes = {name: size if size > 0 else count // fixed for name, size in sizes.items()}
        if sizes["data"] % self.slices:
            raise UserError(
                f"devices.slices {self.slices} does not divide devices.data, which is {sizes['data']} of {count} "
                "devices: change one of them"
            )
        return sizes

    def mesh(self, devices: list[Any] | None = None) -> Mesh:
        """Returns the mesh over devices, by default all of them; slices are consecutive along the axis `data`.

        Devices without a slice index, such as CPUs, are divided into equal slices in their order.

        Raises:
          UserError: if the sizes do not match the number of devices, or the devices have another number of slices.
        """
        devices = jax.devices() if devices is None else devices
        sizes = self.shape(len(devices))
        within = (sizes["data"] // self.slices, sizes["fsdp"], sizes["tensor"])
        by_index: dict[int, list[Any]] = {}
        for device in devices:
            by_index.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
        if devices[0].platform != "tpu" and (len(by_index) == 1 or self.slices == 1):
            slices = np.split(np.array(devices, object), self.slices)
        else:
            slices = [by_index[index] for index in sorted(by_index)]
        counts = [len(members) for members in slices]
        if len(slices) != self.slices or len(set(counts)) > 1:
            raise UserError(f"devices.slices is {self.slices}, but the devices are in slices of {counts}")
        meshes = []
        for members in slices:
            meshes.append(mesh_utils.create_device_mesh(within, list(members), allow_split_physical_axes=True))
        return Mesh(np.concatenate(meshes), tuple(sizes), axis_types=(AxisType.Auto,) * 3)

    def several(self) -> Mesh | None:
        """Returns the mesh over all devices; None if there is only one."""
        mesh = self.mesh()
        return mesh if mesh.size > 1 else None


def state_shardings(
    objective: Objective, optimizer: optax.GradientTransformation, state: State, devices: Devices, mesh: Mesh
) -> State:
    """Returns the sharding of every array of a state.

    Args:
      objective: objective, which defines the logical axes of parameters and frozen trees.
      optimizer: optimizer, whose moments are sharded in the same way as the parameters.
      state: state of arrays or of their shapes.
      devices: settings with the rules from logical to mesh axes.
      mesh: mesh of devices.

    Returns:
      A `State` of `NamedSharding`s.

    Raises:
      UserError: if the size of a parameter's axis is not divisible by the size of its mesh axis.
    """
    params = _tree_shardings(state.params, objective.logical_axes(), "", devices.rules, mesh)
    frozen_axes, frozen = objective.frozen_axes(), {}
    for name, tree in state.frozen.items():
        frozen[name] = _tree_shardings(tree, frozen_axes[name], f"{name}.", devices.rules, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    moments = optax.tree.map_params(
        optimizer, lambda _, sharding: sharding, state.optimizer, params, transform_non_params=lambda _: everywhere
    )
    return State(everywhere, params, frozen, moments)


def _tree_shardings(tree: Any, axes: Axes, prefix: str, rules: dict[str, str], mesh: Mesh) -> Any:
    """Returns the sharding of each parameter of a tree; `prefix` is prepended to names in errors."""

    def sharding(path: tuple, x: Any) -> NamedSharding:
        name = parameter_name(path)
        return NamedSharding(mesh, _spec(prefix + name, x.shape, axes[name], rules, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _spec(name: str, shape: tuple[int, ...], axes: tuple, rules: dict[str, str], mesh: Mesh) -> PartitionSpec:
    spec = []
    for size, axis in zip(shape, axes, strict=True):
        mesh_axis = rules.get(axis)
        if mesh_axis is not None and size % mesh.shape[mesh_axis]:
            raise UserError(
                f"{name} of shape {shape} cannot be split over {mesh.shape[mesh_axis]} devices of devices.{mesh_axis} "
                f"along its axis {axis}, which has {size}: change devices.{mesh_axis} or the model, or leave {axis} "
                "out of devices.rules"
            )
        # Mesh axes of one device are omitted, so that equivalent shardings compare as equal.
        spec.append(mesh_axis if mesh_axis is not None and mesh.shape[mesh_axis] > 1 else None)
    named = [mesh_axis for mesh_axis in spec if mesh_axis is not None]
    if len(set(named)) < len(named):
        raise UserError(f"devices.rules split {name} {axes} twice over the same mesh axis: change one of them")
    return PartitionSpec(*spec)


def shardings_of(state: State) -> State:
    """Returns the shardings of the arrays of a state."""
    return jax.tree.map(lambda x: x.sharding, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches: samples over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch(mesh: Mesh, size: int, where: str) -> None:
    """Raises `UserError` unless a batch of `size` samples can be split over the devices."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if size % parts:
        raise UserError(
            f"{where}: {size} samples at a time cannot be split over {parts} devices (devices.data x devices.fsdp): "
            "change batch_size, or give devices to devices.tensor"
        )


def local_rows(mesh: Mesh, size: int) -> np.ndarray:
    """Returns the sorted indices of the samples in a batch of `size` that the devices of this process hold.

    All processes together hold the whole batch; two processes hold the same samples if the `tensor` axis spans both.
    """
    slices = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[rows] for (rows,) in slices]))


def shard_batch(batch: Any, mesh: Mesh, size: int | None = None) -> Any:
    """Places a batch on the devices of a mesh, with samples sharded over `data` and `fsdp`.

    Args:
      batch: all samples, equal in every process; with `size`, only the samples of `local_rows`.
      mesh: mesh of devices.
      size: number of samples in the whole batch.
    """
    sharding = batch_sharding(mesh)
    rows = None if size is None else local_rows(mesh, size)

    def place(x: np.ndarray) -> jax.Array:
        if rows is None:
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        def local_part(index: tuple[slice, ...]) -> np.ndarray:
            return x[np.searchsorted(rows, np.arange(size)[index[0]])]

        return jax.make_array_from_callback((size, *x.shape[1:]), sharding, local_part)

    return jax.tree.map(place, batch)


def pad_batch(batch: Any, mesh: Mesh) -> Any:
    """Pads a batch to a multiple of the number of devices, by repetition of the last sample with weight 0."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    missing = -len(batch["weight"]) % parts
    more = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]), batch)
    more["weight"][len(batch["weight"]) :] = 0
    return more


def gather_to_one(tree: Any) -> Any:
    """Gathers the arrays of a tree on the first device of each process."""
    if jax.process_count() > 1:
        mesh = jax.tree.leaves(tree)[0].sharding.mesh
        tree = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
        tree = jax.tree.map(lambda x: x.addressable_data(0), tree)
    return jax.device_put(tree, jax.local_devices()[0])


def sharding_table(state: State, shardings: State, axes: dict[str, tuple]) -> str:
    """Formats a table with shape, logical axes, sharding and size per device of each parameter, and the total sizes."""
    rows = [("parameter", "shape", "logical axes", "sharding", "MB a device")]
    sharding_of = flat_by_name(shardings.params)
    for name, x in flat_by_name(state.params).items():
        sharding = sharding_of[name]
        cells = [", ".join(map(str, values)) for values in (x.shape, axes[name], sharding.spec)]
        rows.append((name, *cells, f"{device_bytes(x, sharding) / 1e6:.3f}"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        padded = map(str.ljust, row, widths)
        lines.append("  ".join(padded).rstrip())

    # Total sizes of parameters, frozen trees and optimizer.
    trees = [("parameters", state.params, shardings.params)]
    trees += [(f"frozen {name}", tree, shardings.frozen[name]) for name, tree in state.frozen.items()]
    trees.append(("optimizer", state.optimizer, shardings.optimizer))
    for name, tree, tree_shardings in trees:
        on_device = total = 0
        for x, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(tree_shardings), strict=True):
            on_device += device_bytes(x, sharding)
            total += x.size * x.dtype.itemsize
        lines.append(f"{name}: {on_device / 1e6:,.1f} MB a device of {total / 1e6:,.1f} MB")
    return "\n".join(lines)


def device_bytes(x: jax.ShapeDtypeStruct | jax.Array, sharding: NamedSharding) -> int:
    """Returns the bytes of an array on one device."""
    return math.prod(sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
