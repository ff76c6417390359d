"""Fields shared by all experiments."""

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
    """Data, length, update rule and hardware of a training run.

    Fields with a default of None or an empty default may follow from others; `resolve` fills them in.
    """

    data: dict[str, AnyDataset]
    """The data sets, by the names that the components of the mixture use."""
    mixture: dict[str, Component]
    """The components of the mixture, by name; each batch holds one."""
    steps: int
    """Updates."""
    curriculum: tuple[Stage, ...] = ()
    """Changes of the mixture at later steps."""
    optimizer: AdamW = AdamW()
    """The update rule."""
    ema_decay: float | None = None
    """Decay of the EMA of the parameters; by default min(0.9999, 1 - 10 / steps), as 0.9999 (arXiv 2603.06507) is for
    4 M steps."""
    seed: Seeds = Seeds()
    """Seeds."""
    devices: Devices = Devices()
    """Distribution of the run over devices."""
    cadence: Cadence = Cadence()
    """Intervals of logging, evaluation and checkpoints."""
    limits: Limits = Limits()
    """Limits on steps that are not finite and on time without progress."""
    profile: Profile = Profile()
    """Steps to trace."""
    loader: LoaderOptions = LoaderOptions()
    """Settings of the readers of batches."""
    init_from: str = ""
    """RUN or RUN:STEP with the initial weights."""
    exclude: str = ""
    """A file with one sample id on each line, as `selfflow data ids` prints them: these samples are never read. Each id
    must be in a data set of the mixture, or have been deleted from one."""
    exclude_hash: str = ""
    """Hash of that file; filled in."""

    def dataset_of(self, component: str) -> AnyDataset:
        """The data set of a component; the only one, if the component names none."""
        return self.data[self.mixture[component].data or next(iter(self.data))]
