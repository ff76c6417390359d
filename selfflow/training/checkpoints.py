"""Checkpoints of a run: state and data position, written by Orbax in the background and checked when read."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from selfflow.errors import UserError
from selfflow.storage.paths import url_of
from selfflow.storage.runs import checkpoint_folder, saved_steps, send_changes
from selfflow.storage.store import Missing, Short
from selfflow.training.distributed import any_of_all, barrier, is_primary, run_on_all
from selfflow.training.state import State, flat_by_name


class Damaged(UserError):
    """A checkpoint that cannot be what was saved, or was saved by another experiment; an older one may do."""


class Checkpoints:
    """The checkpoints under a run folder.

    Args:
      folder: the run folder.
      keep_last: how many of the newest to keep.
      keep_every: keep those of all multiples of this step, too.
    """

    def __init__(self, folder: Path, keep_last: int = 2, keep_every: int | None = None):
        import orbax.checkpoint as ocp  # a second; commands that only read metrics need not wait

        # Orbax logs each array's failure at length and then raises it, and half a checkpoint that a kill left behind
        # is a warning to it; here the error is told once, and the half is what resuming is for.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._ocp = ocp
        self.path, self._folder = folder / "checkpoints", folder
        self._path, where = checkpoint_folder(folder), url_of(folder)
        self._named = f"{where or folder}/checkpoints"
        self._uploads = None
        if where is not None and where.startswith("s3://"):
            from selfflow.storage.uploads import Uploads

            self._uploads = Uploads(folder, where, keep_last, keep_every)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last, keep_period=keep_every, enable_async_checkpointing=True
        )
        with self._reached():
            self._manager = ocp.CheckpointManager(self._path, options=options, item_names=("state", "data"))

    def latest(self) -> int | None:
        """The newest step that was saved whole, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All saved steps."""
        return saved_steps(self._folder) if self._uploads else sorted(self._manager.all_steps())

    def save(self, state: State, step: int) -> None:
        """Starts saving; the data position of a run is its step."""
        ocp = self._ocp
        if self._uploads:
            self.wait()  # a disk that is faster than the way to the bucket must not run full
        send_changes(self._folder)
        told = {"position": step, "checksums": fetch_checksums(state)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(told))
        with self._reached():
            self._manager.save(step, args=args, force=True)

    def restore_newest(self, abstract: State) -> State:
        """Reads the newest checkpoint that is undamaged, into the shapes and shardings of `abstract`.

        Damaged ones that are newer are named, and put aside as `damaged-STEP` once an older one was read.

        Raises:
          UserError: if none is undamaged, or there is none, or one cannot be read for now.
        """
        damaged: list[tuple[int, Damaged]] = []
        for step in reversed(self.steps()):
            try:
                state = self.restore(abstract, step)
            except Damaged as error:
                damaged.append((step, error))
                continue
            for bad, error in damaged:
                if is_primary():
                    aside = next(
                        p for i in count() if not (p := self._path / f"damaged-{bad}{i and f'-{i}' or ''}").exists()
                    )
                    if (self._path / str(bad)).exists():  # of one in a bucket there may be no copy
                        (self._path / str(bad)).rename(aside)
                    if self._uploads:
                        self._uploads.put_aside(bad, aside.name)
                    print(f"warning: {error}. It was put aside as {aside.name}; going on from step {step}")
            if damaged:
                barrier()
                self._manager.reload()
            return state
        raise damaged[0][1] if damaged else UserError(f"{self._named} holds no checkpoint that was saved whole")

    def restore(self, abstract: State, step: int) -> State:
        """Reads a checkpoint into the shapes and shardings of `abstract`.

        Raises:
          Damaged: if the checkpoint holds other parameters, or another step than it says, or a bit of an array is
            not as it was saved.
        """
        state, position = self._read(abstract._asdict(), step)
        counts = [int(x) for x in jax.tree.leaves(state["optimizer"]) if x.ndim == 0]
        if position != step or any(count != step for count in counts):
            raise self._damaged(step, f"data position {position}, optimizer counts {counts}")
        return State(**state)

    def restore_weights(self, abstract: State, step: int) -> State:
        """Reads a checkpoint without the optimizer's state, which stays on disk; its place is `optax.EmptyState()`.

        Raises:
          Damaged: as `restore`.
        """
        wanted = {name: getattr(abstract, name) for name in ("step", "params", "frozen")}
        return State(**self._read(wanted, step)[0], optimizer=optax.EmptyState())

    def _read(self, wanted: dict[str, Any], step: int) -> tuple[dict[str, Any], int]:
        """Fields of a state, and the data position; in all processes, each of which reads its own parts."""
        restored, told, reason = run_on_all(lambda: self._try(wanted, step))
        # Of damage all must know before they compute something together.
        if reason := any_of_all(reason):
            raise Damaged(
                f"{self._named}/{step} does not fit this experiment or is damaged ({reason}): take an older one, or a "
                "copy of it"
            )
        if int(restored["step"]) != step:
            raise self._damaged(step, f"it holds step {int(restored['step'])}")
        for name, found in fetch_checksums(restored).items():
            if told["checksums"].get(name) != found:
                raise self._damaged(step, f"the checksum of {name} is {found}, and was {told['checksums'].get(name)}")
        return restored, told["position"]

    def _try(self, wanted: dict[str, Any], step: int) -> tuple[dict[str, Any], dict[str, Any], str]:
        """Fields of a state, what is told of them, and "" or what is damaged.

        Orbax' handler is called without its manager, whose barriers would leave the other processes waiting for one
        that met a damaged file.
        """
        try:
            return *self._files(wanted, step), ""
        except Exception as error:  # Orbax and TensorStore raise plain Exceptions of many kinds
            if _not_of_the_file(error):
                raise
            return {}, {}, (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

    def _files(self, wanted: dict[str, Any], step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        ocp, path = self._ocp, self._path / str(step)
        if self._uploads and self._uploads.fetch(step):
            self._manager.reload()
        with closing(ocp.PyTreeCheckpointHandler()) as handler:
            # A partial restore passes over what either side lacks: that is compared here.
            stored = handler.metadata(path / "state").tree
            there, here = _shapes({name: stored.get(name) for name in wanted}), _shapes(wanted)
            for name in sorted(there | here):
                if there.get(name) != here.get(name):
                    raise ValueError(f"{name} has shape {there.get(name)} there and {here.get(name)} here")
            args = ocp.args.PyTreeRestore(
                wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
            )
            restored = handler.restore(path / "state", args=args)
            told = json.loads((path / "data" / "metadata").read_text())
            return restored, {"position": int(told["position"]), "checksums": dict(told["checksums"])}

    def _damaged(self, step: int, reason: str) -> Damaged:
        return Damaged(f"{self._named}/{step} is damaged ({reason}): take an older one, or a copy of it")

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Says of what Orbax raises that a bucket is meant, where it writes to one."""
        try:
            yield
        except Exception as error:
            where = url_of(self._folder)
            if where is None or self._uploads:
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"{where}/checkpoints cannot be written or listed ({reason}): the account must be allowed to, and to "
                "ask for the bucket itself (storage.buckets.get); the same command takes up what is finished"
            ) from error

    def check(self) -> None:
        """Raises what went wrong with a save in the background, if anything did; waits for none that goes on."""
        with self._reached():
            self._manager.check_for_errors()
            # Which the manager's own thread may have asked first, and then keeps the error until it is waited for.
            if not self._manager.is_saving_in_progress():
                self._manager.wait_until_finished()
        if self._uploads:
            self._uploads.follow()

    def wait(self) -> None:
        """Returns once every started save is on disk; raises what went wrong in the background."""
        with self._reached():
            self._manager.wait_until_finished()
        if self._uploads:
            self._uploads.wait()

    def close(self) -> None:
        """Waits and frees the manager's threads."""
        self._manager.close()
        if self._uploads:
            try:
                self._uploads.wait()
            finally:
                self._uploads.close()


def _not_of_the_file(error: Exception) -> bool:
    """Whether an error tells of the machine, the network or the account, and nothing against a checkpoint."""
    if isinstance(error, FileNotFoundError | Missing | Short):
        return False
    passing = "PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|UNAUTHENTICATED|ABORTED|CANCELLED"
    return isinstance(error, OSError | MemoryError | UserError) or re.search(passing, str(error)) is not None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in flat_by_name(tree).items()}


def checksums(tree: Any) -> Any:
    """The sum of each array's bits modulo 2^32, in words of the size of its elements: uint32 [].

    It does not depend on how an array is sharded, and any single flipped bit changes it.
    """

    def summed(x: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32))
        return jnp.sum(words, dtype=jnp.uint32)

    return jax.tree.map(summed, tree)


def fetch_checksums(tree: Any) -> dict[str, int]:
    """The checksum of each array of a tree, by its dotted name."""
    tree = tree._asdict() if isinstance(tree, State) else tree
    found = jax.device_get(_SUMS(flat_by_name(tree)))
    return {name: int(np.asarray(value)) for name, value in found.items()}


_SUMS = jax.jit(checksums)
