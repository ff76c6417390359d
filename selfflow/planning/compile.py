"""The training step of an experiment, compiled ahead of time for a slice of TPUs; needs no TPU."""

import os
import re
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from selfflow.config.setup import FlowSetup
from selfflow.errors import UserError
from selfflow.planning.chips import chip_of, topologies_of
from selfflow.training.sharding import batch_sharding, device_bytes, shardings_of

# libtpu searches for a local TPU, waits, warns, and locks it for one process; all of these are disabled here.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Compiled:
    """A step that fits.

    Attributes:
      text: HLO of the step.
      temporary_bytes: temporary bytes per device, activations included: everything except the step's arguments and
        results.
      program_bytes: size of the program's code.
      seconds: duration of tracing and compilation.
    """

    text: str
    temporary_bytes: int
    program_bytes: int
    seconds: float


@dataclass(frozen=True)
class Refused:
    """A step that exceeds the memory of a device.

    Attributes:
      used_bytes: bytes that it needs.
      limit_bytes: memory available to the compiler.
      seconds: duration of tracing and compilation.
    """

    used_bytes: float
    limit_bytes: float
    seconds: float


def slice_devices(topology: str, slices: int = 1) -> list[Any]:
    """Descriptions of the devices of one or more slices; the devices need not exist.

    Args:
      topology: chip and shape, such as "v5e:16x16".
      slices: number of equal slices, connected by the data-centre network.

    Raises:
      UserError: if libtpu is not installed, or there is no such topology.
    """
    chip_of(topology)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import libtpu  # noqa: F401  # JAX's own error does not name the package
    except ImportError as error:
        raise UserError(
            "plan compiles with libtpu, which is not installed and needs no TPU: pip install 'selfflow[tpu]'"
        ) from error
    from jax.experimental import topologies

    kind = topology.partition(":")[0]
    # The two cores of a v4 chip form one device, as on a Cloud TPU.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}
    if slices > 1:
        options["num_slices"] = slices
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].partition(": ")[2] or str(error)
        raise UserError(
            f"topology {topology!r}: {reason.strip('. ')}; give one of {', '.join(topologies_of(kind))}"
        ) from error


def compile_step(setup: FlowSetup, name: str, mesh: Mesh) -> Compiled | Refused:
    """Compiles the update on a component of the mixture, as a run does: placed, sharded, its state donated.

    Args:
      setup: setup of the experiment.
      name: the component.
      mesh: mesh of devices that need not exist.
    """
    start_time = time.perf_counter()
    state, batch = setup.abstract_state(mesh), abstract_batch(setup, name, mesh)
    step = jax.jit(setup.step(), donate_argnums=0, out_shardings=(shardings_of(state), None))
    with jax.set_mesh(mesh):
        lowered = step.trace(state, batch).lower(lowering_platforms=(mesh.devices.flat[0].platform,))
        try:
            program = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            return _refusal(error, bytes_on_device((state, batch)), time.perf_counter() - start_time)
    memory = program.memory_analysis()
    # Donated arguments and the results that reuse their memory count once, among the arguments.
    return Compiled(
        program.as_text(),
        int(memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes),
        int(memory.generated_code_size_in_bytes),
        time.perf_counter() - start_time,
    )


def bytes_on_device(tree: Any) -> int:
    """Bytes on one device of a tree of arrays that have shardings."""
    return sum(device_bytes(x, x.sharding) for x in jax.tree.leaves(tree))


# Forms of the out-of-memory errors of the TPU compiler, each with the required and the available size.
_SIZE = r"([\d.]+)([KMGT]?)"
_REFUSALS = (
    rf"Used {_SIZE} of {_SIZE} hbm",
    rf"HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)",
    rf"Ran out of memory.* {_SIZE} .*(?:of|HBM \() ?{_SIZE}",
)


def _refusal(error: jax.errors.JaxRuntimeError, arguments: int, seconds: float) -> Refused:
    """Parses the compiler's out-of-memory error; any other error is raised again."""
    for form in _REFUSALS:
        match = re.search(form, str(error))
        if match is not None:
            used, limit = _bytes(match[1], match[2]), _bytes(match[3], match[4])
            # One of the messages counts the temporaries alone.
            return Refused(used + arguments * ("temporaries" in form), limit, seconds)
    raise error


def _bytes(number: str, unit: str) -> float:
    return float(number) * 2 ** (10 * " KMGT".index(unit or " "))


def coordinates(mesh: Mesh) -> np.ndarray:
    """Torus coordinates of the devices of a mesh's first slice, in the order of the program [devices, axes]."""
    # Devices of a single slice have no index.
    first = getattr(mesh.devices.flat[0], "slice_index", None)
    return np.array([d.coords for d in mesh.devices.flat if getattr(d, "slice_index", None) == first])


def abstract_batch(setup: FlowSetup, name: str, mesh: Mesh) -> dict[str, Any]:
    """Shapes, types and shardings of a batch of a component on a mesh."""
    sharding = batch_sharding(mesh)

    def sharded(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(sharded, batch_shapes(setup, name))


def batch_shapes(setup: FlowSetup, name: str) -> dict[str, Any]:
    """Shapes and types of a batch of a component, as `BatchSource` yields them."""
    experiment, streams = setup.experiment, setup.modalities[name]
    size = experiment.mixture[name].batch_size

    def shaped(dtype: type, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *shape), np.dtype(dtype))

    batch: dict[str, Any] = {
        "latents": {m: shaped(np.float16, *x.latent) for m, x in streams.items()},
        "weight": shaped(np.float32),
        "label": shaped(np.int32),
    }
    if experiment.text:
        tokens = experiment.text.tokens
        batch["caption"] = shaped(np.float16, tokens, experiment.model.text), shaped(bool, tokens)
    encoders = experiment.alignment.target_encoders
    features = {}
    for m, stream in streams.items():
        if m in encoders:
            features[m] = shaped(np.float16, stream.tokens, encoders[m].width)
    if features:
        batch["features"] = features
    return batch
