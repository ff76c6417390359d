"""The dataclass tree that says everything about a run."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from selfflow.autoencoders.config import AnyAutoencoder
from selfflow.config.check import check_experiment
from selfflow.data.catalogue import AnyDataset
from selfflow.encoders.text import Text
from selfflow.errors import UserError, did_you_mean
from selfflow.evaluation.config import Evaluation
from selfflow.input.batches import LoaderOptions
from selfflow.input.mixture import Component, Stage
from selfflow.latents.ids import hash_ids, read_ids
from selfflow.media import medium_of
from selfflow.modality import Modality
from selfflow.models.attention import implementation_for
from selfflow.models.joint_config import JointConfig
from selfflow.models.separation import Separation
from selfflow.models.sit import SiTConfig
from selfflow.noise import DiffusionForcing, DualTimestep, FullMasking, UniformTimestep
from selfflow.objectives.alignment import Alignment, SelfFlow
from selfflow.objectives.self_flow import SelfFlowObjective
from selfflow.sampling.generate import Sampler
from selfflow.training.loop import Cadence, Limits
from selfflow.training.optimizer import AdamW
from selfflow.training.profile import Profile
from selfflow.training.seeds import Seeds
from selfflow.training.sharding import Devices, check_batch, state_shardings
from selfflow.training.state import State, ema_decay_for, init_state
from selfflow.training.step import make_step


@dataclass(frozen=True)
class FinalEvaluation:
    """What a run makes and measures of itself when it ends."""

    samples: int = 8
    """Samples drawn from the EMA for each component of the mixture."""
    probe_clips: int = 1024
    """Training clips that probes are fitted on, 0 for no probes; half as many each of the validation and of the test
    split are used."""
    probe_tau: float = 0.25
    """Noise level of the latents whose features are probed."""

    def __post_init__(self):
        if self.samples < 1:
            raise UserError(f"final_evaluation.samples is {self.samples}: it must be at least 1")
        if 0 != self.probe_clips < 16:
            raise UserError(
                f"final_evaluation.probe_clips is {self.probe_clips}: it must be at least 16, or 0 for no probes"
            )
        if not 0 <= self.probe_tau <= 1:
            raise UserError(f"final_evaluation.probe_tau is {self.probe_tau}: give a number from 0 to 1")


class Media(NamedTuple):
    """The media of a modality before they are encoded: their shape, and frames or samples a second; 0 for stills."""

    shape: tuple[int, ...]
    rate: float


@dataclass(frozen=True)
class Experiment:
    """Everything that a run depends on."""

    data: dict[str, AnyDataset]
    """The data sets, by the names that the components of the mixture call them; none where weights were imported."""
    autoencoders: dict[str, AnyAutoencoder]
    """What turns each modality into latents."""
    patch: dict[str, tuple[int, ...]]
    """Latent positions in one token, along each axis but the channels."""
    mixture: dict[str, Component]
    """Sets of modalities; each batch holds one."""
    model: JointConfig | SiTConfig
    """The transformer."""
    steps: int
    """Updates."""
    curriculum: tuple[Stage, ...] = ()
    """Changes of the mixture at later steps."""
    text: Text | None = None
    """What encodes the captions; none for a model without them."""
    schedule: UniformTimestep | DualTimestep | FullMasking | DiffusionForcing = DualTimestep()
    """How noise is spread over tokens."""
    alignment: Alignment = SelfFlow()
    """What the student's features are aligned with."""
    separation: Separation | None = None
    """Attention Separation; none lets all tokens of a sample see each other."""
    modality_weight: dict[str, float] = field(default_factory=dict)
    """w_m, the weight of each modality's losses (arXiv 2603.06507); 1 where it is not named."""
    label: str = ""
    """Field of the records that is the class label; empty for none."""
    condition_drop: float = 0.1
    """Probability that a sample's label and caption are replaced by null, for classifier-free guidance
    (arXiv 2207.12598)."""
    optimizer: AdamW = AdamW()
    """The update rule."""
    ema_decay: float | None = None
    """Decay of the teacher; by default min(0.9999, 1 - 10 / steps): the paper's 0.9999 is for 4 M steps."""
    seed: Seeds = Seeds()
    """Seeds."""
    devices: Devices = Devices()
    """How the run is spread over devices."""
    cadence: Cadence = Cadence()
    """How often to log and to save."""
    limits: Limits = Limits()
    """What a run bears before it stops, or says where it stands still."""
    profile: Profile = Profile()
    """Which steps are traced."""
    sampler: Sampler = Sampler()
    """How samples are drawn, while it trains, at its end and, unless told otherwise, by `selfflow sample`."""
    evaluation: Evaluation = Evaluation()
    """What is measured of samples while it trains."""
    final_evaluation: FinalEvaluation = FinalEvaluation()
    """What to make and measure at the end."""
    init_from: str = ""
    """RUN or RUN:STEP whose weights to start from."""
    loader: LoaderOptions = LoaderOptions()
    """How batches are read."""
    exclude: str = ""
    """A file with one id of a sample on each line: these are never read."""
    exclude_hash: str = ""
    """Hash of that file; follows from it."""
    latents: dict[str, str] = field(default_factory=dict)
    """Folders of latents that were encoded elsewhere, by data set; the raw data is then not needed. They may lie in a
    bucket."""

    def modalities(self, name: str = "") -> dict[str, Modality]:
        """The streams of latents, from the data's shapes, the autoencoders and the patches.

        Without data, where weights were imported, a SiT itself tells its one modality, `image`.

        Args:
          name: a component of the mixture, whose modalities to return, as long as its clips are; by default all, as
            long as the clips of the first data set that has them.
        """
        if not self.data and isinstance(self.model, SiTConfig):
            size, patch = self.model.input_size, self.model.patch_size
            return {"image": Modality((size, size, self.model.channels), (patch, patch))}
        component, found = self.mixture.get(name), {}
        for m, autoencoder in self.autoencoders.items():
            if component and m not in component.modalities:
                continue
            if m not in self.patch:
                raise UserError(f"patch has no entry for {m}: add one")
            having = {n: d for n, d in self.data.items() if m in d.media_shapes()}
            if not having:
                raise UserError(f"autoencoders.{m}: no data set has {m}; they have {', '.join(self._media_names())}")
            streams = {n: modality_stream(d, m, autoencoder, self.patch[m], component, name) for n, d in having.items()}
            first, *others = streams
            for other in others:
                alike = streams[other].period == streams[first].period and (
                    streams[other].latent[bool(streams[first].period) :]
                    == streams[first].latent[bool(streams[first].period) :]
                )
                if not alike:
                    raise UserError(
                        f"data.{other}: its {m} gives latents {streams[other].latent} with a period of "
                        f"{streams[other].period:g}, that of data.{first} {streams[first].latent} and "
                        f"{streams[first].period:g}: give both one size, frames_per_second and sample_rate"
                    )
            found[m] = streams[component.data if component and component.data in streams else first]
        return found

    def media(self, name: str) -> dict[str, Media]:
        """The media of a component of the mixture, by modality, in clips as long as the component has them."""
        component = self.mixture[name]
        data = self.data[component.data or next(iter(self.data))]
        return {m: _media(data, m, component, name) for m in component.modalities}

    def _media_names(self) -> list[str]:
        return sorted({m for data in self.data.values() for m in data.media_shapes()})

    def objective(self) -> SelfFlowObjective:
        """What is minimised."""
        return SelfFlowObjective(
            self.model,
            self.modalities(),
            self.schedule,
            self.alignment,
            self.modality_weight,
            self.condition_drop,
            self.separation,
        )

    def init(self, key: Any) -> State:
        """The state at step 0; without data there is nothing to optimise, and the optimizer has no state."""
        return init_state(self.objective(), self._update(), key)

    def _update(self) -> optax.GradientTransformation:
        return self.optimizer.make() if self.data else optax.identity()

    def check_devices(self, mesh: Mesh) -> None:
        """Raises `UserError` unless batches and parameters of a resolved experiment can be split over a mesh."""
        self.shardings(mesh)
        kernel = implementation_for(mesh.devices.flat[0].platform, self.model.dtype) != "xla"
        for name, component in self.mixture.items():
            size, where = component.batch_size // self.optimizer.accumulate, f"mixture.{name}"
            check_batch(mesh, size, where)
            if self.separation and kernel:  # which attends to whole samples and to the others apart
                whole = round(self.separation.whole * size)
                for part in (whole, size - whole):
                    check_batch(mesh, part, f"{where}, separation.whole {self.separation.whole}")

    def shardings(self, mesh: Mesh) -> State:
        """Where every array of the state lies on a mesh: a `State` of `NamedSharding`s."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return state_shardings(self.objective(), self._update(), shapes, self.devices, mesh)

    def step(self, objective: SelfFlowObjective | None = None) -> Callable[[State, Any], tuple[State, dict[str, Any]]]:
        """The update of a resolved experiment, to be compiled, for its own objective unless another is given."""
        optimizer = self.optimizer
        return make_step(
            objective or self.objective(), optimizer.make(), self.ema_decay, self.seed.noise, optimizer.accumulate
        )

    def resolved(self, like: "Experiment | None" = None) -> "Experiment":
        """The same with every field that follows from others filled in, and checked.

        Args:
          like: a resolved experiment to take those fields from instead: the run that is taken up again.

        Raises:
          UserError: naming the field that does not fit.
        """
        if not self.data:
            raise UserError(
                "data is empty: name at least one data set; imported weights are started from with init_from"
            )
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}: it must be at least 1")
        ema_decay = self.ema_decay
        if ema_decay is None:
            ema_decay = like.ema_decay if like else ema_decay_for(self.steps)
        optimizer = self.optimizer.resolved(self.steps, like.optimizer if like else None)
        init_from = self.init_from
        if like and init_from and like.init_from.startswith(f"{init_from}:"):
            init_from = like.init_from  # the step that RUN meant when the run began
        exclude_hash = hash_ids(read_ids(self.exclude)) if self.exclude else ""
        if self.exclude_hash not in ("", exclude_hash):
            raise UserError(
                f"exclude_hash is {self.exclude_hash}, but that of the file {self.exclude} is {exclude_hash}"
            )
        # What a folder of latents tells of its media, so that a run does not need the folder.
        previous = like.data if like else {}
        data = {name: settings.resolved(previous.get(name)) for name, settings in self.data.items()}
        mixture = {name: self._with_data(name, component) for name, component in self.mixture.items()}
        experiment = dataclasses.replace(
            self,
            data=data,
            ema_decay=ema_decay,
            optimizer=optimizer,
            init_from=init_from,
            mixture=mixture,
            exclude_hash=exclude_hash,
        )
        check_experiment(experiment)
        return experiment

    def _with_data(self, name: str, component: Component) -> Component:
        """A set with its data set filled in."""
        if not component.data and len(self.data) > 1:
            raise UserError(f"mixture.{name}.data is empty: name one of {', '.join(self.data)}")
        data = component.data or next(iter(self.data))
        if data not in self.data:
            raise UserError(f"mixture.{name}.data names {data}, which is not in data; {did_you_mean(data, self.data)}")
        return dataclasses.replace(component, data=data)


def modality_stream(
    data: AnyDataset,
    m: str,
    autoencoder: AnyAutoencoder,
    patch: tuple[int, ...],
    component: Component | None = None,
    name: str = "",
) -> Modality:
    """A modality of a data set, in clips as long as those of a component of the mixture; without one, whole."""
    if m not in autoencoder.modalities:
        suits, causal = " and ".join(autoencoder.modalities), hasattr(autoencoder, "images_only")
        remedy = "set its images_only and stride (0 for audio), or name another" if causal else "name another"
        raise UserError(f"autoencoders.{m} is {autoencoder.kind}, which is for {suits}: {remedy}")
    media = _media(data, m, component, name)
    rate = getattr(autoencoder, "sample_rate", 0)
    if rate and rate != media.rate:
        raise UserError(
            f"autoencoders.{m}.sample_rate is {rate}, but {data.kind} has {media.rate:g} samples a second: give the "
            "data that rate, or take another autoencoder"
        )
    frame = 100 / media.rate if media.rate else 0.0
    # A first latent frame that stands for fewer frames ends when they end, as the others do.
    offset = (0.0 - autoencoder.causal_padding * frame, 0.0, 0.0, 0.0)
    return Modality(autoencoder.latent_shape(media.shape), tuple(patch), frame * autoencoder.temporal_stride, offset)


def _media(data: AnyDataset, m: str, component: Component | None, name: str) -> Media:
    shape = data.media_shapes()[m]
    rate = medium_of(m).rate(data)
    if rate and component and component.seconds is not None:
        shape = (component.length(rate, m, name), *shape[1:])
    return Media(shape, rate)
