"""The dataclass tree that says everything about a run, and the files that it is read from and written to."""

import dataclasses
import difflib
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfflow.autoencoders.linear import MdctPCA, PatchPCA
from selfflow.data.collisions import Collisions
from selfflow.data.media import Media
from selfflow.errors import UserError
from selfflow.input.mixture import Set
from selfflow.modality import Modality
from selfflow.models.joint import JointConfig
from selfflow.noise import DualTimestep, Forcing, FullMasking, UniformTimestep
from selfflow.objectives.alignment import NoAlignment, SelfFlow
from selfflow.objectives.selfflow import SelfFlowObjective
from selfflow.training.loop import Cadence
from selfflow.training.optimizer import AdamW
from selfflow.training.state import ema_decay_for
from selfflow.tree import dataclasses_in, from_json, to_json


@dataclass(frozen=True)
class Seeds:
    """Three seeds, so that the arms of a comparison can share some of them."""

    init: int = 0
    """Initial weights."""
    data: int = 0
    """Order of the data."""
    noise: int = 0
    """Noise, levels, masks and dropped labels."""

    def __post_init__(self):
        for name in ("init", "data", "noise"):
            if not 0 <= getattr(self, name) < 2**31:
                raise UserError(f"seed.{name} is {getattr(self, name)}: give a number from 0 to 2^31 - 1")


@dataclass(frozen=True)
class Proof:
    """What a run makes and measures of itself when it ends."""

    samples: int = 8
    """Samples drawn from the EMA for each set of the mixture."""
    solver_steps: int = 50
    """Euler steps of the sampler."""
    probe_clips: int = 1024
    """Training clips that probes are fitted on; half as many each of the validation and of the test split are used."""
    probe_tau: float = 0.25
    """Noise level of the latents whose features are probed."""

    def __post_init__(self):
        for name, least in (("samples", 1), ("solver_steps", 1), ("probe_clips", 16)):
            if getattr(self, name) < least:
                raise UserError(f"proof.{name} is {getattr(self, name)}: it must be at least {least}")
        if not 0 <= self.probe_tau <= 1:
            raise UserError(f"proof.probe_tau is {self.probe_tau}: give a number from 0 to 1")


@dataclass(frozen=True)
class Experiment:
    """Everything that a run depends on."""

    data: Collisions | Media
    """The data set."""
    autoencoders: dict[str, PatchPCA | MdctPCA]
    """What turns each modality into latents."""
    patch: dict[str, tuple[int, ...]]
    """Latent positions in one token, along each axis but the channels."""
    mixture: dict[str, Set]
    """Sets of modalities; each batch holds one."""
    model: JointConfig
    """The transformer."""
    steps: int
    """Updates."""
    schedule: UniformTimestep | DualTimestep | FullMasking | Forcing = DualTimestep()
    """How noise is spread over tokens."""
    alignment: NoAlignment | SelfFlow = SelfFlow()
    """What the student's features are aligned with."""
    modality_weight: dict[str, float] = field(default_factory=dict)
    """w_m, the weight of each modality's losses; 1 where it is not named."""
    label: str = ""
    """Field of the records that is the class label; empty for none."""
    label_drop: float = 0.1
    """Probability that a sample's label is replaced by null."""
    optimizer: AdamW = AdamW()
    """The update rule."""
    ema_decay: float | None = None
    """Decay of the teacher; by default min(0.9999, 1 - 10 / steps)."""
    seed: Seeds = Seeds()
    """Seeds."""
    cadence: Cadence = Cadence()
    """How often to log and to save."""
    proof: Proof = Proof()
    """What to make and measure at the end."""
    init_from: str = ""
    """RUN or RUN:STEP whose weights to start from."""

    def modalities(self) -> dict[str, Modality]:
        """The streams of latents, from the data's shapes, the autoencoders and the patches."""
        data, found = self.data, {}
        media = {
            "image": (data.size, data.size, 3),
            "video": (data.frames, data.size, data.size, 3),
            "audio": (round(data.frames * data.sample_rate / data.frames_per_second),),
        }
        for m, autoencoder in self.autoencoders.items():
            if m not in media:
                raise UserError(f"autoencoders.{m}: the data has {', '.join(media)}")
            if m not in self.patch:
                raise UserError(f"patch has no entry for {m}: add one")
            frames = {"image": 0.0, "video": data.frames_per_second}.get(m)
            if frames is None:
                frames = data.sample_rate / autoencoder.hop
            found[m] = Modality(
                autoencoder.latent_shape(media[m]), tuple(self.patch[m]), 100 / frames if frames else 0.0
            )
        return found

    def objective(self) -> SelfFlowObjective:
        """What is minimised."""
        return SelfFlowObjective(
            self.model,
            self.modalities(),
            self.schedule,
            self.alignment,
            self.modality_weight,
            self.label_drop,
        )

    def resolved(self, like: "Experiment | None" = None) -> "Experiment":
        """The same with every field that follows from others filled in, and checked.

        Args:
          like: a resolved experiment to take those fields from instead: the run that is taken up again.

        Raises:
          UserError: naming the field that does not fit.
        """
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}: it must be at least 1")
        ema_decay = self.ema_decay
        if ema_decay is None:
            ema_decay = like.ema_decay if like else ema_decay_for(self.steps)
        optimizer = self.optimizer.resolved(self.steps, like.optimizer if like else None)
        init_from = self.init_from
        if like and init_from and like.init_from.startswith(f"{init_from}:"):
            init_from = like.init_from  # the step that RUN meant when the run began
        experiment = dataclasses.replace(self, ema_decay=ema_decay, optimizer=optimizer, init_from=init_from)
        experiment._check()
        return experiment

    def _check(self) -> None:
        modalities = self.modalities()
        if not self.mixture:
            raise UserError("mixture is empty: name at least one set of modalities")
        for name, chosen in self.mixture.items():
            where = f"mixture.{name}"
            for m in chosen.modalities:
                if m not in modalities:
                    raise UserError(f"{where}.modalities names {m}, which has no autoencoder: add autoencoders.{m}")
                if hasattr(self.schedule, "mask_ratio") and m not in self.schedule.mask_ratio:
                    raise UserError(f"schedule.mask_ratio has no entry for {m}, which {where} uses: add one")
            if not chosen.modalities or len(set(chosen.modalities)) < len(chosen.modalities):
                raise UserError(f"{where}.modalities is {chosen.modalities}: name each modality once")
            if chosen.weight <= 0 or chosen.batch_size < 1:
                raise UserError(f"{where}: weight must be above 0 and batch_size at least 1")
            if chosen.batch_size % self.optimizer.accumulate:
                raise UserError(
                    f"{where}.batch_size {chosen.batch_size} is not a multiple of optimizer.accumulate "
                    f"{self.optimizer.accumulate}"
                )
        if len({frozenset(chosen.modalities) for chosen in self.mixture.values()}) < len(self.mixture):
            raise UserError("mixture names the same modalities twice: join those sets and add their weights")
        for m in self.modality_weight:
            if m not in modalities:
                raise UserError(f"modality_weight.{m}: no such modality; there are {', '.join(modalities)}")
        if isinstance(self.alignment, SelfFlow):
            self.alignment.check(self.model.depth)
        if bool(self.label) != (self.model.labels > 0):
            raise UserError("label and model.labels go together: the field's name, and how many classes it has")
        if not 0 <= self.label_drop <= 1:
            raise UserError(f"label_drop is {self.label_drop}: give a number from 0 to 1")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay is {self.ema_decay}: give a number from 0 to below 1")
        self.optimizer.schedule()
        if self.optimizer.decay == "cosine" and self.steps > self.optimizer.decay_steps:
            raise UserError(
                f"steps is {self.steps}, but the cosine rate reaches 0 at optimizer.decay_steps "
                f"{self.optimizer.decay_steps}: nothing is learned after it; start another run with --init-from"
            )


