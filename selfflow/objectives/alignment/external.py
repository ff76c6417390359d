"""REPA (arXiv 2410.06940)."""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from selfflow.encoders.config import Encoder
from selfflow.errors import UserError
from selfflow.models.joint import Output
from selfflow.objectives.alignment.base import FeatureAlignment, Forward
from selfflow.objectives.draw import Draw


@dataclass(frozen=True)
class ExternalEncoder(FeatureAlignment):
    """REPA (arXiv 2410.06940): the target is a frozen encoder's features of the clean sample.

    The features are computed once, stored beside the latents, and pooled to the grid of the tokens. Every modality has
    its own projector, since encoders differ in their channels. There is no teacher; the EMA is kept for sampling and
    evaluation. The defaults are the paper's: weight 0.5, block 8 of SiT-XL/2's 28, three layers, cosine.
    """

    kind: Literal["external"] = "external"
    weight: float = 0.5
    """gamma, the weight of the alignment loss beside the flow loss."""
    student_layer: int = 8
    projector_depth: int = 3
    encoders: dict[str, Encoder | None] = field(default_factory=dict)
    """The encoder of each modality of the mixture; None for modalities that are not aligned. The paper takes DINOv2-B
    for images, arXiv 2603.06507 compares with MERT for audio."""

    def __post_init__(self):
        super().__post_init__()
        for m, encoder in self.encoders.items():
            if encoder is not None and encoder.media and m not in encoder.media:
                raise UserError(
                    f"alignment.encoders.{m} is {encoder.kind}, an encoder of {' and '.join(encoder.media)}: give "
                    "FeatureFiles with features of your own, or None to leave the modality unaligned"
                )

    @property
    def target_encoders(self) -> dict[str, Encoder]:
        return {m: encoder for m, encoder in self.encoders.items() if encoder is not None}

    @property
    def target_channels(self) -> dict[str, int]:
        return {m: encoder.width for m, encoder in self.target_encoders.items()}

    @property
    def unaligned(self) -> tuple[str, ...]:
        return tuple(m for m, encoder in self.encoders.items() if encoder is None)

    def check(self, depth: int, width: int, modalities: dict[str, str]) -> None:
        """Raises `UserError` unless every modality of the mixture, and no other, has an encoder or None.

        Otherwise a missing entry would silently train its modality by flow matching alone.
        """
        super().check(depth, width, modalities)
        for m in self.encoders:
            if m not in modalities:
                raise UserError(
                    f"alignment.encoders.{m}: the modalities of the mixture are {', '.join(modalities)}; remove it"
                )
        for m, component in modalities.items():
            if m not in self.encoders:
                raise UserError(
                    f"alignment.encoders has no entry for {m}, a modality of mixture.{component}: name an encoder, or "
                    "None to leave it unaligned"
                )
        if not self.target_encoders:
            raise UserError("alignment.encoders names no encoder: name one, or set alignment to NoAlignment()")
        for m, channels in self.target_channels.items():
            if not self.projector_depth and channels != width:
                raise UserError(
                    f"alignment.projector_depth is 0, but the encoder of {m} has {channels} channels and the model "
                    f"{width}: set it to at least 1"
                )

    def target(
        self, forward: Forward, frozen: dict[str, Any], student: Output, batch: dict[str, Any], draw: Draw
    ) -> dict[str, Float[Array, "B N E"]]:
        """Returns the features in the batch.

        Raises:
          ValueError: if the batch lacks the features of a modality that has an encoder.
        """
        features = batch.get("features", {})
        missing = sorted((self.target_encoders.keys() & batch["latents"].keys()) - features.keys())
        if missing:
            raise ValueError(f"batch has no features of {', '.join(missing)}, which alignment.encoders requires")
        return {m: jax.lax.stop_gradient(jnp.asarray(features_BNE)) for m, features_BNE in features.items()}
