"""Exceptions that are no bugs: what the user can fix, and here is how; and what the user asked for."""


class UserError(Exception):
    """A mistake that a user can correct.

    The message is one line: what is wrong, named by its field, file or shape, and the remedy.
    The command line prints it without a traceback and exits with status 2.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it, in notebooks: the one line too."""
        return [f"UserError: {self}"]


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop, and did after a step.

    Args:
      message: one line for the user.
      status: with which to exit: 128 and the number of the signal.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status
