"""The dataclass tree of a run that trains a flow-matching transformer."""

from dataclasses import dataclass, field

from selfflow.autoencoders.config import AnyAutoencoder
from selfflow.config.training import TrainingConfig
from selfflow.encoders.text import Text
from selfflow.errors import UserError, check_at_least, check_fraction
from selfflow.evaluation.config import Evaluation
from selfflow.models.joint_config import JointConfig
from selfflow.models.separation import Separation
from selfflow.models.sit import SiTConfig
from selfflow.noise import DiffusionForcing, DualTimestep, FullMasking, UniformTimestep
from selfflow.objectives.alignment import Alignment, SelfFlow
from selfflow.objectives.config import FlowMatching
from selfflow.sampling.generate import Sampler


@dataclass(frozen=True)
class FinalEvaluation:
    """Samples and probes at the end of a run."""

    samples: int = 8
    """Samples drawn from the EMA for each component of the mixture."""
    probe_clips: int = 1024
    """Training clips that probes are fitted on, 0 for no probes; the validation and the test split use half this number
    each."""
    probe_tau: float = 0.25
    """Noise level of the latents whose features are probed."""

    def __post_init__(self):
        check_at_least(self, "final_evaluation.", samples=1)
        check_fraction(self, "final_evaluation.", "probe_tau")
        if 0 != self.probe_clips < 16:
            raise UserError(
                f"final_evaluation.probe_clips is {self.probe_clips}: it must be at least 16, or 0 for no probes"
            )


@dataclass(frozen=True, kw_only=True)
class Experiment(TrainingConfig):
    """Configuration of a run. `data` is empty for runs with imported weights."""

    autoencoders: dict[str, AnyAutoencoder]
    """Autoencoder of each modality."""
    patch: dict[str, tuple[int, ...]]
    """Patch size: latent positions in one token along each axis except the channels."""
    model: JointConfig | SiTConfig
    """The transformer."""
    text: Text | None = None
    """Encoder of captions; None for a model without captions."""
    objective: FlowMatching = FlowMatching()
    """Training objective."""
    schedule: UniformTimestep | DualTimestep | FullMasking | DiffusionForcing = DualTimestep()
    """Distribution of the noise levels over tokens."""
    alignment: Alignment = SelfFlow()
    """Alignment method, which computes the targets of the student's features."""
    separation: Separation | None = None
    """Attention Separation; None lets all tokens of a sample attend to each other."""
    modality_weight: dict[str, float] = field(default_factory=dict)
    """w_m, the weight of each modality's losses (arXiv 2603.06507); 1 by default."""
    label: str = ""
    """Field of the records that contains the class label; empty for none."""
    condition_drop: float = 0.1
    """Probability that a sample's label and caption are replaced by null, for classifier-free guidance
    (arXiv 2207.12598)."""
    sampler: Sampler = Sampler()
    """Settings of the sampler during training and at its end, and defaults of `selfflow sample`."""
    evaluation: Evaluation = Evaluation()
    """Evaluation of samples during training."""
    final_evaluation: FinalEvaluation = FinalEvaluation()
    """Evaluation at the end of the run."""
    latents: dict[str, str] = field(default_factory=dict)
    """Folders of latents that were encoded elsewhere, by data set; they replace the raw data, and may be in a
    bucket."""
