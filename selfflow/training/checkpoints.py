"""Checkpoints of a run, with state and data position, written by Orbax in the background and verified on reading."""

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
    """Error of a checkpoint that is damaged or belongs to another experiment; an older checkpoint may be intact."""


class _Stored(NamedTuple):
    """Content of a checkpoint.

    Attributes:
      fields: fields of a `State`, by name.
      position: number of batches that the run has consumed.
      checksums: checksum of each array, by dotted name.
      damage: reason why the checkpoint cannot be read; the other attributes are then empty.
    """

    fields: dict[str, Any]
    position: int
    checksums: dict[str, int]
    damage: str = ""


class Checkpoints:
    """Reads and writes the checkpoints of a run folder.

    Args:
      folder: the run folder.
      keep_last: number of newest checkpoints to keep.
      keep_every: interval of additional checkpoints to keep, at multiples of this step.
    """

    def __init__(self, folder: Path, keep_last: int = 2, keep_every: int | None = None):
        import orbax.checkpoint as ocp  # a slow import, which most commands do not need

        # Orbax logs errors that it also raises, and warns of partial checkpoints, which are normal after a run was
        # killed.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._ocp = ocp
        self.path, self._folder = folder / "checkpoints", folder
        self._path, url = checkpoint_folder(folder), url_of_copy(folder)
        self._name = f"{url or folder}/checkpoints"  # for messages
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
        """Returns the step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, in ascending order."""
        return saved_steps(self._folder) if self._uploads else sorted(self._manager.all_steps())

    def save(self, state: State, step: int) -> None:
        """Starts to save a state in the background. The data position of the checkpoint equals its step."""
        ocp = self._ocp
        if self._uploads:
            self.wait()  # limits the use of the disk if uploads are slower than saves
        upload_changes(self._folder)
        metadata = {"position": step, "checksums": fetch_checksums(state)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(metadata))
        with bucket_errors(self._folder):
            self._manager.save(step, args=args, force=True)

    def restore_newest(self, abstract: State) -> State:
        """Restores the newest intact checkpoint, with the shapes and shardings of `abstract`.

        Newer damaged checkpoints are reported, and renamed to `damaged-STEP` after an older one has been restored.

        Raises:
          UserError: if there is no intact checkpoint, or reading fails for another reason, such as a network error.
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
        """Renames a damaged checkpoint and returns its new name."""
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
        """Restores a checkpoint with the shapes and shardings of `abstract`.

        Raises:
          Damaged: if the checkpoint has other parameters or another step, or any bit of an array has changed.
        """
        stored = self._read(abstract._asdict(), step)
        counts = [int(x) for x in jax.tree.leaves(stored.fields["optimizer"]) if x.ndim == 0]
        if stored.position != step or any(count != step for count in counts):
            raise self._damaged(step, f"data position {stored.position}, optimizer counts {counts}")
        return State(**stored.fields)

    def restore_weights(self, abstract: State, step: int) -> State:
        """Restores a checkpoint without optimizer state, which is replaced by `optax.EmptyState()`.

        Raises:
          Damaged: as in `restore`.
        """
        wanted = {name: getattr(abstract, name) for name in ("step", "params", "frozen")}
        return State(**self._read(wanted, step).fields, optimizer=optax.EmptyState())

    def _read(self, wanted: dict[str, Any], step: int) -> _Stored:
        """Reads and verifies fields of a state; must be called in all processes, each of which reads its shards."""
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
        """Reads the files of a checkpoint; returns damage instead of raising an error.

        Orbax's handler is called directly: the barriers of its manager would block the other processes if one of them
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
            # A partial restore ignores missing and additional arrays, so names and shapes are compared here.
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
        """Raises `UserError` if arrays have other dtypes, because Orbax would silently convert them."""
        saved, expected = _dtypes(stored), _dtypes(wanted)
        for name in sorted(expected):
            if saved[name] == expected[name]:
                continue
            x64 = jax.config.jax_enable_x64
            remedy = f"JAX_ENABLE_X64 is {x64}, set it to {not x64}, as when the checkpoint was saved"
            if saved[name].itemsize <= 4 and expected[name].itemsize <= 4:  # dtype of the experiment, such as bfloat16
                remedy = "take the experiment that it was saved by"
            raise UserError(f"{self._name}/{step}: {name} is {saved[name]}, and here {expected[name]}: {remedy}")

    def _damaged(self, step: int, reason: str) -> Damaged:
        return Damaged(f"{self._name}/{step} is damaged ({reason}): take an older one, or a copy of it")

    def check(self) -> None:
        """Raises errors of background saves that have failed; does not wait for saves in progress."""
        with bucket_errors(self._folder):
            self._manager.check_for_errors()
            # If the manager's thread has consumed the error, it is raised only by waiting.
            if not self._manager.is_saving_in_progress():
                self._manager.wait_until_finished()
        if self._uploads:
            self._uploads.start_new()

    def wait(self) -> None:
        """Waits until all saves are complete; raises errors of background saves."""
        with bucket_errors(self._folder):
            self._manager.wait_until_finished()
        if self._uploads:
            self._uploads.wait()

    def close(self) -> None:
        """Waits until all saves are complete, and ends the background threads."""
        self._manager.close()
        if self._uploads:
            try:
                self._uploads.wait()
            finally:
                self._uploads.close()


def _is_environment_error(error: Exception) -> bool:
    """Returns whether an error is due to machine, network or account and not to the checkpoint."""
    if isinstance(error, FileNotFoundError | MissingObject | IncompleteObject):
        return False
    status = "PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|UNAUTHENTICATED|ABORTED|CANCELLED"
    return isinstance(error, OSError | MemoryError | UserError) or re.search(status, str(error)) is not None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in flat_by_name(tree).items()}


def _dtypes(tree: Any) -> dict[str, np.dtype]:
    return {name: np.dtype(leaf.dtype) for name, leaf in flat_by_name(tree).items()}


def checksums(tree: Any) -> Any:
    """Computes a checksum of each array: the sum of its elements' bit patterns modulo 2^32, uint32 [].

    It is independent of the sharding, and detects any single flipped bit.
    """

    def checksum(x: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32))
        return jnp.sum(words, dtype=jnp.uint32)

    return jax.tree.map(checksum, tree)


_CHECKSUMS = jax.jit(checksums)


def fetch_checksums(tree: Any) -> dict[str, int]:
    """Returns the checksum of each array of a tree, by dotted name."""
    tree = tree._asdict() if isinstance(tree, State) else tree
    sums = jax.device_get(_CHECKSUMS(flat_by_name(tree)))
    return {name: int(np.asarray(value)) for name, value in sums.items()}
