"""Checkpoints of a run: state and data position, written by Orbax in the background."""

import logging
from pathlib import Path

import jax

from selfflow.errors import UserError
from selfflow.training.state import State


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
        try:
            restored = self._manager.restore(step, args=args)
        except Exception as error:  # Orbax and TensorStore raise plain Exceptions of many kinds
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(
                f"{self.path / str(step)} does not fit this experiment or is damaged ({reason}): "
                "use another --workdir, or remove that checkpoint to go on from the one before"
            ) from error
        state, position = restored["state"], restored["data"]["position"]
        counts = [int(x) for x in jax.tree.leaves(state.optimizer) if x.ndim == 0]
        if int(state.step) != step or position != step or any(count != step for count in counts):
            raise UserError(
                f"{self.path / str(step)} holds step {int(state.step)}, data position {position} and optimizer "
                f"counts {counts}: it is damaged; remove it to go on from the one before"
            )
        return state

    def check(self) -> None:
        """Raises what went wrong with a save in the background, if anything did."""
        self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns once every started save is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and frees the manager's threads."""
        self._manager.close()
