"""The dataclass tree of a run that trains an autoencoder."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from selfflow.autoencoders.convolutional import Network
from selfflow.config.check import check_length
from selfflow.data.catalogue import AnyDataset
from selfflow.errors import UserError
from selfflow.input.batches import LoaderOptions
from selfflow.input.media_batches import Cut
from selfflow.input.mixture import Component, Stage, check_mixture
from selfflow.latents.ids import hash_ids, read_ids
from selfflow.media import medium_of
from selfflow.objectives.reconstruction import ReconstructionLoss, ReconstructionObjective
from selfflow.training.loop import Cadence, Limits
from selfflow.training.optimizer import AdamW
from selfflow.training.profile import Profile
from selfflow.training.seeds import Seeds
from selfflow.training.sharding import Devices, check_batch, state_shardings
from selfflow.training.state import State, ema_decay_for, init_state
from selfflow.training.step import make_step


@dataclass(frozen=True)
class AutoencoderExperiment:
    """Everything that the training of an autoencoder depends on."""

    data: dict[str, AnyDataset]
    """The data sets, by the names that the components of the mixture call them."""
    mixture: dict[str, Component]
    """Sets of one modality each: pictures and films, which may share an autoencoder, or sounds."""
    network: Network
    """The autoencoder."""
    steps: int
    """Updates."""
    kind: Literal["autoencoder"] = "autoencoder"
    side: int | None = None
    """Side in pixels of the area that pictures are cropped to at random; by default that of the data."""
    loss: ReconstructionLoss = ReconstructionLoss()
    """What is minimised."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic; parameters, EMA and losses are float32."""
    curriculum: tuple[Stage, ...] = ()
    """Changes of the mixture at later steps."""
    optimizer: AdamW = AdamW()
    """The update rule."""
    ema_decay: float | None = None
    """Decay of the weights that are kept; by default min(0.9999, 1 - 10 / steps)."""
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
    loader: LoaderOptions = LoaderOptions()
    """How batches are read."""
    init_from: str = ""
    """RUN or RUN:STEP whose weights to start from."""
    exclude: str = ""
    """A file with one id of a sample on each line: these are never read."""
    exclude_hash: str = ""
    """Hash of that file; follows from it."""
    held_out: int = 128
    """Held-out samples of each component that reconstruction is measured on at the end."""

    def cuts(self) -> dict[str, Cut]:
        """What the samples of each component of the mixture look like.

        Raises:
          UserError: naming the field that does not fit the network.
        """
        found = {}
        for name, component in self.mixture.items():
            (m,), where = component.modalities, f"mixture.{name}"
            data = self.data[component.data or next(iter(self.data))]
            if data.holds_latents:
                raise UserError(f"{where}: {data.kind} has latents alone, and an autoencoder is trained on media")
            shape = data.media_shapes().get(m)
            if shape is None:
                raise UserError(f"{where}.modalities names {m}, which {data.kind} does not have")
            medium = medium_of(m)
            if medium.is_visual != self.network.is_visual:
                kind = "pictures and films" if self.network.is_visual else "sound"
                raise UserError(f"{where}.modalities names {m}, but the strides of the network are those of {kind}")
            rate = medium.rate(data)
            length = shape[0] if medium.has_time else 1
            if rate and component.seconds is not None:
                length = component.length(rate, m, name)
            hop, lead = self.network.downsampling[0], self.network.causal_padding
            if (length + lead) % hop or length < 1:
                fitting = max((length + lead) // hop, 1) * hop - lead
                raise UserError(
                    f"{where}: clips of {length} {medium.unit} do not fit the "
                    f"network, whose latent frames are {hop} of them{', the first 1' if lead else ''}: set seconds to "
                    f"{fitting / rate}"
                )
            side = 0
            if medium.is_visual:
                side = min(shape[-3:-1]) if self.side is None else self.side
                if side < 1 or side % self.network.downsampling[1]:
                    raise UserError(
                        f"side {side}: the network's strides of {self.network.downsampling[1]} do not divide it"
                    )
            found[name] = Cut(length if medium.has_time else 0, side, (length, side, side, 3) if side else (length, 1))
        return found

    @property
    def rate(self) -> float:
        """Samples of sound a second; 0 for pictures."""
        if self.network.is_visual:
            return 0.0
        rates = {
            float(self.data[component.data or next(iter(self.data))].sample_rate) for component in self.mixture.values()
        }
        if len(rates) > 1:
            raise UserError(f"the data sets have {' and '.join(map('{:g}'.format, sorted(rates)))} Hz: give all one")
        return rates.pop()

    def objective(self) -> ReconstructionObjective:
        """What is minimised."""
        return ReconstructionObjective(self.network, self.loss, self.rate, self.dtype)

    def init(self, key: Any) -> State:
        """The state at step 0."""
        return init_state(self.objective(), self.optimizer.make(), key)

    def check_devices(self, mesh: Mesh) -> None:
        """Raises `UserError` unless batches and parameters of a resolved experiment can be split over a mesh."""
        self.shardings(mesh)
        for name, component in self.mixture.items():
            check_batch(mesh, component.batch_size // self.optimizer.accumulate, f"mixture.{name}")

    def shardings(self, mesh: Mesh) -> State:
        """Where every array of the state lies on a mesh: a `State` of `NamedSharding`s."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return state_shardings(self.objective(), self.optimizer.make(), shapes, self.devices, mesh)

    def step(self) -> Callable[[State, Any], tuple[State, dict[str, Any]]]:
        """The update of a resolved experiment, to be compiled."""
        optimizer = self.optimizer
        return make_step(self.objective(), optimizer.make(), self.ema_decay, self.seed.noise, optimizer.accumulate)

    def resolved(self, like: "AutoencoderExperiment | None" = None) -> "AutoencoderExperiment":
        """The same with every field that follows from others filled in, and checked; see `Experiment.resolved`."""
        if not self.data:
            raise UserError("data is empty: name at least one data set")
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}: it must be at least 1")
        ema_decay = self.ema_decay
        if ema_decay is None:
            ema_decay = like.ema_decay if like else ema_decay_for(self.steps)
        if not 0 <= ema_decay < 1:
            raise UserError(f"ema_decay is {ema_decay}: give a number from 0 to below 1")
        if self.held_out < 1:
            raise UserError(f"held_out is {self.held_out}: it must be at least 1")
        mixture = {}
        for name, component in self.mixture.items():
            if not component.data and len(self.data) > 1:
                raise UserError(f"mixture.{name}.data is empty: name one of {', '.join(self.data)}")
            data = component.data or next(iter(self.data))
            if data not in self.data:
                raise UserError(f"mixture.{name}.data names {data}, which is not in data: {', '.join(self.data)}")
            if len(component.modalities) != 1:
                raise UserError(f"mixture.{name}.modalities is {component.modalities}: an autoencoder's set has one")
            if component.batch_size < 1 or component.batch_size % self.optimizer.accumulate:
                raise UserError(
                    f"mixture.{name}.batch_size is {component.batch_size}: give a multiple of optimizer.accumulate "
                    f"{self.optimizer.accumulate}"
                )
            if component.shuffled or component.delayed:
                raise UserError(f"mixture.{name}: shuffled and delayed are of several modalities; leave them out")
            mixture[name] = dataclasses.replace(component, data=data)
        check_mixture(mixture, self.curriculum)
        exclude_hash = hash_ids(read_ids(self.exclude)) if self.exclude else ""
        if self.exclude_hash not in ("", exclude_hash):
            raise UserError(f"exclude_hash is {self.exclude_hash}, but that of {self.exclude} is {exclude_hash}")
        init_from = self.init_from
        if like and init_from and like.init_from.startswith(f"{init_from}:"):
            init_from = like.init_from  # the step that RUN meant when the run began
        optimizer = self.optimizer.resolved(self.steps, like.optimizer if like else None)
        changed = {"ema_decay": ema_decay, "mixture": mixture, "exclude_hash": exclude_hash, "init_from": init_from}
        made = dataclasses.replace(self, optimizer=optimizer, **changed)
        made.cuts(), made.rate
        check_length(made)
        if self.cadence.evaluate_every:
            raise UserError("cadence.evaluate_every looks at samples, of which an autoencoder has none: leave it out")
        for name, idle in (("gradient", not self.network.is_visual), ("spectral", self.network.is_visual)):
            if idle and getattr(self.loss, name):
                kind = "pictures and films" if self.network.is_visual else "sound"
                raise UserError(f"loss.{name} is {getattr(self.loss, name)}, but this network is of {kind}: make it 0")
        if self.loss.spectral and max(self.loss.windows) > min(cut.length for cut in made.cuts().values()):
            raise UserError(f"loss.windows {self.loss.windows}: the clips are shorter; give longer clips or less")
        return made
