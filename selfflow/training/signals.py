"""Handling of SIGTERM and SIGINT: the run finishes its step, saves a checkpoint and stops."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


class Interruption:
    """State of stop requests by signals; created by `interruptible`.

    Attributes:
      signal: the received signal, or None.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._multiprocess = jax.process_count() > 1
        self._steps = 0

    def reached(self) -> bool:
        """Returns whether to stop after the current step; must be called after every step.

        With several processes the result becomes True at the same step in all of them, if any received a signal.
        """
        if self._multiprocess:
            # Steps are counted from the start of the process: for a signal before its first step JAX stops at step 1,
            # which the step numbers of a resumed run would never reach.
            self._steps += 1
            return multihost_utils.reached_preemption_sync_point(self._steps)
        return self.signal is not None

    @property
    def cause(self) -> signal.Signals:
        """The received signal; SIGTERM if another process received it."""
        return self.signal or signal.SIGTERM

    def receive(self, number: int) -> None:
        """Records a signal; the second SIGINT ends the process at once."""
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            print("\nexiting at once: steps since the last checkpoint are not saved", file=sys.stderr, flush=True)
            os._exit(130)
        if number == signal.SIGINT or self.signal is None:
            self.signal = signal.Signals(number)
        again = "; once more exits at once" if number == signal.SIGINT else ""
        print(f"\n{self.signal.name}: stops after this step, and saves{again}", file=sys.stderr, flush=True)
        if number == signal.SIGINT and self._multiprocess:
            # JAX's own handler passes SIGTERM on to the other processes.
            os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Context in which SIGTERM and SIGINT request a stop instead of ending the process.

    With several processes SIGTERM is handled by JAX's preemption service, which `jax.distributed.initialize` starts.
    Outside the main thread handlers cannot be installed, and nothing changes. A signal that is ignored, such as SIGINT
    in background jobs of a shell, stays ignored.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
    # A Python handler runs in the main thread, which may be compiling for minutes. The wake-up descriptor receives the
    # number of a signal at once, and a separate thread reads it.
    receiver, wakeup = socket.socketpair()
    wakeup.setblocking(False)

    def watch() -> None:
        received = receiver.recv(1)
        while received:  # empty once the other end is closed
            if received[0] in numbers:
                interruption.receive(received[0])
            received = receiver.recv(1)

    watcher = threading.Thread(target=watch, name="interruption", daemon=True)
    watcher.start()
    descriptor = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    handlers = {}
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            handlers[number] = signal.signal(number, _ignore)
    try:
        yield interruption
    finally:
        for number, handler in handlers.items():
            # None is a handler that was not installed from Python and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(descriptor)
        wakeup.close()
        watcher.join()
        receiver.close()


def _ignore(*_) -> None:
    """Signal handler without effect, which replaces the default action of ending the process."""
