"""Shapes of the samples of each component: latents for flow matching, media for an autoencoder."""

from typing import NamedTuple

from selfflow.autoencoders.config import AnyAutoencoder
from selfflow.config.autoencoder_experiment import AutoencoderExperiment
from selfflow.config.experiment import Experiment
from selfflow.data.catalogue import AnyDataset
from selfflow.errors import UserError
from selfflow.input.media_batches import Cut
from selfflow.input.mixture import Component
from selfflow.media import medium_of
from selfflow.modality import Modality
from selfflow.models.sit import SiTConfig


class MediaSpec(NamedTuple):
    """Shape of a clip of raw media, and its frames or samples per second; 0 for images."""

    shape: tuple[int, ...]
    rate: float


def all_streams(experiment: Experiment) -> dict[str, Modality]:
    """Returns the latent stream of each modality, for clips of the length of the first data set that has it.

    For imported weights, which have no data, the stream `image` has the input size of the SiT.

    Raises:
      UserError: naming the field, if a modality has no data or no patch, or its latents differ in shape between data
        sets.
    """
    if not experiment.data and isinstance(experiment.model, SiTConfig):
        size, patch = experiment.model.input_size, experiment.model.patch_size
        return {"image": Modality((size, size, experiment.model.channels), (patch, patch))}
    streams = {}
    for m, autoencoder in experiment.autoencoders.items():
        if m not in experiment.patch:
            raise UserError(f"patch has no entry for {m}: add one")
        by_dataset = {}
        for name, data in experiment.data.items():
            if m in data.media_shapes():
                by_dataset[name] = modality_stream(data, m, autoencoder, experiment.patch[m])
        if not by_dataset:
            available = sorted(set().union(*(data.media_shapes() for data in experiment.data.values())))
            raise UserError(f"autoencoders.{m}: no data set has {m}; they have {', '.join(available)}")
        _check_alike(m, by_dataset)
        streams[m] = next(iter(by_dataset.values()))
    return streams


def component_streams(experiment: Experiment, name: str) -> dict[str, Modality]:
    """Returns the latent streams of a component, for clips of its length.

    Raises:
      UserError: naming the field, if a modality of the component has no autoencoder or is not in its data set.
    """
    component, data = experiment.mixture[name], experiment.dataset_of(name)
    for m in component.modalities:
        if m not in experiment.autoencoders:
            raise UserError(f"mixture.{name}.modalities names {m}, which has no autoencoder: add autoencoders.{m}")
        if m not in data.media_shapes():
            raise UserError(f"mixture.{name}.modalities names {m}, which data.{component.data} does not have")
    streams = {}
    for m, autoencoder in experiment.autoencoders.items():
        if m in component.modalities:
            streams[m] = modality_stream(data, m, autoencoder, experiment.patch[m], component, name)
    return streams


def component_media(experiment: Experiment, name: str) -> dict[str, MediaSpec]:
    """Returns shape and rate of the media of a component by modality, for clips of its length."""
    component, data = experiment.mixture[name], experiment.dataset_of(name)
    return {m: _media(data, m, component, name) for m in component.modalities}


def modality_stream(
    data: AnyDataset,
    m: str,
    autoencoder: AnyAutoencoder,
    patch: tuple[int, ...],
    component: Component | None = None,
    name: str = "",
) -> Modality:
    """Returns the latent stream of a modality of a data set.

    Args:
      data: the data set.
      m: the modality.
      autoencoder: autoencoder that encodes it.
      patch: latent positions in one token.
      component: component that sets the length of the clips; by default the length of the data set's clips.
      name: name of the component.

    Raises:
      UserError: if the autoencoder does not fit the modality or its rate.
    """
    if m not in autoencoder.modalities:
        remedy = "name another"
        if hasattr(autoencoder, "images_only"):
            remedy = "set its images_only and stride (0 for audio), or name another"
        raise UserError(
            f"autoencoders.{m} is {autoencoder.kind}, which is for {' and '.join(autoencoder.modalities)}: {remedy}"
        )
    media = _media(data, m, component, name)
    rate = getattr(autoencoder, "sample_rate", 0)
    if rate and rate != media.rate:
        raise UserError(
            f"autoencoders.{m}.sample_rate is {rate}, but {data.kind} has {media.rate:g} samples a second: give the "
            "data that rate, or take another autoencoder"
        )
    frame = 100 / media.rate if media.rate else 0.0  # in units of 10 ms
    # Causal padding precedes the clip, so that the first latent frame starts at a negative time.
    offset = (0.0 - autoencoder.causal_padding * frame, 0.0, 0.0, 0.0)
    return Modality(autoencoder.latent_shape(media.shape), tuple(patch), frame * autoencoder.temporal_stride, offset)


