"""The command line: one file per command, imported only when it is called."""

import errno
import importlib
import sys

_COMMANDS = {
    "train": "train an experiment, or go on with its run",
    "data": "build a data set",
}

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
    from selfflow.errors import UserError

    try:
        importlib.import_module(f"selfflow.cli.{command}").main(arguments[1:])
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stdout = None  # the reader of a pipe has gone: nothing is left to say, and to nobody
        sys.exit(1)
    except Exception as error:
        full = _disk_full(error)
        if full is None:
            raise
        _fail(full)


def _fail(message: str) -> None:
    print(f"selfflow: {message}", file=sys.stderr)
    sys.exit(2)


def _disk_full(error: BaseException | None) -> str | None:
    """What to say if an error, or one that caused it, is a full disk; libraries wrap it each in their own way."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" ({error.filename})" if error.filename else ""
            return f"the disk is full{where}: free some space and give the same command again; it goes on where it was"
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return "the disk is full: free some space and give the same command again; it goes on where it was"
        error = error.__cause__ or error.__context__
    return None
