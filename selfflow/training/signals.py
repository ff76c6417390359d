"""Being asked to stop, by SIGTERM or SIGINT: a run ends its step, saves, and says how to go on."""

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
    """Whether this process was asked to stop; made by `interruptible`.

    Attributes:
      signal: which signal asked first, or None.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._together = jax.process_count() > 1
        self._steps = 0

    def reached(self) -> bool:
        """Whether to stop now: to be asked after every step.

        Several processes, of which one or more were asked, all answer True at one and the same step.
        """
        if self._together:
            # Counted in this process: JAX stops at step 1 if it is asked before the first, and a run that goes on never
            # comes by there.
            self._steps += 1
            return multihost_utils.reached_preemption_sync_point(self._steps)
        return self.signal is not None

    @property
    def cause(self) -> signal.Signals:
        """The signal that asked; SIGTERM where another process was asked."""
        return self.signal or signal.SIGTERM

    def asked(self, number: int) -> None:
        """Takes note of a signal; the second SIGINT ends the process, wherever it is."""
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            print("\nleaving at once: what was not saved is lost", file=sys.stderr, flush=True)
            os._exit(130)
        if number == signal.SIGINT or self.signal is None:
            self.signal = signal.Signals(number)
        again = "; once more leaves at once" if number == signal.SIGINT else ""
        print(f"\n{self.signal.name}: stops after this step, and saves{again}", file=sys.stderr, flush=True)
        if number == signal.SIGINT and self._together:
            # JAX's own handler tells it to the other processes.
            os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Has SIGTERM and SIGINT ask for an end instead of ending the process.

    With several processes SIGTERM stays with JAX, whose preemption service has a handler for it from
    `jax.distributed.initialize` on. Outside the main thread, which alone may handle signals, nothing changes; a
    SIGINT that is ignored, as by a job in the background, stays ignored.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
    # A handler in Python waits for the main thread, which may be compiling for minutes. What Python writes to the
    # wake-up descriptor comes at once, and a thread reads it.
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def watch() -> None:
        while received := ours.recv(1):
            if received[0] in numbers:
                interruption.asked(received[0])

    watcher = threading.Thread(target=watch, name="interruption", daemon=True)
    watcher.start()
    descriptor = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    handlers = {
        number: signal.signal(number, lambda *_: None)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield interruption
    finally:
        for number, handler in handlers.items():
            # None stands for a handler that is not Python's and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(descriptor)
        theirs.close()
        watcher.join()
        ours.close()
