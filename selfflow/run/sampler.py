"""Samples of a run: its weights, what is given to them, and media instead of latents."""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from selfflow.autoencoders.config import can_decode
from selfflow.data.media import Media
from selfflow.data.media.read import read_clip, read_image
from selfflow.errors import UserError
from selfflow.modality import modality_of
from selfflow.models.joint import Caption
from selfflow.sampling.context_spec import check_trained, choose_component, merge_requests, parse_context
from selfflow.sampling.generate import Condition, Generator, Sampler, check_finite
from selfflow.sampling.solvers import LAST_TAU


class Samples(NamedTuple):
    """Some samples.

    Attributes:
      numbers: which, [B].
      latents: {modality: float32 [B, ...]}.
      media: {modality: uint8 pictures or int16 sound [B, ...]}; empty where the run has no autoencoder.
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
      sampler: by default the run's.
      label: class label; by default each sample draws one, and samples of a run without labels have none.
      caption: what it shows and sounds like, for runs with captions; empty for none.
    """

    modalities: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    sampler: Sampler | None = None
    label: int | None = None
    caption: str = ""


class RunSampler:
    """Draws samples from a run.

    Args:
      run: an opened run, `selfflow.run.run.Run`.
      wanted: what to draw.
      weights: parameters of the model, such as the EMA, on the devices of the mesh.
      reader: of the clips that are given where no file is named; asked for the name of the component, and only then.
      mesh: devices to spread samples over; by default the first alone.

    Attributes:
      component: name of the component of the mixture; empty where weights were imported.
      modalities: its streams.
      media: shape and rate of each modality's media; empty where the run has no autoencoder.

    Raises:
      UserError: naming the flag, for what the run was not trained for or a file that does not fit.
    """

    def __init__(
        self,
        run: Any,
        wanted: SampleRequest,
        weights: Any,
        reader: Callable[[str], Any] | None = None,
        mesh: jax.sharding.Mesh | None = None,
    ):
        experiment = run.experiment
        streams = {name: component.modalities for name, component in experiment.mixture.items()} or {
            "image": ("image",)
        }
        known = tuple({m: None for names in streams.values() for m in names})
        for m in wanted.modalities:
            if m not in known:
                raise UserError(f"--modality {m}: this run has {', '.join(known)}")
        # A film can be given a picture, as its first frame, whatever components of pictures the run knows.
        pictures = ("image",) if any(modality_of(m) == "video" for m in known) else ()
        requests = tuple(parse_context(text, tuple(dict.fromkeys(known + pictures))) for text in wanted.context)
        self.component, requests = choose_component(wanted.modalities, requests, streams)
        all_streams = run.setup.modalities.get(self.component) or run.objective.modalities
        self.modalities = {m: all_streams[m] for m in streams[self.component]}
        check_trained(requests, self.modalities, experiment.schedule.context)
        self._run, self._wanted, self._weights, self._requests = run, wanted, weights, requests
        self._masks = merge_requests(requests, self.modalities)
        told = run.setup.media.get(self.component, {})
        self.media = {m: media for m, media in told.items() if can_decode(experiment.autoencoders[m])}
        if not self.media and any(request.file for request in requests):
            raise UserError(f"--context: {run.source} has no autoencoder, so no file can be given to it")
        self._autoencoders = {m: run.autoencoder(m) for m in self.media}
        self._reader = reader(self.component) if any(r.file is None for r in requests) else None
        self._clean, self._damaged = self._from_files(), set()
        self._caption = _caption(experiment, wanted.caption)
        labels = experiment.model.labels
        if wanted.label is not None and not 0 <= wanted.label < labels:
            raise UserError(
                f"--label {wanted.label}: this run has " + (f"0 to {labels - 1}" if labels else "no labels")
            )
        sampler = wanted.sampler or experiment.sampler
        if sampler.guidance != 1 and not labels and self._caption is None:
            raise UserError(
                f"sampler.guidance is {sampler.guidance}: it goes from no label and caption to some, and these samples "
                "have neither; leave it at 1"
            )
        start = max((r.level for r in requests), default=0.0) or 1.0
        if sampler.solver == "euler_maruyama" and start <= LAST_TAU:
            raise UserError(f"--context @{start:g}: euler_maruyama starts above its last step, {LAST_TAU}; take euler")
        self._generate = Generator(run.objective.apply, self.modalities, sampler, labels, start, mesh)

    def batches(self, numbers: np.ndarray, seed: int, batch_size: int = 16) -> Iterator[Samples]:
        """Samples of these numbers in batches; sample i depends on the seed and i alone."""
        size = min(batch_size, len(numbers))
        for start in range(0, len(numbers), max(size, 1)):
            some = numbers[start : start + size]
            # The last batch is as large as the others, so that there is one program.
            whole = np.append(some, np.repeat(some[:1], size - len(some)))
            latents = self._generate(self._weights, self._condition(whole, seed), seed, whole)
            latents = {m: x[: len(some)] for m, x in latents.items()}
            check_finite(latents, some)
            yield Samples(some, latents, self.decode(latents))

    @property
    def held_whole(self) -> tuple[str, ...]:
        """The modalities of which every token is given."""
        return tuple(m for m, mask in self._masks.items() if mask.all())

    def decode(self, latents: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Latents as media; none where the run has no autoencoder."""
        return {m: self._autoencoders[m].decode(latents[m]) for m in self._autoencoders}

    def _condition(self, numbers: np.ndarray, seed: int) -> Condition:
        labels, count = self._run.experiment.model.labels, len(numbers)
        records = [] if self._reader is None else self._records(numbers)
        label_B = np.full(count, labels)
        if self._wanted.label is not None:
            label_B[:] = self._wanted.label
        elif labels and records:  # what is given is of a class
            label_B = np.array([r["label"] if r["label"] >= 0 else labels for r in records])
        elif labels and self._caption is None:
            label_B = np.array([np.random.default_rng([seed % 2**32, int(i)]).integers(labels) for i in numbers])
        caption = None
        if self._caption is not None:
            caption = Caption(*(np.stack([x] * count) for x in self._caption))
        elif records and "caption" in records[0]:
            caption = Caption(*(np.stack(parts) for parts in zip(*(r["caption"] for r in records))))
        clean = {m: np.stack([x] * count) for m, x in self._clean.items()}
        if records:
            clean |= {m: np.stack([r["latents"][m] for r in records]) for m in self._needed(without_file=True)}
        masks = {m: np.tile(mask, (count, 1)) for m, mask in self._masks.items()}
        return Condition(label_B, caption, clean, masks)

    def _records(self, numbers: np.ndarray) -> list[dict[str, Any]]:
        """The records that samples are given; after the last comes the first, and for one that is damaged the next."""
        found = []
        for number in numbers:
            for place in range(int(number), int(number) + len(self._reader.records)):
                record = int(self._reader.records[place % len(self._reader.records)])
                sample = self._reader(record)
                if sample["weight"]:
                    break
                if record not in self._damaged:
                    self._damaged.add(record)
                    reason = ": ".join(self._reader.why(record))
                    print(
                        f"warning: a record that was to be given cannot be read, the next is: {reason}", file=sys.stderr
                    )
            else:
                raise UserError(
                    f"--context: no record of {self.component} can be read; `selfflow data verify` tells why"
                )
            found.append(sample)
        return found

    def _needed(self, without_file: bool) -> set[str]:
        """The modalities whose latents come from the data, or from files."""
        needed = set()
        for request in self._requests:
            if (request.file is None) == without_file:
                needed |= {request.what} if request.level else set(merge_requests((request,), self.modalities))
        return needed

    def _from_files(self) -> dict[str, np.ndarray]:
        clean: dict[str, np.ndarray] = {}
        for request in self._requests:
            if request.file is not None:
                names = (request.what,) if request.level else tuple(merge_requests((request,), self.modalities))
                for m in names:
                    if m not in self.media:
                        raise UserError(f"--context {request.text}: this run has no autoencoder that encodes {m}")
                try:
                    media = self._read(request.file, names, request.case, request.numbers)
                except UserError as error:
                    raise UserError(f"--context {request.text}: {error}") from error
                clean |= {m: self._autoencoders[m].encode(x[None])[0] for m, x in media.items()}
        return clean

    def _read(self, file: Path, names: tuple[str, ...], case: str, numbers: tuple[float, ...]) -> dict[str, np.ndarray]:
        """A file as media of the run's size, rate and length."""
        found = {}
        for m in names:
            if modality_of(m) == "image":
                found[m] = read_image(file, self._side(m))
        timed = tuple(m for m in names if m not in found)
        if not timed:
            return found
        if case == "first_frame":
            (m,) = timed
            frame = read_image(file, self._side(m))
            return found | {m: np.stack([frame] * self.media[m].shape[0])}
        whole = self._settings(timed, None)
        try:
            return found | read_clip(file, timed, whole)
        except UserError:
            if case != "prefix":
                raise
            # A beginning to be continued may be all that there is.
            found |= read_clip(file, timed, self._settings(timed, numbers[0]))
            missing = {m: self.media[m].shape[0] - len(found[m]) for m in timed}
            return {
                m: np.pad(x, [(0, missing[m])] + [(0, 0)] * (x.ndim - 1), mode="edge" if x.ndim > 1 else "constant")
                if m in timed
                else x
                for m, x in found.items()
            }

    def _side(self, m: str) -> int:
        height, width, _ = self.media[m].shape[-3:]
        if height != width:
            raise UserError(f"this run's {m} is {width} x {height}: only square pictures can be given from a file")
        return height

    def _settings(self, timed: tuple[str, ...], seconds: float | None) -> Media:
        """How a file is to be read, as much of it as lasts `seconds`, by default as long as the run's clips."""
        media = {modality_of(m): self.media[m] for m in timed}
        clock = media.get("video") or media["audio"]
        frames = clock.shape[0] if seconds is None else min(clock.shape[0], math.ceil(seconds * clock.rate - 1e-6))
        rate = media["audio"].rate if "audio" in media else clock.rate
        size = self._side(next(m for m in timed if modality_of(m) == "video")) if "video" in media else 1
        return Media(frames=frames, frames_per_second=clock.rate, size=size, sample_rate=rate)


def _caption(experiment: Any, text: str) -> tuple[np.ndarray, np.ndarray] | None:
    if not text:
        return None
    if experiment.text is None:
        raise UserError(f"--caption {text!r}: this run was trained without captions")
    from selfflow.encoders.load import cached_text_encoder
    from selfflow.input.reader import padded_caption

    return padded_caption(
        cached_text_encoder(experiment.text).encode([text])[0], experiment.text.tokens, experiment.model.text
    )
