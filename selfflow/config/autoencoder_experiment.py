"""The dataclass tree of a run that trains an autoencoder."""

from dataclasses import dataclass
from typing import Literal

from selfflow.autoencoders.convolutional import Network
from selfflow.config.training import TrainingConfig
from selfflow.objectives.reconstruction import ReconstructionLoss


@dataclass(frozen=True, kw_only=True)
class AutoencoderExperiment(TrainingConfig):
    """Configuration of a run that trains an autoencoder.

    Each component of the mixture has one modality. An autoencoder can be trained on components of images and of video
    together.
    """

    network: Network
    """The autoencoder."""
    kind: Literal["autoencoder"] = "autoencoder"
    side: int | None = None
    """Side in pixels of random crops of images and video; by default the size of the data."""
    loss: ReconstructionLoss = ReconstructionLoss()
    """Training objective."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters, EMA and losses are float32."""
    held_out: int = 128
    """Held-out samples of each component for the final evaluation of the reconstruction."""
