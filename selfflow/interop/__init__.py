"""Other people's backbone checkpoints and formats, in and out, and our own weights for others."""

from selfflow.interop.exported import Description, Exported, load_exported
from selfflow.interop.released_sit import load_released_sit, released_sit_weights

__all__ = ["Description", "Exported", "load_exported", "load_released_sit", "released_sit_weights"]
