"""Features of latents from the run's own network: the residual stream after a block."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from selfflow.modality import Modality
from selfflow.models.joint import Output
from selfflow.representation.features.forward import Forward


class ModelFeatures:
    """Features of one block of a run's network: means over the tokens of each modality, concatenated.

    Each modality is scaled to a mean square of 1. The features describe a component as a whole, such as a video with
    its audio. Distances of these features compare samplers of one checkpoint, not two runs.

    Args:
      apply: model as (params, tokens, levels, label, assignment, taps=, stop_at=) -> `Output`.
      modalities: modalities of the component.
      block: number of the block, from 1.
      tau: noise level of the latents.
      null_label: label for no class.
      width: D, channels of the residual stream.

    Attributes: as of `extractors.Extractor`; `medium` names all modalities.
    """

    def __init__(
        self,
        apply: Callable[..., Output],
        modalities: dict[str, Modality],
        block: int,
        tau: float,
        null_label: int,
        width: int,
    ):
        self.name = f"layer{block}"
        self.distance = f"FD-{self.name}"
        self.medium = "+".join(modalities)
        self.identity = ""
        self.width = width * len(modalities)
        self._params, self._block, self._tau, self._names = None, block, tau, sorted(modalities)
        self._forward = Forward(apply, modalities, (block,), tau, null_label)

    def with_params(self, params: Any, identity: str) -> Self:
        """Returns a copy with parameters of the model.

        Args:
          params: parameters of the model.
          identity: unique name of these parameters, such as RUN and step.
        """
        other = copy.copy(self)
        other._params = params
        other.identity = f"{self.name} at tau {self._tau:g} of {identity}, {self.medium}"
        return other

    def __call__(self, latents: Mapping[str, np.ndarray]) -> np.ndarray:
        """Computes features of latents {modality: [B, ...]}, float32 [B, D]. All samples share the same noise."""
        indices = np.zeros(len(latents[self._names[0]]), int)
        features = self._forward(self._params, latents, indices)[self._block]
        scaled = []
        for m in self._names:
            # The kernel of KID, (x.y / D + 1)^3, expects features of order 1.
            rms = np.sqrt(np.mean(np.square(features[m]), axis=1, keepdims=True) + 1e-12)
            scaled.append(features[m] / rms)
        return np.concatenate(scaled, axis=1)
