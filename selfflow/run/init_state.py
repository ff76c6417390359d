"""The state that training starts from: fresh weights, or those of another run."""

import jax
from jax.sharding import Mesh

from selfflow.config.setup import Setup
from selfflow.errors import UserError
from selfflow.run.run import Run
from selfflow.training.state import State, parameter_name
from selfflow.training.step import key_of


def initial_state(setup: Setup, mesh: Mesh | None = None) -> State:
    """The state at step 0, from `seed.init`, or from the weights of another run if `init_from` names one.

    Args:
      setup: of the experiment.
      mesh: devices of the state; by default those of `experiment.devices`.

    Raises:
      UserError: if the other run has no such step, or a parameter of it another shape.
    """
    experiment = setup.experiment
    mesh = mesh or experiment.devices.mesh()

    def init(key: jax.Array) -> State:
        return setup.init(jax.random.wrap_key_data(key))

    # The key is an argument, so that all seeds share one program, and is passed as numbers, because a key array would
    # be on a device of this process alone.
    state = jax.jit(init, out_shardings=setup.shardings(mesh))(key_of(experiment.seed.init))
    return _start_from(experiment.init_from, state, mesh) if experiment.init_from else state


def _start_from(source: str, state: State, mesh: Mesh) -> State:
    """Copies parameters and frozen trees of RUN[:STEP]; parameters that the run lacks stay fresh and are printed."""
    run, step = parse_run_step(source)
    weights = run.weights(step, mesh)
    fresh = []

    def merge(new_tree: dict, old_tree: dict) -> dict:
        old_leaves = dict(jax.tree_util.tree_leaves_with_path(old_tree))

        def merge_leaf(path: tuple, new: jax.Array) -> jax.Array:
            old, name = old_leaves.get(path), parameter_name(path)
            if old is None:
                fresh.append(name)
                return new
            if old.shape != new.shape:
                raise UserError(f"init_from {source}: {name} has shape {old.shape} there and {new.shape} here")
            return jax.device_put(old, new.sharding)

        return jax.tree_util.tree_map_with_path(merge_leaf, new_tree)

    params, frozen = merge(state.params, weights.params), merge(state.frozen, weights.frozen)
    if fresh:
        print(f"init_from {source}: new parameters, not in that run: {', '.join(sorted(fresh))}")
    return state._replace(params=params, frozen=frozen)


def parse_run_step(source: str) -> tuple[Run, int | None]:
    """The run of RUN or RUN:STEP, and the step, if one is named."""
    path, _, step = source.rpartition(":")
    if not path or "/" in step:  # the colon is that of a URL, or there is none
        path, step = source, ""
    if step and not step.isdigit():
        raise UserError(f"init_from is {source!r}: write RUN or RUN:STEP")
    return Run(path), int(step) if step else None
