"""The command line: one file per command, imported only when it is called."""

import errno
import importlib
import os
import re
import sys
import traceback

_COMMANDS = {
    "train": "train an experiment, or go on with its run",
    "sweep": "train the members of a comparison, in turn or several at once",
    "sample": "draw samples from a run: films with sound, sounds, pictures",
    "probe": "measure what the layers of runs know",
    "evaluate": "measure how far a run's samples are from real clips, and what laws they break",
    "encode": "encode an experiment's data into latents",
    "plan": "tell what an experiment takes on a slice of TPUs, without one",
    "benchmark": "measure how fast an experiment's parts are",
    "import": "make a run of the weights of a released SiT",
    "report": "write a run or a sweep as one HTML page",
    "export": "write a run's weights, with a card, for use without it",
    "data": "list, build, show and verify data sets, and delete samples",
}
# Where the file of a command is not called as the command: `import` is a keyword.
_FILES = {"import": "importing"}

_HELP = """usage: selfflow COMMAND ...

Self-Flow: joint flow matching over video, audio and image latents that teaches itself representations.

commands:
{commands}

example:
  selfflow train experiments/quickstart.py

`selfflow COMMAND --help` tells more."""


def main() -> None:
    """Runs a command; mistakes that a user can correct print one line and exit with status 2."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_HELP.format(commands="\n".join(f"  {name:<10} {text}" for name, text in _COMMANDS.items())))
        sys.exit(0 if arguments else 2)
    command = arguments[0]
    if command not in _COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, _COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_COMMANDS)}"
        _fail(f"no command {command!r}; {hint}")
    from selfflow.errors import Interrupted, UserError

    try:
        importlib.import_module(f"selfflow.cli.{_FILES.get(command, command)}").main(arguments[1:])
    except UserError as error:
        _fail(str(error))
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        print("\nstopped; the same command takes up what is finished", file=sys.stderr)
        _exit(130)
    except BrokenPipeError:
        sys.stdout = None  # the reader of a pipe has gone: nothing is left to say, and to nobody
        _exit(1)
    except Exception as error:
        message = _of_the_system(error)
        if message is None:
            if _one_of_several():
                traceback.print_exc()
                _exit(1)
            raise
        print(f"selfflow: {message}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # Background threads that could not write would each complain at length while Python winds down.
        os._exit(2)


def _fail(message: str) -> None:
    print(f"selfflow: {message}", file=sys.stderr)
    _exit(2)


def _one_of_several() -> bool:
    # Only if the command has imported it: the module imports JAX, which `--help` does without.
    distributed = sys.modules.get("selfflow.training.distributed")
    return distributed is not None and distributed.is_multiprocess()


def _exit(status: int) -> None:
    if _one_of_several():
        sys.modules["selfflow.training.distributed"].abort(status)
    sys.exit(status)


def _of_the_system(error: BaseException | None) -> str | None:
    """What to say if an error, or one that caused it, is a full disk or a file that may not be written.

    Libraries wrap such errors each in their own way.
    """
    again = "the same command then takes up what is finished"
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        where = f" ({error.filename})" if number and error.filename else ""
        if number in (errno.ENOSPC, errno.EDQUOT) or re.search("No space left|Disk quota exceeded", str(error)):
            return f"the disk is full{where}: free some space; {again}"
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR) and where:
            return f"{error.filename} cannot be read or written ({error.strerror}): choose another place"
        error = error.__cause__ or error.__context__
    return None
