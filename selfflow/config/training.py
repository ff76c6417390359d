"""Configuration fields shared by all experiments."""

from dataclasses import dataclass

from selfflow.data.catalogue import AnyDataset
from selfflow.input.batches import LoaderOptions
from selfflow.input.mixture import Component, Stage
from selfflow.training.loop import Cadence, Limits
from selfflow.training.optimizer import AdamW
from selfflow.training.profile import Profile
from selfflow.training.seeds import Seeds
from selfflow.training.sharding import Devices


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Data, length, optimizer and devices of a training run.

    Some fields whose default is None or empty are derived from other fields; `resolve` fills them in.
    """

    data: dict[str, AnyDataset]
    """Data sets, by the names that the components of the mixture use."""
    mixture: dict[str, Component]
    """Components of the mixture, by name; each batch has samples of one component."""
    steps: int
    """Number of updates."""
    curriculum: tuple[Stage, ...] = ()
    """Stages that change the mixture at later steps."""
    optimizer: AdamW = AdamW()
    """Optimizer."""
    ema_decay: float | None = None
    """Decay of the EMA of the parameters; by default min(0.9999, 1 - 10 / steps), because 0.9999 (arXiv 2603.06507) is
    meant for 4 M steps."""
    seed: Seeds = Seeds()
    """Random seeds."""
    devices: Devices = Devices()
    """Distribution of the run over devices."""
    cadence: Cadence = Cadence()
    """Intervals of logging, evaluation and checkpoints."""
    limits: Limits = Limits()
    """Limits on consecutive non-finite steps and on time without progress."""
    profile: Profile = Profile()
    """Steps to profile."""
    loader: LoaderOptions = LoaderOptions()
    """Settings of the data loader."""
    init_from: str = ""
    """RUN or RUN:STEP that provides the initial weights; empty for random weights."""
    exclude: str = ""
    """File of sample ids, one per line, as `selfflow data ids` prints them; these samples are not read. Each id must be
    in a data set of the mixture, or have been deleted from one."""
    exclude_hash: str = ""
    """Hash of the file `exclude`; filled in by `resolve`."""

    def dataset_of(self, component: str) -> AnyDataset:
        """Returns the data set of a component; a component that names none uses the only data set."""
        return self.data[self.mixture[component].data or next(iter(self.data))]
