"""Objects whose pickles execute something."""

from collections.abc import Callable
from typing import Any


class CallOnLoad:
    """Python's unpickler calls the function with these arguments when it loads the pickle."""

    def __init__(self, function: Callable, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call