def load_experiment(path: str | Path) -> Experiment:
    """Runs an experiment file and returns what its `experiment()` makes.

    Raises:
      UserError: if there is no such file, or it has no such function, or a field does not fit its type.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        raise UserError(f"no experiment file {path}" + (f"; did you mean {path.parent / near[0]}?" if near else ""))
    spec = importlib.util.spec_from_file_location(f"selfflow_experiment_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "experiment"):
            raise UserError(f"{path} defines no function experiment() that returns an Experiment")
        made = module.experiment()
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise  # a mistake in the file's own code: the traceback shows the line
        raise UserError(f"{path}: {_with_suggestion(str(error))}") from error
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from error
    if not isinstance(made, Experiment):
        raise UserError(f"{path}: experiment() returned {type(made).__name__}, not an Experiment")
    return from_json(to_json(made), Experiment, str(path))


def _with_suggestion(message: str) -> str:
    """Adds the nearest field name to Python's complaint about an unexpected keyword."""
    if "unexpected keyword argument" not in message:
        return message
    typo, owner = message.split("'")[1], message.split(".")[0]
    classes = [c for c in dataclasses_in(Experiment) if c.__name__ == owner]
    near = difflib.get_close_matches(typo, [f.name for c in classes for f in dataclasses.fields(c)], n=1)
    return message.replace(".__init__()", "") + (f"; did you mean {near[0]!r}?" if near else "")


# Fields that say how and how long a run computes, not what: these may change while it runs.
_MAY_CHANGE = ("steps", "cadence", "proof", "data.workers", "model.scan")


def changes(old: Experiment, new: Experiment) -> dict[str, tuple[Any, Any]]:
    """Leaves that differ: {dotted name: (old, new)}."""

    def leaves(data: Any, name: str) -> dict[str, Any]:
        if isinstance(data, dict):
            return {k: v for key in data for k, v in leaves(data[key], f"{name}.{key}".lstrip(".")).items()}
        return {name: data}

    a, b = leaves(to_json(old), ""), leaves(to_json(new), "")
    return {name: (a.get(name), b.get(name)) for name in sorted(a | b) if a.get(name) != b.get(name)}


def forbidden(name: str) -> bool:
    """Whether a field says what is computed, and may therefore not change in a run."""
    return not any(name == free or name.startswith(f"{free}.") for free in _MAY_CHANGE)


def save_experiment(experiment: Experiment, path: Path) -> None:
    """Writes `experiment.json`."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(to_json(experiment), indent=1))
    partial.replace(path)


def read_experiment(path: Path) -> Experiment:
    """Reads `experiment.json`."""
    try:
        return from_json(json.loads(path.read_text()), Experiment, str(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON (line {error.lineno}): restore it or use another --workdir"
        ) from error
