"""Errors that users can correct, and checks that raise them."""

import difflib
import errno
import os
import re
import traceback
from collections.abc import Iterable
from typing import Any

_LISTED = 12  # names in one message


class UserError(Exception):
    """A mistake that a user can correct.

    The message is one line: the field, file or shape, its value, and the remedy.
    The command line prints it without a traceback and exits with status 2.
    """

    def _render_traceback_(self) -> list[str]:
        """IPython shows this in place of a traceback."""
        return [f"UserError: {self}"]


class Interrupted(KeyboardInterrupt):
    """Raised after the step in which a run was asked to stop.

    Args:
      message: one line for the user.
      status: exit status, 128 plus the number of the signal.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def system_error_message(error: BaseException | None) -> str | None:
    """Returns a message if an error, or one that caused it, is due to the machine and not to the code; else None.

    Covers full disks, full shared memory, files that cannot be accessed, and devices that JAX cannot initialise.
    Libraries wrap such errors in other classes.
    """
    while error is not None:
        platforms = os.environ.get("JAX_PLATFORMS")
        if platforms and _raised_in(error).endswith("jax/_src/xla_bridge.py"):
            return f"JAX_PLATFORMS is {platforms}: JAX cannot initialise it; install JAX for this device, or unset it"
        # -7: SIGBUS ended a reader process of Grain; multiprocessing fails to make a semaphore.
        if re.search(r"exit code -7\b", str(error)) or _raised_in(error).endswith("multiprocessing/synchronize.py"):
            return "/dev/shm is full: enlarge it (docker run --shm-size), or set loader.workers to 0"
        number = error.errno if isinstance(error, OSError) else None
        where = f" ({error.filename})" if number and error.filename else ""
        if number in (errno.ENOSPC, errno.EDQUOT) or re.search("No space left|Disk quota exceeded", str(error)):
            return f"the disk is full{where}: free some space; then the same command resumes"
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR) and where:
            return f"{error.filename} cannot be read or written ({error.strerror}): choose another place"
        error = error.__cause__ or error.__context__
    return None


def _raised_in(error: BaseException) -> str:
    """File of the innermost frame of an error's traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].filename if frames else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the remedy for an unknown name: "did you mean X?" for the closest known one, else "there are X, Y"."""
    names = list(known)
    closest = difflib.get_close_matches(name.lower(), names, n=1)
    if closest:
        return f"did you mean {closest[0]}?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"there are {', '.join(names[:_LISTED])}{more}"


def check_at_least(config: Any, prefix: str, **bounds: float) -> None:
    """Checks lower bounds of fields; a field that is None passes.

    Args:
      config: object with these fields.
      prefix: text before the name of a field in the message, such as "loader."; with "--" the name is written as a
        flag.
      bounds: smallest value allowed of each field.

    Raises:
      UserError: naming the field, its value and the bound.
    """
    for field, least in bounds.items():
        value = getattr(config, field)
        if value is not None and not value >= least:
            raise UserError(f"{_name(prefix, field)} is {value}: it must be at least {least}")


def check_above_zero(config: Any, prefix: str, *fields: str) -> None:
    """Checks that fields are greater than 0; as `check_at_least`."""
    for field in fields:
        value = getattr(config, field)
        if value is not None and not value > 0:
            raise UserError(f"{_name(prefix, field)} is {value}: it must be above 0")


def check_fraction(config: Any, prefix: str, *fields: str, below_one: bool = False) -> None:
    """Checks that fields are in [0, 1], or in [0, 1) with `below_one`; as `check_at_least`."""
    for field in fields:
        value = getattr(config, field)
        if value is not None and not (0 <= value < 1 if below_one else 0 <= value <= 1):
            end = "to below 1" if below_one else "to 1"
            raise UserError(f"{_name(prefix, field)} is {value}: give a number from 0 {end}")


def _name(prefix: str, field: str) -> str:
    return prefix + (field.replace("_", "-") if prefix == "--" else field)
