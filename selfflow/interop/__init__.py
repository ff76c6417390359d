"""Other people's backbone checkpoints, in and out."""

from selfflow.interop.released_sit import load_released_sit, released_sit_weights

__all__ = ["load_released_sit", "released_sit_weights"]