def component_cuts(experiment: AutoencoderExperiment) -> dict[str, Cut]:
    """Returns crop and length of the samples of each component that an autoencoder is trained on.

    Raises:
      UserError: naming the field that does not fit the network.
    """
    return {name: _cut(experiment, name) for name in experiment.mixture}


def audio_rate(experiment: AutoencoderExperiment) -> float:
    """Returns the sample rate of the audio in Hz; 0 for images and video.

    Raises:
      UserError: if the data sets have different sample rates.
    """
    if experiment.network.is_visual:
        return 0.0
    rates = {float(experiment.dataset_of(name).sample_rate) for name in experiment.mixture}
    if len(rates) > 1:
        raise UserError(f"the data sets have {' and '.join(f'{rate:g}' for rate in sorted(rates))} Hz: give all one")
    return rates.pop()


def _media(data: AnyDataset, m: str, component: Component | None, name: str) -> MediaSpec:
    shape = data.media_shapes()[m]
    rate = medium_of(m).rate(data)
    if rate and component and component.seconds is not None:
        shape = (component.length(rate, m, name), *shape[1:])
    return MediaSpec(shape, rate)


def _check_alike(m: str, streams: dict[str, Modality]) -> None:
    """Raises `UserError` unless the latents of all data sets have the same rate and, except for length, shape."""
    (first, expected), *others = streams.items()
    timed = 1 if expected.period else 0  # the first axis is time, which may differ
    for name, stream in others:
        if stream.period != expected.period or stream.latent[timed:] != expected.latent[timed:]:
            raise UserError(
                f"data.{name}: its {m} gives latents {stream.latent} with a period of {stream.period:g}, that of "
                f"data.{first} {expected.latent} and {expected.period:g}: give both one size, frames_per_second and "
                "sample_rate"
            )


def _cut(experiment: AutoencoderExperiment, name: str) -> Cut:
    network, component, data = experiment.network, experiment.mixture[name], experiment.dataset_of(name)
    where = f"mixture.{name}"
    if len(component.modalities) != 1:
        raise UserError(f"{where}.modalities is {component.modalities}: a component of an autoencoder has one modality")
    (m,) = component.modalities
    if data.holds_latents:
        raise UserError(f"{where}: {data.kind} has latents alone, and an autoencoder is trained on media")
    if m not in data.media_shapes():
        raise UserError(f"{where}.modalities names {m}, which {data.kind} does not have")
    medium, media = medium_of(m), _media(data, m, component, name)
    if not (medium.is_visual if network.is_visual else medium.is_audio):
        kind = "images and video" if network.is_visual else "audio"
        raise UserError(f"{where}.modalities names {m}, but the strides of the network are those of {kind}")

    length = media.shape[0] if medium.has_time else 1
    stride, padding = network.downsampling[0], network.causal_padding
    if (length + padding) % stride or length < 1:
        fitting = max((length + padding) // stride, 1) * stride - padding
        remedy = f"set seconds to {fitting / media.rate}" if medium.has_time else "remove this component"
        raise UserError(
            f"{where}: clips of {length} {medium.unit} do not fit the network, whose latent frames are {stride} of "
            f"them{', the first 1' if padding else ''}: {remedy}"
        )
    if not medium.is_visual:
        return Cut(length, 0, (length, 1))
    side = min(media.shape[-3:-1]) if experiment.side is None else experiment.side
    if side < 1 or side % network.downsampling[1]:
        raise UserError(f"side {side}: the network's strides of {network.downsampling[1]} do not divide it")
    return Cut(length if medium.has_time else 0, side, (length, side, side, 3))
