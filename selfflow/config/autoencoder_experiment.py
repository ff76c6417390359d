"""The dataclass tree of a run that trains an autoencoder."""

from dataclasses import dataclass
from typing import Literal

from selfflow.autoencoders.convolutional import Network
from selfflow.config.training import TrainingConfig
from selfflow.objectives.reconstruction import ReconstructionLoss


@dataclass(frozen=True, kw_only=True)
class AutoencoderExperiment(TrainingConfig):
    """Everything that the training of an autoencoder depends on.

    Each component of the mixture has one modality. Components of images and of video may share an autoencoder.
    """

    network: Network
    """The autoencoder."""
    kind: Literal["autoencoder"] = "autoencoder"
    side: int | None = None
    """Side in pixels of the area that images and video are cropped to at random; by default that of the data."""
    loss: ReconstructionLoss = ReconstructionLoss()
    """The objective, whose loss is minimised."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of computation; parameters, EMA and losses are float32."""
    held_out: int = 128
    """Held-out samples of each component that reconstruction is measured on at the end."""
