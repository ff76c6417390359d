"""Validation that involves several fields of an experiment."""

from selfflow.config.experiment import Experiment
from selfflow.config.setup import AutoencoderSetup, FlowSetup
from selfflow.config.training import TrainingConfig
from selfflow.context import CASES
from selfflow.errors import UserError, check_at_least, check_fraction
from selfflow.input.controls import delays
from selfflow.input.mixture import check_mixture
from selfflow.modality import Modality, modality_of
from selfflow.models.sit import SiTConfig
from selfflow.objectives.alignment import NoAlignment


def check_components(experiment: TrainingConfig) -> None:
    """Raises `UserError`, naming the field, unless weights, batch sizes and stages of the mixture are valid."""
    check_fraction(experiment, "", "ema_decay", below_one=True)
    check_mixture(experiment.mixture, experiment.curriculum)
    parts = experiment.optimizer.accumulate
    for name, component in experiment.mixture.items():
        where = f"mixture.{name}"
        if not component.modalities or len(set(component.modalities)) < len(component.modalities):
            raise UserError(f"{where}.modalities is {component.modalities}: name each modality once")
        if component.batch_size < 1 or component.batch_size % parts:
            raise UserError(
                f"{where}.batch_size is {component.batch_size}: give a multiple of optimizer.accumulate {parts}"
            )


def check_length(experiment: TrainingConfig) -> None:
    """Raises `UserError` unless profiled steps and the learning rate schedule fit the length of the run."""
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
            f"{experiment.optimizer.decay_steps}: the model does not train after it; start another run with --init-from"
        )


def check_flow(setup: FlowSetup) -> None:
    """Raises `UserError`, naming the field, unless the fields of a flow-matching experiment fit together."""
    experiment, modalities = setup.experiment, setup.objective.modalities
    for name, streams in setup.modalities.items():
        _check_component(experiment, name, streams)
    for name in experiment.latents:
        if name not in experiment.data:
            raise UserError(f"latents.{name}: no such data set; choose from {', '.join(experiment.data)}")
    if bool(experiment.text) != (experiment.model.text > 0):
        raise UserError("set both text and model.text, the encoder and the channels of its embeddings, or neither")
    if bool(experiment.label) != (experiment.model.labels > 0):
        raise UserError("set both label and model.labels, the field's name and its number of classes, or neither")
    if getattr(experiment.model, "scalars", ()):
        raise UserError(f"model.scalars is {experiment.model.scalars}: no record has them; leave it empty")
    for m in experiment.modality_weight:
        if m not in modalities:
            raise UserError(f"modality_weight.{m}: no such modality; choose from {', '.join(modalities)}")
    check_fraction(experiment, "", "condition_drop")
    _check_unused(experiment)
    _check_separation(experiment)
    _check_context(setup)
    components: dict[str, str] = {}  # the last component with each modality
    for name, component in experiment.mixture.items():
        components |= dict.fromkeys(component.modalities, name)
    experiment.alignment.check(experiment.model.depth, experiment.model.width, components)


def check_autoencoder(setup: AutoencoderSetup) -> None:
    """Raises `UserError`, naming the field, unless the fields of an autoencoder's experiment fit together."""
    experiment, loss = setup.experiment, setup.experiment.loss
    check_at_least(experiment, "", held_out=1)
    for name, component in experiment.mixture.items():
        if component.shuffled or component.delayed:
            raise UserError(f"mixture.{name}: shuffled and delayed need several modalities; leave them out")
    if experiment.cadence.evaluate_every:
        raise UserError("cadence.evaluate_every evaluates samples, which an autoencoder does not draw: leave it out")
    visual = experiment.network.is_visual
    if visual and loss.spectral:
        raise UserError(f"loss.spectral is {loss.spectral}, but this network is for images and video: set it to 0")
    if not visual and loss.gradient:
        raise UserError(f"loss.gradient is {loss.gradient}, but this network is for audio: set it to 0")
    shortest = min(cut.length for cut in setup.cuts.values())
    if loss.spectral and max(loss.windows) > shortest:
        raise UserError(
            f"loss.windows {loss.windows}: clips have {shortest} samples; give longer clips or shorter windows"
        )


def _check_component(experiment: Experiment, name: str, streams: dict[str, Modality]) -> None:
    component, where = experiment.mixture[name], f"mixture.{name}"
    for m in component.modalities:
        if hasattr(experiment.schedule, "mask_ratio") and m not in experiment.schedule.mask_ratio:
            raise UserError(f"schedule.mask_ratio has no entry for {m}, which {where} uses: add one")
    for control in ("shuffled", "delayed"):
        for m in getattr(component, control):
            if m not in component.modalities:
                raise UserError(
                    f"{where}.{control} names {m}, which the component lacks: {', '.join(component.modalities)}"
                )
    for m in component.delayed:
        if not streams[m].period:
            raise UserError(f"{where}.delayed names {m}, which has no time axis: name video or audio")
    delays(component, streams, where)
    if experiment.separation:
        experiment.separation.check(component.batch_size // experiment.optimizer.accumulate, where)
    if isinstance(experiment.model, SiTConfig):
        experiment.model.check(streams, f"{where}.modalities")


def _check_unused(experiment: Experiment) -> None:
    """Raises `UserError` if a field that the objective does not use is set to anything but its neutral value."""
    objective = experiment.objective
    neutral = {"alignment": NoAlignment(), "modality_weight": {}, "condition_drop": 0.0, "separation": None}
    for name, value in neutral.items():
        if name not in objective.uses and getattr(experiment, name) != value:
            raise UserError(f"{name} has no effect on objective {objective.kind}: set it to {value}")


def _check_separation(experiment: Experiment) -> None:
    if not experiment.separation:
        return
    if not hasattr(experiment.schedule, "mask_ratio"):
        raise UserError(
            f"separation needs masked tokens, which schedule {experiment.schedule.kind} does not have: remove it"
        )
    if experiment.schedule.mask != "exact":
        raise UserError("separation needs groups of one size: take schedule.mask exact, or remove separation")
    if experiment.schedule.context:
        raise UserError("schedule.context and separation exclude each other (context has no group): leave one empty")


def _check_context(setup: FlowSetup) -> None:
    """Raises `UserError` for a case of context that applies to no component and is never trained."""
    components = list(setup.modalities.values())
    streams: list[tuple[str, Modality]] = []
    for component in components:
        streams += component.items()
    possible = {
        "modality": any(len(component) > 1 for component in components),
        "first_frame": any(modality_of(m) == "video" for m, _ in streams),
        "prefix": any(stream.period for _, stream in streams),
        "inpaint_time": any(stream.period for _, stream in streams),
        "inpaint_region": any(len(stream.grid) > 1 for _, stream in streams),
    }
    for case, probability in setup.experiment.schedule.context.items():
        if probability and not possible[case]:
            raise UserError(f"schedule.context.{case} ({CASES[case]}): no component has it; remove it")
