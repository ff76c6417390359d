"""Self-Flow: joint flow matching over video, audio and image latents with self-distilled alignment."""

__version__ = "0.1.0"
