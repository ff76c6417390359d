"""The one exception that means: the user can fix this, and here is how."""


class UserError(Exception):
    """A mistake that a user can correct.

    The message is one line: what is wrong, named by its field, file or shape, and the remedy.
    The command line prints it without a traceback and exits with status 2.
    """
