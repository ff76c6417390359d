"""Self-Flow: joint flow matching over video, audio and image latents with self-distilled alignment."""

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "open_run":  # which imports JAX, and `selfflow --help` does not
        from selfflow.run.run import open_run

        return open_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
