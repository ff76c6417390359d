"""What training begins with: fresh weights, or those of another run."""

import jax
from jax.sharding import Mesh

from selfflow.config.setup import Setup
from selfflow.errors import UserError
from selfflow.run.run import Run
from selfflow.training.state import State, parameter_name
from selfflow.training.step import key_of


def initial_state(setup: Setup, mesh: Mesh | None = None) -> State:
    """The state at step 0, from `seed.init`, or from the weights of another run where `init_from` names one.

    Args:
      setup: of the experiment.
      mesh: where to; by default as `experiment.devices` says.
    """
    experiment = setup.experiment
    mesh = mesh or experiment.devices.mesh()

    def init(key: jax.Array) -> State:
        return setup.init(jax.random.wrap_key_data(key))

    # Numbers, not a key: that would lie on a device of this process alone. An argument: one program for all seeds.
    state = jax.jit(init, out_shardings=setup.shardings(mesh))(key_of(experiment.seed.init))
    return _start_from(experiment.init_from, state, mesh) if experiment.init_from else state


def _start_from(source: str, state: State, mesh: Mesh) -> State:
    """Copies parameters and EMA from RUN[:STEP]; parameters that the run does not have stay fresh and are listed."""
    run, step = parse_run_step(source)
    other = run.weights(step, mesh)
    fresh = []

    def take(name, new, old):
        if old is None:
            fresh.append(name)
            return new
        if old.shape != new.shape:
            raise UserError(f"init_from {source}: {name} has shape {old.shape} there and {new.shape} here")
        return jax.device_put(old, new.sharding)

    def merged(new_tree, old_tree, prefix):
        old = dict(jax.tree_util.tree_leaves_with_path(old_tree))
        return jax.tree_util.tree_map_with_path(
            lambda at, new: take(prefix + parameter_name(at), new, old.get(at)),
            new_tree,
        )

    params = merged(state.params, other.params, "")
    frozen = merged(state.frozen, other.frozen, "")
    if fresh:
        print(f"init_from {source}: new parameters, not in that run: {', '.join(sorted(fresh))}")
    return state._replace(params=params, frozen=frozen)


def parse_run_step(source: str) -> tuple[Run, int | None]:
    """The run, and the step if one is named, that RUN or RUN:STEP means."""
    path, _, step = source.rpartition(":")
    if not path or "/" in step:  # the colon of a URL, or none
        path, step = source, ""
    if step and not step.isdigit():
        raise UserError(f"init_from is {source!r}: write RUN or RUN:STEP")
    return Run(path), int(step) if step else None
