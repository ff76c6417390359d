"""Resolution of an experiment: fills in derived fields and validates all fields."""

import dataclasses
from typing import Any, overload

from selfflow.config.autoencoder_experiment import AutoencoderExperiment
from selfflow.config.check import check_autoencoder, check_components, check_flow, check_length
from selfflow.config.experiment import Experiment
from selfflow.config.setup import AutoencoderSetup, FlowSetup, setup_of
from selfflow.config.training import TrainingConfig
from selfflow.errors import UserError, check_at_least, did_you_mean
from selfflow.input.mixture import Component
from selfflow.latents.ids import hash_ids, read_ids
from selfflow.training.state import ema_decay_for


@overload
def resolve(experiment: Experiment, previous: Experiment | None = None) -> FlowSetup: ...
@overload
def resolve(experiment: AutoencoderExperiment, previous: AutoencoderExperiment | None = None) -> AutoencoderSetup: ...
def resolve(experiment, previous=None):
    """Fills in the derived fields of an experiment, validates it and returns its setup.

    Args:
      experiment: the experiment, as defined by its file and flags.
      previous: experiment of the run that is resumed. Fields that depend on the number of steps keep its values, so
        that a longer run computes the same steps.

    Raises:
      UserError: naming the field, if the experiment is invalid.
    """
    if not experiment.data:
        raise UserError("data is empty: name at least one data set; imported weights are started from with init_from")
    check_at_least(experiment, "", steps=1)
    derived = _derived_fields(experiment, previous)
    experiment = dataclasses.replace(experiment, **derived)
    check_components(experiment)
    setup = setup_of(experiment)
    if isinstance(setup, FlowSetup):
        check_flow(setup)
    else:
        check_autoencoder(setup)
    check_length(experiment)
    return setup


def _derived_fields(experiment: TrainingConfig, previous: TrainingConfig | None) -> dict[str, Any]:
    """Returns the derived fields that all kinds of experiments have."""
    ema_decay = experiment.ema_decay
    if ema_decay is None:
        ema_decay = previous.ema_decay if previous else ema_decay_for(experiment.steps)
    init_from = experiment.init_from
    if previous and init_from and previous.init_from.startswith(f"{init_from}:"):
        init_from = previous.init_from  # with the step that RUN had when the run started
    exclude_hash = hash_ids(read_ids(experiment.exclude)) if experiment.exclude else ""
    if experiment.exclude_hash not in ("", exclude_hash):
        raise UserError(
            f"exclude_hash is {experiment.exclude_hash}, but that of the file {experiment.exclude} is {exclude_hash}"
        )
    # A data set may read its media's shapes from a folder; a resumed run does not need the folder.
    before = previous.data if previous else {}
    return {
        "data": {name: data.resolved(before.get(name)) for name, data in experiment.data.items()},
        "ema_decay": ema_decay,
        "optimizer": experiment.optimizer.resolved(experiment.steps, previous.optimizer if previous else None),
        "init_from": init_from,
        "exclude_hash": exclude_hash,
        "mixture": {name: _with_data(experiment, name) for name in experiment.mixture},
    }


def _with_data(experiment: TrainingConfig, name: str) -> Component:
    """Returns a component with the name of its data set filled in."""
    component, datasets = experiment.mixture[name], experiment.data
    if not component.data and len(datasets) > 1:
        raise UserError(f"mixture.{name}.data is empty: name one of {', '.join(datasets)}")
    data = component.data or next(iter(datasets))
    if data not in datasets:
        raise UserError(f"mixture.{name}.data names {data}, which is not in data; {did_you_mean(data, datasets)}")
    return dataclasses.replace(component, data=data)
