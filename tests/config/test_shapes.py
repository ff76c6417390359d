"""Shapes of the samples of components."""

import dataclasses

import pytest

from selfflow.config.files import load_experiment
from selfflow.config.shapes import component_cuts
from selfflow.data.collisions import Collisions
from selfflow.errors import UserError
from tests.conftest import ROOT, mentions


@dataclasses.dataclass(frozen=True)
class WithAction(Collisions):
    """Collisions with actions as a modality."""

    def media_shapes(self, folder=None):
        return super().media_shapes(folder) | {"action": (self.frames, 4)}


def test_an_autoencoder_of_waveforms_is_not_trained_on_actions():
    experiment = load_experiment(ROOT / "experiments" / "autoencoder_audio.py", autoencoders=True)
    (name,) = experiment.mixture
    component = experiment.mixture[name]
    data = {component.data: WithAction()}
    mixture = {name: dataclasses.replace(component, modalities=("action",))}
    with pytest.raises(UserError, match=mentions(f"mixture.{name}.modalities action audio")):
        component_cuts(dataclasses.replace(experiment, data=data, mixture=mixture))
