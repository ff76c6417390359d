"""Initial state of training: random weights, or the weights of another run."""

import jax
from jax.sharding import Mesh

from selfflow.config.setup import Setup
from selfflow.errors import UserError
from selfflow.run.run import Run
from selfflow.training.objective import Tree
from selfflow.training.state import State, flat_by_name, init_frozen, parameter_name
from selfflow.training.step import key_of


def initial_state(setup: Setup, mesh: Mesh | None = None) -> State:
    """Returns the state at step 0, initialised from `seed.init` or with the weights of the run in `init_from`.

    Args:
      setup: setup of the experiment.
      mesh: devices of the state; by default the mesh of `experiment.devices`.

    Raises:
      UserError: if the other run has no such step, or one of its parameters has another shape.
    """
    experiment = setup.experiment
    mesh = mesh or experiment.devices.mesh()

    def init(key: jax.Array) -> State:
        return setup.init(jax.random.wrap_key_data(key))

    # The key is an argument, so that all seeds share one compiled program. It is passed as raw numbers, because a key
    # array would be placed on a device of only this process.
    state = jax.jit(init, out_shardings=setup.shardings(mesh))(key_of(experiment.seed.init))
    return _start_from(experiment.init_from, setup, state, mesh) if experiment.init_from else state


def _start_from(source: str, setup: Setup, state: State, mesh: Mesh) -> State:
    """Copies parameters and frozen trees of RUN[:STEP]; missing parameters stay random, and their names are printed.

    The objective creates missing frozen trees from the copied parameters, so that a reference that equals the initial
    student has the weights of the run.
    """
    run, step = parse_run_step(source)
    weights = run.weights(step, mesh)
    params, fresh = _copied(f"init_from {source}", weights.params, state.params)
    frozen = state.frozen
    if not frozen.keys() <= weights.frozen.keys():

        def remake(params: Tree, key: jax.Array) -> dict[str, Tree]:
            return init_frozen(setup.objective, params, jax.random.wrap_key_data(key))

        seed = key_of(setup.experiment.seed.init)
        frozen = jax.jit(remake, out_shardings=setup.shardings(mesh).frozen)(params, seed)
    for name in frozen.keys() & weights.frozen.keys():
        tree, fresh_in_tree = _copied(f"init_from {source}", weights.frozen[name], frozen[name], f"{name}.")
        frozen = frozen | {name: tree}
        fresh += fresh_in_tree
    if fresh:
        print(f"init_from {source}: new parameters, not in that run: {', '.join(sorted(fresh))}")
    return state._replace(params=params, frozen=frozen)


def frozen_of_runs(sources: dict[str, str], state: State, mesh: Mesh) -> State:
    """Returns the state with frozen trees replaced by the EMA of other runs; see `FlowObjective.frozen_from`.

    Args:
      sources: RUN or RUN:STEP for each frozen tree, by name.
      state: state at step 0.
      mesh: devices of the state.

    Raises:
      UserError: if a run has no such step, or its parameters differ from the tree in name or shape.
    """
    frozen = dict(state.frozen)
    for name, source in sources.items():
        run, step = parse_run_step(source, f"objective.{name}")
        ema = run.weights(step, mesh).frozen["ema"]
        different = sorted(flat_by_name(ema).keys() ^ flat_by_name(frozen[name]).keys())
        if different:
            raise UserError(
                f"objective.{name} is {source}: one of the networks has no {different[0]}; give a run of the same model"
            )
        frozen[name], _ = _copied(f"objective.{name} {source}", ema, frozen[name])
    return state._replace(frozen=frozen)


def _copied(where: str, source: Tree, tree: Tree, prefix: str = "") -> tuple[Tree, list[str]]:
    """Copies parameters from `source` to a tree; returns the tree and the names of parameters that `source` lacks.

    Args:
      where: field and run, for the error.
      source: parameters of another run.
      tree: parameters of this run.
      prefix: prefix of the names.

    Raises:
      UserError: if a parameter has another shape.
    """
    source_leaves, missing = dict(jax.tree_util.tree_leaves_with_path(source)), []

    def copy_leaf(path: tuple, new: jax.Array) -> jax.Array:
        old, name = source_leaves.get(path), prefix + parameter_name(path)
        if old is None:
            missing.append(name)
            return new
        if old.shape != new.shape:
            raise UserError(f"{where}: {name} has shape {old.shape} there and {new.shape} here")
        return jax.device_put(old, new.sharding)

    return jax.tree_util.tree_map_with_path(copy_leaf, tree), missing


def parse_run_step(source: str, field: str = "init_from") -> tuple[Run, int | None]:
    """Parses RUN or RUN:STEP; returns the run, and the step or None."""
    path, _, step = source.rpartition(":")
    if not path or "/" in step:  # there is no colon, or it is part of a URL
        path, step = source, ""
    if step and not step.isdigit():
        raise UserError(f"{field} is {source!r}: write RUN or RUN:STEP")
    return Run(path), int(step) if step else None
