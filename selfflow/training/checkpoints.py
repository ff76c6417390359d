"""Checkpoints of a run: state and data position, written by Orbax in the background and verified on reading."""

import json
import logging
import re
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from selfflow.errors import UserError
from selfflow.storage.object_store import IncompleteObject, MissingObject
from selfflow.storage.paths import url_of_copy
from selfflow.storage.runs import bucket_errors, checkpoint_folder, saved_steps, upload_changes
from selfflow.training.distributed import barrier, first_message, is_primary, run_on_all
from selfflow.training.state import State, flat_by_name


class Damaged(UserError):
    """A checkpoint that differs from what was saved, or belongs to another experiment; an older one may be intact."""


class _Stored(NamedTuple):
    """Content of a checkpoint.

    Attributes:
      fields: fields of a `State`, by name.
      position: number of batches that the run had consumed.
      checksums: checksums of each array, by its dotted name.
      damage: reason why it cannot be read; the other attributes are then empty.
    """

    fields: dict[str, Any]
    position: int
    checksums: dict[str, int]
    damage: str = ""


class Checkpoints:
    """The checkpoints in a run folder.

    Args:
      folder: the run folder.
      keep_last: number of newest checkpoints to keep.
      keep_every: checkpoints at multiples of this step are kept, too.
    """

    def __init__(self, folder: Path, keep_last: int = 2, keep_every: int | None = None):
        import orbax.checkpoint as ocp  # takes a second, which commands that only read metrics need not wait

        # Orbax logs the failure of each array and then raises it, and warns of partial checkpoints, which are what a
        # killed run leaves and what resuming handles.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._ocp = ocp
        self.path, self._folder = folder / "checkpoints", folder
        self._path, url = checkpoint_folder(folder), url_of_copy(folder)
        self._name = f"{url or folder}/checkpoints"  # in messages
        self._uploads = None
        if url is not None and url.startswith("s3://"):
            from selfflow.storage.checkpoint_uploads import CheckpointUploads

            self._uploads = CheckpointUploads(folder, url, keep_last, keep_every)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last, keep_period=keep_every, enable_async_checkpointing=True
        )
        with bucket_errors(folder):
            self._manager = ocp.CheckpointManager(self._path, options=options, item_names=("state", "data"))

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All complete steps, in ascending order."""
        return saved_steps(self._folder) if self._uploads else sorted(self._manager.all_steps())

    def save(self, state: State, step: int) -> None:
        """Starts saving; the data position of a run is its step."""
        ocp = self._ocp
        if self._uploads:
            self.wait()  # otherwise a disk that is faster than the network would fill up
        upload_changes(self._folder)
        metadata = {"position": step, "checksums": fetch_checksums(state)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(metadata))
        with bucket_errors(self._folder):
            self._manager.save(step, args=args, force=True)

    def restore_newest(self, abstract: State) -> State:
        """Reads the newest intact checkpoint into the shapes and shardings of `abstract`.

        Newer damaged ones are reported, and renamed to `damaged-STEP` once an older one has been read.

        Raises:
          UserError: if there is no intact checkpoint, or one cannot be read at the moment.
        """
        damaged: list[tuple[int, Damaged]] = []
        for step in reversed(self.steps()):
            try:
                state = self.restore(abstract, step)
            except Damaged as error:
                damaged.append((step, error))
                continue
            for damaged_step, error in damaged:
                if is_primary():
                    name = self._set_aside(damaged_step)
                    print(f"warning: {error}. It was renamed to {name}; resuming from step {step}")
            if damaged:
                barrier()
                self._manager.reload()
            return state
        raise damaged[0][1] if damaged else UserError(f"{self._name} holds no complete checkpoint")

    def _set_aside(self, step: int) -> str:
        """Renames a damaged checkpoint, and returns its new name."""
        name, number = f"damaged-{step}", 0
        while (self._path / name).exists():
            number += 1
            name = f"damaged-{step}-{number}"
        if (self._path / str(step)).exists():  # a checkpoint in a bucket may have no local copy
            (self._path / str(step)).rename(self._path / name)
        if self._uploads:
            self._uploads.set_aside(step, name)
        return name

    def restore(self, abstract: State, step: int) -> State:
        """Reads a checkpoint into the shapes and shardings of `abstract`.

        Raises:
          Damaged: if it holds other parameters or another step, or an array differs from what was saved in any bit.
        """
        stored = self._read(abstract._asdict(), step)
        counts = [int(x) for x in jax.tree.leaves(stored.fields["optimizer"]) if x.ndim == 0]
        if stored.position != step or any(count != step for count in counts):
            raise self._damaged(step, f"data position {stored.position}, optimizer counts {counts}")
        return State(**stored.fields)

    def restore_weights(self, abstract: State, step: int) -> State:
        """Reads a checkpoint without the state of the optimizer, in whose place is `optax.EmptyState()`.

        Raises:
          Damaged: as `restore`.
        """
        wanted = {name: getattr(abstract, name) for name in ("step", "params", "frozen")}
        return State(**self._read(wanted, step).fields, optimizer=optax.EmptyState())

    def _read(self, wanted: dict[str, Any], step: int) -> _Stored:
        """Fields of a state with their metadata, verified; runs in all processes, each of which reads its shards."""
        stored = run_on_all(lambda: self._try_read(wanted, step))
        # Damage is exchanged between all processes before they compute checksums together.
        damage = first_message(stored.damage)
        if damage:
            raise Damaged(
                f"{self._name}/{step} does not fit this experiment or is damaged ({damage}): take an older one, or a "
                "copy of it"
            )
        if int(stored.fields["step"]) != step:
            raise self._damaged(step, f"it holds step {int(stored.fields['step'])}")
        for name, checksum in fetch_checksums(stored.fields).items():
            expected = stored.checksums.get(name)
            if checksum != expected:
                raise self._damaged(step, f"the checksum of {name} is {checksum}, and was {expected}")
        return stored

    def _try_read(self, wanted: dict[str, Any], step: int) -> _Stored:
        """Reads the files of a checkpoint; damage is returned, not raised.

        Orbax' handler is called without its manager, whose barriers would block the other processes if one of them
        fails on a damaged file.
        """
        try:
            return self._read_files(wanted, step)
        except Exception as error:  # Orbax and TensorStore raise plain Exceptions of many kinds
            if _is_environment_error(error):
                raise
            return _Stored({}, 0, {}, (str(error).strip().splitlines() or [type(error).__name__])[0][:200])

    def _read_files(self, wanted: dict[str, Any], step: int) -> _Stored:
        ocp, path = self._ocp, self._path / str(step)
        if self._uploads and self._uploads.fetch(step):
            self._manager.reload()
        with closing(ocp.PyTreeCheckpointHandler()) as handler:
            # A partial restore ignores what either side lacks, so names and shapes are compared here.
            tree = handler.metadata(path / "state").tree
            stored = {name: tree.get(name) for name in wanted}
            saved, expected = _shapes(stored), _shapes(wanted)
            for name in sorted(saved | expected):
                if saved.get(name) != expected.get(name):
                    raise ValueError(f"{name} has shape {saved.get(name)}, expected {expected.get(name)}")
            self._check_dtypes(step, stored, wanted)
            args = ocp.args.PyTreeRestore(
                wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
            )
            fields = handler.restore(path / "state", args=args)
            metadata = json.loads((path / "data" / "metadata").read_text(encoding="utf-8"))
            return _Stored(fields, int(metadata["position"]), dict(metadata["checksums"]))

    def _check_dtypes(self, step: int, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
        """Raises `UserError` if arrays have other types: Orbax would convert them, to other bits than were saved."""
        saved, expected = _dtypes(stored), _dtypes(wanted)
        for name in sorted(expected):
            if saved[name] == expected[name]:
                continue
            x64 = jax.config.jax_enable_x64
            remedy = f"JAX_ENABLE_X64 is {x64}, set it to {not x64}, as when the checkpoint was saved"
            if saved[name].itemsize <= 4 and expected[name].itemsize <= 4:  # types of the experiment, such as bfloat16
                remedy = "take the experiment that it was saved by"
            raise UserError(f"{self._name}/{step}: {name} is {saved[name]}, and here {expected[name]}: {remedy}")

    def _damaged(self, step: int, reason: str) -> Damaged:
        return Damaged(f"{self._name}/{step} is damaged ({reason}): take an older one, or a copy of it")

    def check(self) -> None:
        """Raises the error of a background save that has failed; does not wait for those in progress."""
        with bucket_errors(self._folder):
            self._manager.check_for_errors()
            # The manager's own thread may have consumed the error, which then shows only on waiting.
            if not self._manager.is_saving_in_progress():
                self._manager.wait_until_finished()
        if self._uploads:
            self._uploads.start_new()

    def wait(self) -> None:
        """Blocks until every started save is complete; raises errors of background saves."""
        with bucket_errors(self._folder):
            self._manager.wait_until_finished()
        if self._uploads:
            self._uploads.wait()

    def close(self) -> None:
        """Waits, then ends the background threads."""
        self._manager.close()
        if self._uploads:
            try:
                self._uploads.wait()
            finally:
                self._uploads.close()


def _is_environment_error(error: Exception) -> bool:
    """Whether an error is due to machine, network or account rather than to the checkpoint."""
    if isinstance(error, FileNotFoundError | MissingObject | IncompleteObject):
        return False
    status = "PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|UNAUTHENTICATED|ABORTED|CANCELLED"
    return isinstance(error, OSError | MemoryError | UserError) or re.search(status, str(error)) is not None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in flat_by_name(tree).items()}


def _dtypes(tree: Any) -> dict[str, np.dtype]:
    return {name: np.dtype(leaf.dtype) for name, leaf in flat_by_name(tree).items()}


def checksums(tree: Any) -> Any:
    """The sum of each array's bits modulo 2^32, in words of the size of its elements: uint32 [].

    It is independent of the sharding, and any single flipped bit changes it.
    """

    def checksum(x: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32))
        return jnp.sum(words, dtype=jnp.uint32)

    return jax.tree.map(checksum, tree)


_CHECKSUMS = jax.jit(checksums)


def fetch_checksums(tree: Any) -> dict[str, int]:
    """The checksum of each array of a tree, by its dotted name."""
    tree = tree._asdict() if isinstance(tree, State) else tree
    sums = jax.device_get(_CHECKSUMS(flat_by_name(tree)))
    return {name: int(np.asarray(value)) for name, value in sums.items()}
