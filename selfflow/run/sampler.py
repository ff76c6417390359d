"""Draws samples from a run, with context from files or from the run's data, as latents and as media."""

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
from selfflow.run.context_files import read_context
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
      numbers: of the samples, [B].
      latents: {modality: float32 [B, ...]}.
      media: {modality: raw media [B, ...]}; empty if the run has no autoencoder.
    """

    numbers: np.ndarray
    latents: dict[str, np.ndarray]
    media: dict[str, np.ndarray]


@dataclass(frozen=True)
class SampleRequest:
    """What to draw from a run.

    Attributes:
      modalities: to generate; with the context they must be those of a component of the run. By default its first.
      context: as the flag `--context` takes it.
      sampler: settings of the solver; by default the run's.
      label: class label; by default each sample draws one, if the run has labels.
      caption: for runs with captions; empty for none.
    """

    modalities: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    sampler: Sampler | None = None
    label: int | None = None
    caption: str = ""


class SampledRun(Protocol):
    """What sampling needs of a run; `selfflow.run.run.Run` has it."""

    setup: "FlowSetup"
    experiment: "Experiment"
    objective: Any
    source: str

    def autoencoder(self, modality: str) -> Autoencoder: ...


class RunSampler:
    """Draws samples from a run.

    Args:
      run: to sample from.
      request: what to draw.
      weights: parameters of the model, such as the EMA, on the devices of the mesh.
      reader: of the clips of a component, by its name; called only if some context comes from the run's data.
      mesh: devices over which samples are sharded; by default the first alone.

    Attributes:
      component: name of the component of the mixture; empty if the weights were imported.
      modalities: its streams.
      media: shape and rate of each modality's media; empty if the run has no autoencoder.

    Raises:
      UserError: naming the flag, if the run was not trained for the request or a file does not fit.
    """

    def __init__(
        self,
        run: SampledRun,
        request: SampleRequest,
        weights: Any,
        reader: "Callable[[str], Reader] | None" = None,
        mesh: jax.sharding.Mesh | None = None,
    ):
        experiment = run.experiment
        self._run, self._request, self._weights = run, request, weights

        # The component, and the context as it applies to it.
        streams = {name: component.modalities for name, component in experiment.mixture.items()}
        streams = streams or {"image": ("image",)}
        known = tuple(dict.fromkeys(m for names in streams.values() for m in names))
        for m in request.modalities:
            if m not in known:
                raise UserError(f"--modality {m}: this run has {', '.join(known)}")
        # An image can be the first frame of a video, also in a run without images.
        if any(modality_of(m) == "video" for m in known) and "image" not in known:
            known += ("image",)
        context = tuple(parse_context(text, known) for text in request.context)
        self.component, self._context = choose_component(request.modalities, context, streams)
        # Imported weights have no mixture, and the modalities of their objective.
        modalities = run.setup.modalities.get(self.component) or run.objective.modalities
        self.modalities = {m: modalities[m] for m in streams[self.component]}
        check_trained(self._context, self.modalities, experiment.schedule.context)
        self._masks = merge_requests(self._context, self.modalities)

        # Media, and clean latents of the context.
        media = run.setup.media.get(self.component, {})
        self.media = {m: shape for m, shape in media.items() if can_decode(experiment.autoencoders[m])}
        if not self.media and any(r.file for r in self._context):
            raise UserError(f"--context: {run.source} has no autoencoder, which is needed to read a file")
        self._autoencoders = {m: run.autoencoder(m) for m in self.media}
        self._reader = reader(self.component) if any(r.file is None for r in self._context) else None
        self._clean = self._encode_files()
        self._unreadable: set[int] = set()

        # Label, caption and solver.
        self._caption = _encode_caption(experiment, request.caption)
        labels, sampler = experiment.model.labels, request.sampler or experiment.sampler
        if request.label is not None and not 0 <= request.label < labels:
            choices = f"0 to {labels - 1}" if labels else "no labels"
            raise UserError(f"--label {request.label}: this run has {choices}")
        if sampler.guidance != 1 and not labels and self._caption is None:
            raise UserError(
                f"sampler.guidance is {sampler.guidance}: it extrapolates from no label and caption to some, and these "
                "samples have neither; leave it at 1"
            )
        start = max((r.level for r in self._context), default=0.0) or 1.0
        if sampler.solver == "euler_maruyama" and start <= LAST_TAU:
            raise UserError(f"--context @{start:g}: euler_maruyama starts above its last step, {LAST_TAU}; take euler")
        self._generate = Generator(run.objective.apply, self.modalities, sampler, labels, start, mesh)

    def batches(self, numbers: np.ndarray, seed: int, batch_size: int = 16) -> Iterator[Samples]:
        """Samples of these numbers in batches; sample i depends on the seed and i alone."""
        size = min(batch_size, len(numbers))
        for start in range(0, len(numbers), max(size, 1)):
            batch = numbers[start : start + size]
            # The last batch is padded to the size of the others, so that one program is compiled.
            padded = np.append(batch, np.repeat(batch[:1], size - len(batch)))
            latents = self._generate(self._weights, self._condition(padded, seed), seed, padded)
            latents = {m: x[: len(batch)] for m, x in latents.items()}
            check_finite(latents, batch)
            yield Samples(batch, latents, self.decode(latents))

    @property
    def fully_conditioned(self) -> tuple[str, ...]:
        """The modalities of which every token is context."""
        return tuple(m for m, mask in self._masks.items() if mask.all())

    def decode(self, latents: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raw media of latents; empty if the run has no autoencoder."""
        return {m: autoencoder.decode(latents[m]) for m, autoencoder in self._autoencoders.items()}

    def _condition(self, numbers: np.ndarray, seed: int) -> Condition:
        count = len(numbers)
        records = [] if self._reader is None else self._records(numbers)
        clean = {m: np.stack([x] * count) for m, x in self._clean.items()}
        if records:
            for m in self._context_modalities(from_file=False):
                clean[m] = np.stack([record["latents"][m] for record in records])
        masks = {m: np.tile(mask, (count, 1)) for m, mask in self._masks.items()}
        return Condition(self._labels(numbers, seed, records), self._captions(count, records), clean, masks)

    def _labels(self, numbers: np.ndarray, seed: int, records: list[dict[str, Any]]) -> np.ndarray:
        """Class labels [B]: the requested one, that of the context, or a random one of each sample."""
        null = self._run.experiment.model.labels
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
        if self._caption is not None:
            return Caption(*(np.stack([x] * count) for x in self._caption))
        if records and "caption" in records[0]:
            return Caption(*(np.stack(parts) for parts in zip(*(record["caption"] for record in records))))
        return None

    def _records(self, numbers: np.ndarray) -> list[dict[str, Any]]:
        """The records that are context of samples; sample i has record i modulo their number, or the next readable."""
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

    def _context_modalities(self, from_file: bool) -> set[str]:
        """The modalities with context, or with latents from which sampling starts, from files or from the data."""
        names = set()
        for request in self._context:
            if (request.file is not None) == from_file:
                names |= set(self._modalities_of(request))
        return names

    def _modalities_of(self, request: ContextRequest) -> tuple[str, ...]:
        return (request.name,) if request.level else tuple(merge_requests((request,), self.modalities))

    def _encode_files(self) -> dict[str, np.ndarray]:
        """Clean latents of the context that comes from files, one clip per modality."""
        clean: dict[str, np.ndarray] = {}
        for request in self._context:
            if request.file is None:
                continue
            names = self._modalities_of(request)
            for m in names:
                if m not in self.media:
                    raise UserError(f"--context {request.text}: this run has no autoencoder that encodes {m}")
            try:
                clips = read_context(request, names, self.media)
            except UserError as error:
                raise UserError(f"--context {request.text}: {error}") from error
            for m, clip in clips.items():
                clean[m] = self._autoencoders[m].encode(clip[None])[0]
        return clean


def _encode_caption(experiment: "Experiment", text: str) -> tuple[np.ndarray, np.ndarray] | None:
    if not text:
        return None
    if experiment.text is None:
        raise UserError(f"--caption {text!r}: this run was trained without captions")
    (embedding,) = cached_text_encoder(experiment.text).encode([text])
    return padded_caption(embedding, experiment.text.tokens, experiment.model.text)
