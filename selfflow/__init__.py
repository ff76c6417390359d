"""Self-Flow: joint flow matching over video, audio and image latents with self-distilled alignment."""

import os

__version__ = "0.1.0"

# librosa, and Numba, with which it compiles, fail to import where they cannot write a cache: in a container without
# HOME, for a user without a home folder. The folder is this process's alone: Numba unpickles the files of its cache.
if not os.access(os.path.expanduser("~"), os.W_OK) and "XDG_CACHE_HOME" not in os.environ:
    import atexit
    import shutil
    import tempfile

    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="selfflow-cache-")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)


def __getattr__(name: str):
    if name == "open_run":  # which imports JAX, and `selfflow --help` does not
        from selfflow.run.run import open_run

        return open_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
