"""Interfaces of runs and of their clips; `selfflow.run` implements them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from selfflow.modality import Modality


class LabelledClips(Protocol):
    """Latents of clips, such as `selfflow.run.data.Clips` or `features.arrays.Arrays`.

    Attributes:
      ids: ids of the clips.
      labels: {field: int [n]}; -1 for none.
      shapes: {modality: shape of the latent of a whole clip}.
      identity: unique name of these latents.
    """

    ids: list[str]
    labels: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    identity: str

    def __len__(self) -> int: ...

    def latents(self, i: int) -> dict[str, np.ndarray]:
        """Returns the latents of clip i, {modality: [...]}."""
        ...


class ComponentClips(LabelledClips, Protocol):
    """Clips of one component in one split, `selfflow.run.data.Clips`.

    Attributes:
      component: name of the component.
      split: split of its data set.
      modalities: the streams of the component.
    """

    component: str
    split: str
    modalities: "dict[str, Modality]"

    def record(self, i: int) -> Mapping[str, Any]:
        """See `RecordedClips.record`."""
        ...


class RecordedClips(Protocol):
    """Clips whose raw records can be read.

    Attributes: as of `LabelledClips`.
    """

    ids: list[str]
    labels: dict[str, np.ndarray]

    def record(self, i: int) -> Mapping[str, Any]:
        """Reads the raw record of clip i.

        Raises:
          BadRecord: if it cannot be read.
        """
        ...


class OpenRun(Protocol):
    """An opened run, `selfflow.run.run.Run`.

    Attributes:
      name: name of its folder.
      path: folder of the run; for a run in object storage a local copy.
      source: path or URL.
      experiment: resolved `Experiment` of the run.
      objective: `FlowObjective` of its training; views and health need `SelfFlowObjective`.
    """

    name: str
    path: Path
    source: str
    experiment: Any
    objective: Any

    def model(self, weights: str = "ema", step: int | None = None, mesh: "Mesh | None" = None) -> Any:
        """Loads the network of the run, `selfflow.run.model.Model`."""
        ...

    def weights(self, step: int | None = None, mesh: "Mesh | None" = None) -> Any:
        """Loads the parameters and frozen trees of a checkpoint, `selfflow.training.state.State`."""
        ...

    def autoencoder(self, modality: str) -> Any:
        """Loads the autoencoder of a modality."""
        ...

    def data(self, split: str, component: str | None = None, data_dir: str | Path | None = None) -> LabelledClips:
        """Returns the clips of a component in a split of its data."""
        ...
