"""SIGTERM and SIGINT: a run ends its step, saves a checkpoint and prints how to resume."""

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
    """Whether this process was asked to stop; created by `interruptible`.

    Attributes:
      signal: the signal that was received, or None.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._multiprocess = jax.process_count() > 1
        self._steps = 0

    def reached(self) -> bool:
        """Whether to stop now; must be called after every step.

        With several processes, of which one or more were asked, the result is True at the same step in all of them.
        """
        if self._multiprocess:
            # Counted from the start of this process: asked before its first step JAX stops at step 1, which a resumed
            # run would never reach.
            self._steps += 1
            return multihost_utils.reached_preemption_sync_point(self._steps)
        return self.signal is not None

    @property
    def cause(self) -> signal.Signals:
        """The signal that was received; SIGTERM if another process received it."""
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
    """Makes SIGTERM and SIGINT request a stop instead of ending the process.

    With several processes SIGTERM is left to JAX, whose preemption service handles it from
    `jax.distributed.initialize` on. Outside the main thread, which alone may install handlers, nothing changes; a
    SIGINT that is ignored, as in background jobs of a shell, stays ignored.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
    # A Python handler runs in the main thread, which may be compiling for minutes. Python writes the number of a signal
    # to the wake-up descriptor at once, and a separate thread reads it there.
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
    """Handler that does nothing: it keeps the default action from ending the process."""
