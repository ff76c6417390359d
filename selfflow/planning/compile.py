"""Ahead-of-time compilation of the training step for a slice of TPUs, without a TPU."""

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

# Keeps libtpu from searching for a local TPU, waiting for it, and locking it for one process, and from its warnings.
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
    """Compiled step that fits into memory.

    Attributes:
      text: HLO of the step.
      temporary_bytes: bytes per device in addition to the step's arguments, including activations.
      program_bytes: size of the program's code.
      seconds: duration of tracing and compilation.
    """

    text: str
    temporary_bytes: int
    program_bytes: int
    seconds: float


@dataclass(frozen=True)
class Refused:
    """Step that the compiler refused because it exceeds the memory of a device.

    Attributes:
      used_bytes: bytes that the step requires.
      limit_bytes: bytes available to the compiler.
      seconds: duration of tracing and compilation.
    """

    used_bytes: float
    limit_bytes: float
    seconds: float


def slice_devices(topology: str, slices: int = 1) -> list[Any]:
    """Returns descriptions of the devices of one or more slices, which need not exist.

    Args:
      topology: chip and shape, such as "v5e:16x16".
      slices: number of equal slices, connected by the data-centre network.

    Raises:
      UserError: if libtpu is not installed, or the topology does not exist.
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
    """Compiles the update on a component of the mixture in the same way as a run, sharded and with donated state.

    Args:
      setup: setup of the experiment.
      name: name of the component.
      mesh: mesh of devices, which need not exist.
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
    # Results that reuse the memory of donated arguments are counted as arguments.
    return Compiled(
        program.as_text(),
        int(memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes),
        int(memory.generated_code_size_in_bytes),
        time.perf_counter() - start_time,
    )


def bytes_on_device(tree: Any) -> int:
    """Returns the bytes of a tree of sharded arrays on one device."""
    return sum(device_bytes(x, x.sharding) for x in jax.tree.leaves(tree))


# Patterns of out-of-memory errors of the TPU compiler, each with the required and the available size.
_SIZE = r"([\d.]+)([KMGT]?)"
_REFUSALS = (
    rf"Used {_SIZE} of {_SIZE} hbm",
    rf"HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)",
    rf"Ran out of memory.* {_SIZE} .*(?:of|HBM \() ?{_SIZE}",
)


def _refusal(error: jax.errors.JaxRuntimeError, arguments: int, seconds: float) -> Refused:
    """Parses an out-of-memory error of the compiler; re-raises other errors."""
    for form in _REFUSALS:
        match = re.search(form, str(error))
        if match is not None:
            used, limit = _bytes(match[1], match[2]), _bytes(match[3], match[4])
            # One of the messages has only the size of the temporaries.
            return Refused(used + arguments * ("temporaries" in form), limit, seconds)
    raise error


def _bytes(number: str, unit: str) -> float:
    return float(number) * 2 ** (10 * " KMGT".index(unit or " "))


def coordinates(mesh: Mesh) -> np.ndarray:
    """Returns torus coordinates [devices, axes] of the devices in the first slice of a mesh, in program order."""
    # Devices of a single slice have no slice index.
    first = getattr(mesh.devices.flat[0], "slice_index", None)
    return np.array([d.coords for d in mesh.devices.flat if getattr(d, "slice_index", None) == first])


def abstract_batch(setup: FlowSetup, name: str, mesh: Mesh) -> dict[str, Any]:
    """Returns shapes, dtypes and shardings of a batch of a component on a mesh."""
    sharding = batch_sharding(mesh)

    def sharded(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(sharded, batch_shapes(setup, name))


def batch_shapes(setup: FlowSetup, name: str) -> dict[str, Any]:
    """Returns shapes and dtypes of a batch of a component, as yielded by `BatchSource`."""
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
