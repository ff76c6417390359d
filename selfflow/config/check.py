"""What must hold between the fields of an experiment."""

from typing import TYPE_CHECKING, Any

from selfflow.context import CASES
from selfflow.errors import UserError
from selfflow.input.controls import delays
from selfflow.input.mixture import check_mixture
from selfflow.modality import modality_of
from selfflow.models.sit import SiTConfig

if TYPE_CHECKING:
    from selfflow.config.experiment import Experiment


def check_experiment(experiment: "Experiment") -> None:
    """Raises `UserError`, naming the field, unless the fields of a resolved experiment fit together."""
    modalities = experiment.modalities()
    check_mixture(experiment.mixture, experiment.curriculum)
    for name, component in experiment.mixture.items():
        where = f"mixture.{name}"
        for m in component.modalities:
            if m not in modalities:
                raise UserError(f"{where}.modalities names {m}, which has no autoencoder: add autoencoders.{m}")
            if m not in experiment.data[component.data].media_shapes():
                raise UserError(f"{where}.modalities names {m}, which data.{component.data} does not have")
            if hasattr(experiment.schedule, "mask_ratio") and m not in experiment.schedule.mask_ratio:
                raise UserError(f"schedule.mask_ratio has no entry for {m}, which {where} uses: add one")
        for control, named in (("shuffled", component.shuffled), ("delayed", component.delayed)):
            for m in named:
                if m not in component.modalities:
                    raise UserError(
                        f"{where}.{control} names {m}, which the component lacks: {', '.join(component.modalities)}"
                    )
                if control == "delayed" and not modalities[m].period:
                    raise UserError(f"{where}.delayed names {m}, which lasts no time: name video or audio")
        streams = experiment.modalities(name)
        delays(component, streams, where)
        if not component.modalities or len(set(component.modalities)) < len(component.modalities):
            raise UserError(f"{where}.modalities is {component.modalities}: name each modality once")
        if component.batch_size < 1:
            raise UserError(f"{where}.batch_size is {component.batch_size}: it must be at least 1")
        if component.batch_size % experiment.optimizer.accumulate:
            raise UserError(
                f"{where}.batch_size {component.batch_size} is not a multiple of optimizer.accumulate "
                f"{experiment.optimizer.accumulate}"
            )
        if experiment.separation:
            experiment.separation.check(component.batch_size // experiment.optimizer.accumulate, where)
        if isinstance(experiment.model, SiTConfig):
            experiment.model.check(streams, f"{where}.modalities")
    for name in experiment.latents:
        if name not in experiment.data:
            raise UserError(f"latents.{name}: no such data set; there are {', '.join(experiment.data)}")
    if bool(experiment.text) != (experiment.model.text > 0):
        raise UserError("text and model.text go together: the encoder, and how many channels its embeddings have")
    if experiment.separation and not hasattr(experiment.schedule, "mask_ratio"):
        raise UserError(
            f"separation needs masked tokens, which schedule {experiment.schedule.kind} does not have: remove it"
        )
    if experiment.separation and experiment.schedule.mask != "exact":
        raise UserError("separation needs groups of one size: take schedule.mask exact, or remove separation")
    if experiment.separation and experiment.schedule.context:
        raise UserError("schedule.context and separation exclude each other (context has no group): leave one empty")
    _check_context(experiment)
    if getattr(experiment.model, "scalars", ()):
        raise UserError(f"model.scalars is {experiment.model.scalars}: no record has them; leave it empty")
    for m in experiment.modality_weight:
        if m not in modalities:
            raise UserError(f"modality_weight.{m}: no such modality; there are {', '.join(modalities)}")
    components = {m: name for name, component in experiment.mixture.items() for m in component.modalities}
    experiment.alignment.check(experiment.model.depth, experiment.model.width, components)
    if bool(experiment.label) != (experiment.model.labels > 0):
        raise UserError("label and model.labels go together: the field's name, and how many classes it has")
    if not 0 <= experiment.condition_drop <= 1:
        raise UserError(f"condition_drop is {experiment.condition_drop}: give a number from 0 to 1")
    if not 0 <= experiment.ema_decay < 1:
        raise UserError(f"ema_decay is {experiment.ema_decay}: give a number from 0 to below 1")
    check_length(experiment)


def check_length(experiment: Any) -> None:
    """Raises `UserError` unless what is traced and the learning rate fit the length of the run."""
    traced = experiment.profile.step_range()
    if traced and traced[-1] > experiment.steps:
        raise UserError(
            f"profile.steps {experiment.profile.steps} goes beyond the {experiment.steps} steps of the run: trace "
            "earlier ones"
        )
    experiment.optimizer.schedule()
    if experiment.optimizer.decay == "cosine" and experiment.steps > experiment.optimizer.decay_steps:
        raise UserError(
            f"steps is {experiment.steps}, but the cosine rate reaches 0 at optimizer.decay_steps "
            f"{experiment.optimizer.decay_steps}: nothing is learned after it; start another run with --init-from"
        )


def _check_context(experiment: "Experiment") -> None:
    """A case that no component of the mixture can have would never be trained."""
    sets = [experiment.modalities(name) for name in experiment.mixture]
    possible = {
        "modality": any(len(streams) > 1 for streams in sets),
        "first_frame": any(modality_of(m) == "video" for streams in sets for m in streams),
        "prefix": any(x.period for streams in sets for x in streams.values()),
        "inpaint_time": any(x.period for streams in sets for x in streams.values()),
        "inpaint_region": any(len(x.grid) > 1 for streams in sets for x in streams.values()),
    }
    for case, probability in experiment.schedule.context.items():
        if probability and not possible[case]:
            raise UserError(f"schedule.context.{case} ({CASES[case]}): no component has it; remove it")
