"""Released checkpoints, and exported weights that need no run."""

from selfflow.interop.exported import Description, Exported, load_exported
from selfflow.interop.released_sit import load_released_sit, released_sit_weights

__all__ = ["Description", "Exported", "load_exported", "load_released_sit", "released_sit_weights"]
