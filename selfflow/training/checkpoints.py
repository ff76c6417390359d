"""Checkpoints of a run: state and data position, written by Orbax in the background."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import optax

from selfflow.errors import UserError
from selfflow.training.state import State, by_name


class Checkpoints:
    """The checkpoints under a run folder; the newest two are kept.

    Args:
      folder: the run folder.
    """

    def __init__(self, folder: Path):
        import orbax.checkpoint as ocp  # a second; commands that only read metrics need not wait

        # Orbax logs each array's failure at length and then raises it, and half a checkpoint that a kill left behind
        # is a warning to it; here the error is told once, and the half is what resuming is for.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._ocp = ocp
        self.path = folder / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.path.resolve(), options=options, item_names=("state", "data"))

    def latest(self) -> int | None:
        """The newest step that was saved whole, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All saved steps."""
        return sorted(self._manager.all_steps())

    def save(self, state: State, step: int) -> None:
        """Starts saving; the data position of a run is its step."""
        ocp = self._ocp
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave({"position": step}))
        self._manager.save(step, args=args, force=True)

    def restore(self, abstract: State, step: int) -> State:
        """Reads a checkpoint into the shapes and shardings of `abstract`.

        Raises:
          UserError: if the checkpoint holds other parameters, or another step than it says.
        """
        ocp = self._ocp
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        with self._explained(step):
            restored = self._manager.restore(step, args=args)
        state, position = restored["state"], restored["data"]["position"]
        counts = [int(x) for x in jax.tree.leaves(state.optimizer) if x.ndim == 0]
        if int(state.step) != step or position != step or any(count != step for count in counts):
            raise UserError(
                f"{self.path / str(step)} holds step {int(state.step)}, data position {position} and optimizer "
                f"counts {counts}: it is damaged; remove it to go on from the one before"
            )
        return state

    def restore_weights(self, abstract: State, step: int) -> State:
        """Reads a checkpoint without the optimizer's state, which stays on disk; its place is `optax.EmptyState()`.

        Raises:
          UserError: as `restore`.
        """
        ocp = self._ocp
        wanted = {name: getattr(abstract, name) for name in ("step", "params", "frozen")}
        path = (self.path / str(step) / "state").resolve()
        with self._explained(step), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            # A partial restore passes over what either side lacks: that is compared here.
            stored = checkpointer.metadata(path).item_metadata.tree
            there, here = _shapes({name: stored.get(name) for name in wanted}), _shapes(wanted)
            for name in sorted(there | here):
                if there.get(name) != here.get(name):
                    raise ValueError(f"{name} has shape {there.get(name)} there and {here.get(name)} here")
            args = ocp.args.PyTreeRestore(
                wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
            )
            restored = checkpointer.restore(path, args=args)
        if int(restored["step"]) != step:
            raise UserError(f"{self.path / str(step)} holds step {int(restored['step'])}: it is damaged; remove it")
        return State(**restored, optimizer=optax.EmptyState())

    @contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise plain Exceptions of many kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"{self.path / str(step)} does not fit this experiment or is damaged ({reason}): "
                "use another --workdir, or remove that checkpoint to go on from the one before"
            ) from error

    def check(self) -> None:
        """Raises what went wrong with a save in the background, if anything did."""
        self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns once every started save is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and frees the manager's threads."""
        self._manager.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in by_name(tree).items()}
