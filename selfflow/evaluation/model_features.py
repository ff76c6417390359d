"""The run's own features: what a block of its network makes of latents."""

import copy
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from selfflow.modality import Modality
from selfflow.models.joint import Output
from selfflow.representation.features.forward import Forward


class OwnLayer:
    """Features of a block of a run's network: the means over the tokens of each modality of a component, side by side,
    each scaled to a mean square of 1.

    They see a component as a whole, a video with its audio, and mean something for these weights alone: distances on
    them compare sampling of one checkpoint, not two runs.

    Args:
      apply: model as (params, tokens, levels, label, assignment, taps=, stop_at=) -> `Output`.
      modalities: those of the component.
      layer: the block, counted from 1.
      tau: noise level of the latents.
      null_label: the label that stands for none.
      width: D, channels of the residual stream.

    Attributes: as `extractors.Extractor` has them; `medium` is the component.
    """

    def __init__(
        self,
        apply: Callable[..., Output],
        modalities: dict[str, Modality],
        layer: int,
        tau: float,
        null_label: int,
        width: int,
    ):
        self.name = f"layer{layer}"
        self.distance = f"FD-{self.name}"
        self.medium = "+".join(modalities)
        self.identity = ""
        self.width = width * len(modalities)
        self._params, self._layer, self._tau, self._names = None, layer, tau, sorted(modalities)
        self._forward = Forward(apply, modalities, (layer,), tau, null_label)

    def of(self, params: Any, weights: str) -> Self:
        """The same with parameters of the model, and what tells these from others, such as RUN and step."""
        other = copy.copy(self)
        other._params = params
        other.identity = f"{self.name} at tau {self._tau:g} of {weights}, {self.medium}"
        return other

    def __call__(self, latents: dict[str, np.ndarray]) -> np.ndarray:
        """Latents {modality: [B, ...]} -> features float32 [B, D]; all are noised alike, so that none depends on B."""
        numbers = np.zeros(len(latents[self._names[0]]), int)
        found = self._forward(self._params, latents, numbers)[self._layer]
        # Of the size of 1, which KID's kernel is made for.
        scaled = [
            x / np.sqrt(np.mean(np.square(x), axis=1, keepdims=True) + 1e-12) for x in map(found.get, self._names)
        ]
        return np.concatenate(scaled, axis=1)
