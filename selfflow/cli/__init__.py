"""Command-line interface: one module per command, imported only when the command is run."""

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from selfflow.cli.allocator import keep_freed_memory
from selfflow.errors import Interrupted, UserError, did_you_mean, system_error_message

_COMMANDS = {
    "train": "train an experiment, or resume its run",
    "sweep": "train the runs of a sweep, one after the other or several at once",
    "sample": "draw samples from a run: video with audio, audio, images",
    "probe": "measure what the features of each layer of a run predict",
    "evaluate": "measure distances between a run's samples and real clips, and verify their physics",
    "encode": "encode an experiment's data into latents",
    "plan": "compute memory and least step time on a slice of TPUs, without one",
    "benchmark": "measure the speed of an experiment's parts",
    "import": "create a run from the weights of a released SiT",
    "report": "write a run or a sweep as one HTML page",
    "export": "write a run's weights with a model card",
    "data": "list, build, show and verify data sets, and delete samples",
}
_MODULES = {"import": "importing"}  # `import` is a keyword

_HELP = """usage: selfflow COMMAND ...

Self-Flow: joint flow matching over video, audio and image latents that learns its own representations.

commands:
{commands}

example:
  selfflow train experiments/quickstart.py

`selfflow COMMAND --help` lists the flags of a command."""


def main() -> None:
    """Runs a command; on a `UserError` prints its message and exits with status 2."""
    # Python sets standard streams to None if they were closed before it started, and every print would fail.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")
    try:
        _run(sys.argv[1:])
        sys.stdout.flush()  # raises here if the pipe is closed, and not while the interpreter exits
    except UserError as error:
        _fail(str(error))
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes", file=sys.stderr)
        _exit(130)
    except BrokenPipeError:
        # The pipe is closed: flushing at exit would raise again.
        sys.stdout = None
        _exit(1)
    except Exception as error:
        message = system_error_message(error)
        if message is None:
            # The other processes would wait for this one, so it exits at once; a single process re-raises.
            if _is_one_of_several():
                traceback.print_exc()
                _exit(1)
            raise
        print(f"selfflow: {message}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # Exit at once: during a regular exit, background threads that cannot write would each print a traceback.
        os._exit(2)


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_HELP.format(commands="\n".join(f"  {name:<10} {text}" for name, text in _COMMANDS.items())), flush=True)
        sys.exit(0 if arguments else 2)
    command = arguments[0]
    if command not in _COMMANDS:
        raise UserError(f"no command {command!r}; {did_you_mean(command, _COMMANDS)}")
    keep_freed_memory()
    with _ended_by_sigint():
        module = importlib.import_module(f"selfflow.cli.{_MODULES.get(command, command)}")
    module.main(arguments[1:])


@contextmanager
def _ended_by_sigint() -> Iterator[None]:
    """Context in which Ctrl-C ends the process at once, for the time of imports, when no file is open yet.

    During imports a KeyboardInterrupt can be swallowed by an extension module, or print the traceback of a library.
    """
    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.default_int_handler:  # such as SIG_IGN in background jobs of a shell
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _fail(message: str) -> None:
    print(f"selfflow: {message}", file=sys.stderr)
    _exit(2)


def _is_one_of_several() -> bool:
    """Returns whether this is one of several processes, without importing JAX: before that there is only one."""
    distributed = sys.modules.get("selfflow.training.distributed")
    return distributed is not None and distributed.is_multiprocess()


def _exit(status: int) -> None:
    """Exits the process; one of several processes exits without cleanup, see `training.distributed.abort`."""
    if _is_one_of_several():
        sys.modules["selfflow.training.distributed"].abort(status)
    sys.exit(status)
