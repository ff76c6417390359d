"""Sampling from a run, with context from files or from the run's data."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import numpy as np

from selfflow.autoencoders.config import Autoencoder, can_decode
from selfflow.encoders.load import cached_text_encoder
from selfflow.errors import UserError
from selfflow.input.reader import padded_caption
from selfflow.modality import modality_of
from selfflow.models.joint import Caption
from selfflow.run.context_files import conditioned_modalities, encode_files
from selfflow.sampling.context_spec import (
    ContextRequest,
    check_trained,
    choose_component,
    merge_requests,
    parse_context,
)
from selfflow.sampling.generate import Condition, Generator, Sampler, check_finite
from selfflow.sampling.solvers import LAST_TAU

if TYPE_CHECKING:
    from selfflow.config.experiment import Experiment
    from selfflow.config.setup import FlowSetup
    from selfflow.input.reader import Reader


class Samples(NamedTuple):
    """A batch of samples.

    Attributes:
      numbers: numbers of the samples, int [B].
      latents: latents {modality: float32 [B, ...]}.
      media: decoded media {modality: [B, ...]}; empty if the run has no autoencoder.
    """

    numbers: np.ndarray
    latents: dict[str, np.ndarray]
    media: dict[str, np.ndarray]


@dataclass(frozen=True)
class SampleRequest:
    """Modalities and conditioning of samples to draw from a run.

    Attributes:
      modalities: modalities to generate; together with the modalities of the context they must form a component of the
        run. By default the modalities of the first component.
      context: context of the samples, in the syntax of the flag `--context`.
      sampler: settings of the solver; by default `experiment.sampler`.
      label: class label of all samples; by default a random one for each sample, if the model has labels.
      caption: caption of all samples, for runs with captions; empty for none.
    """

    modalities: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    sampler: Sampler | None = None
    label: int | None = None
    caption: str = ""


class SampledRun(Protocol):
    """Protocol with the members of `selfflow.run.run.Run` that sampling uses.

    Attributes:
      setup: setup of the experiment.
      source: path or URL of the run.
    """

    setup: "FlowSetup"
    source: str

    def autoencoder(self, modality: str) -> Autoencoder:
        """Returns the autoencoder of a modality."""
        ...


class RunSampler:
    """Draws samples from a run.

    Args:
      run: the run.
      request: samples to draw.
      weights: parameters of the model, such as the EMA, on the devices of the mesh.
      reader: function component -> reader of its clips; called only if context is taken from the run's data.
      mesh: devices over which samples are sharded; by default only the first device.

    Attributes:
      component: name of the component of the mixture; "image" for imported weights.
      modalities: streams of the component.
      media: shape and rate of each modality's media; empty if the run has no autoencoder.

    Raises:
      UserError: naming the flag, if the run was not trained for the request or a file is not suitable.
    """

    def __init__(
        self,
        run: SampledRun,
        request: SampleRequest,
        weights: Any,
        reader: "Callable[[str], Reader] | None" = None,
        mesh: jax.sharding.Mesh | None = None,
    ):
        setup, experiment = run.setup, run.setup.experiment
        self._experiment, self._request, self._weights = experiment, request, weights

        # The component and its context.
        components = {name: component.modalities for name, component in experiment.mixture.items()}
        components = components or {"image": ("image",)}
        self.component, self._context = choose_component(
            request.modalities, _parse_contexts(request, components), components
        )
        # Imported weights have no mixture: the streams are taken from the objective.
        streams = setup.modalities.get(self.component) or setup.objective.modalities
        self.modalities = {m: streams[m] for m in components[self.component]}
        check_trained(self._context, self.modalities, experiment.schedule.context)
        self._masks = merge_requests(self._context, self.modalities)

        # Media of the samples, and clean latents of the context.
        media = setup.media.get(self.component, {})
        self.media = {m: shape for m, shape in media.items() if can_decode(experiment.autoencoders[m])}
        if not self.media and any(part.file for part in self._context):
            raise UserError(f"--context: {run.source} has no autoencoder, which is needed to read a file")
        self._autoencoders = {m: run.autoencoder(m) for m in self.media}
        self._reader = reader(self.component) if any(part.file is None for part in self._context) else None
        self._latents = encode_files(self._context, self.modalities, self.media, self._autoencoders)
        self._unreadable: set[int] = set()  # records that a warning was printed for

        # Caption and solver.
        self._caption = _encode_caption(experiment, request.caption)
        sampler = request.sampler or experiment.sampler
        # Sampling starts from noise, or from latents at the level of a request such as image@0.6.
        start = max((part.level for part in self._context), default=0.0) or 1.0
        self._check_solver(sampler, start)
        self._generate = Generator(
            setup.objective.apply, self.modalities, sampler, experiment.model.labels, start, mesh
        )

    def _check_solver(self, sampler: Sampler, start: float) -> None:
        """Raises `UserError` unless label, guidance and solver fit the run and the level at which sampling starts."""
        labels, label = self._experiment.model.labels, self._request.label
        if label is not None and not 0 <= label < labels:
            choices = f"0 to {labels - 1}" if labels else "no labels"
            raise UserError(f"--label {label}: this run has {choices}")
        if sampler.guidance != 1 and not labels and self._caption is None:
            raise UserError(
                f"sampler.guidance is {sampler.guidance}: guidance requires labels or a caption, and these samples "
                "have neither; leave it at 1"
            )
        if sampler.solver == "euler_maruyama" and start <= LAST_TAU:
            raise UserError(f"--context @{start:g}: euler_maruyama starts above its last step, {LAST_TAU}; take euler")

    def batches(self, numbers: np.ndarray, seed: int, batch_size: int = 16) -> Iterator[Samples]:
        """Yields the samples with the given numbers in batches; sample i depends only on the seed and i."""
        size = min(batch_size, len(numbers))
        for start in range(0, len(numbers), max(size, 1)):
            batch = numbers[start : start + size]
            # The last batch is padded to the size of the others, so that only one program is compiled.
            padded = np.append(batch, np.repeat(batch[:1], size - len(batch)))
            latents = self._generate(self._weights, self._condition(padded, seed), seed, padded)
            latents = {m: x[: len(batch)] for m, x in latents.items()}
            check_finite(latents, batch)
            yield Samples(batch, latents, self.decode(latents))

    @property
    def fully_conditioned(self) -> tuple[str, ...]:
        """Modalities whose tokens are all context."""
        return tuple(m for m, mask in self._masks.items() if mask.all())

    def decode(self, latents: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Decodes latents to raw media; returns {} if the run has no autoencoder."""
        return {m: autoencoder.decode(latents[m]) for m, autoencoder in self._autoencoders.items()}

    def _condition(self, numbers: np.ndarray, seed: int) -> Condition:
        """Returns labels, captions and context of the samples with the given numbers."""
        count = len(numbers)
        records = [] if self._reader is None else self._records(numbers)
        clean = {m: np.stack([x] * count) for m, x in self._latents.items()}
        for part in self._context:
            if part.file is None:
                for m in conditioned_modalities(part, self.modalities):
                    clean[m] = np.stack([record["latents"][m] for record in records])
        masks = {m: np.tile(mask, (count, 1)) for m, mask in self._masks.items()}
        return Condition(self._labels(numbers, seed, records), self._captions(count, records), clean, masks)

    def _labels(self, numbers: np.ndarray, seed: int, records: list[dict[str, Any]]) -> np.ndarray:
        """Returns class labels [B]: the requested label, the label of the context, or a random one for each sample."""
        null = self._experiment.model.labels  # label for no class
        label_B = np.full(len(numbers), null)
        if self._request.label is not None:
            label_B[:] = self._request.label
        elif null and records:
            label_B = np.array([record["label"] if record["label"] >= 0 else null for record in records])
        elif null and self._caption is None:
            generators = [np.random.default_rng([seed % 2**32, int(number)]) for number in numbers]
            label_B = np.array([generator.integers(null) for generator in generators])
        return label_B

    def _captions(self, count: int, records: list[dict[str, Any]]) -> Caption | None:
        """Returns the requested caption, or the captions of the context; None without any."""
        if self._caption is not None:
            embedding, mask = self._caption
            return Caption(np.stack([embedding] * count), np.stack([mask] * count))
        if records and "caption" in records[0]:
            embeddings, masks = zip(*(record["caption"] for record in records))
            return Caption(np.stack(embeddings), np.stack(masks))
        return None

    def _records(self, numbers: np.ndarray) -> list[dict[str, Any]]:
        """Returns the context records: sample i uses record i modulo their number, or the next readable one."""
        return [self._next_readable(int(number)) for number in numbers]

    def _next_readable(self, first: int) -> dict[str, Any]:
        records = self._reader.records
        for place in range(first, first + len(records)):
            record = int(records[place % len(records)])
            sample = self._reader(record)
            if sample["weight"]:
                return sample
            if record not in self._unreadable:
                self._unreadable.add(record)
                reason = ": ".join(self._reader.why(record))
                print(f"warning: a record of the context is unreadable, the next is used: {reason}", file=sys.stderr)
        raise UserError(f"--context: no record of {self.component} is readable: run `selfflow data verify`")


def _parse_contexts(request: SampleRequest, components: dict[str, tuple[str, ...]]) -> tuple[ContextRequest, ...]:
    """Parses the context of a request; raises `UserError` for modalities that no component has."""
    known = list(dict.fromkeys(m for modalities in components.values() for m in modalities))
    for m in request.modalities:
        if m not in known:
            raise UserError(f"--modality {m}: this run has {', '.join(known)}")
    # An image can be the first frame of a video even if the run has no images.
    if "image" not in known and any(modality_of(m) == "video" for m in known):
        known.append("image")
    return tuple(parse_context(text, tuple(known)) for text in request.context)


def _encode_caption(experiment: "Experiment", text: str) -> tuple[np.ndarray, np.ndarray] | None:
    if not text:
        return None
    if experiment.text is None:
        raise UserError(f"--caption {text!r}: this run was trained without captions")
    (embedding,) = cached_text_encoder(experiment.text).encode([text])
    return padded_caption(embedding, experiment.text.tokens, experiment.model.text)
