"""AdamW with gradient clipping, warm-up and a constant or cosine learning rate."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import optax

from selfflow.errors import UserError, check_above_zero, check_at_least, check_fraction


def learning_rate_for(steps: int) -> float:
    """Returns the default learning rate min(2e-3, 1e-4 sqrt(400 000 / steps)), but at least 1e-4."""
    return min(2e-3, 1e-4 * max(1.0, 400_000 / steps) ** 0.5)


@dataclass(frozen=True)
class AdamW:
    """AdamW optimizer. Defaults follow arXiv 2603.06507, except for values that depend on the length of the run."""

    learning_rate: float | None = None
    """Peak learning rate; by default min(2e-3, 1e-4 sqrt(400 000 / steps)), and at least 1e-4, because the paper's rate
    is for 4 M steps, and the best constant rate falls with the square root of the steps (Zinkevich, 2003)."""
    beta1: float = 0.9
    """Decay of the first moment of the gradient."""
    beta2: float = 0.999
    """Decay of the second moment of the gradient."""
    epsilon: float = 1e-8
    """Constant added to the square root of the second moment."""
    weight_decay: float = 0.0
    """Coefficient of decoupled weight decay, for all parameters."""
    clip: float = 1.0
    """Maximum global norm of the gradient."""
    warmup_steps: int | None = 0
    """Steps of linear warm-up of the learning rate from 0; none means a twentieth of the run's length."""
    decay: Literal["constant", "cosine"] = "constant"
    """Schedule of the learning rate after the warm-up."""
    decay_steps: int | None = None
    """Step at which the cosine schedule reaches 0; by default the run's length."""
    accumulate: int = 1
    """Number of parts of each batch for gradient accumulation; the gradient equals that of the whole batch."""

    def __post_init__(self):
        check_above_zero(self, "optimizer.", "learning_rate", "clip", "epsilon")
        check_fraction(self, "optimizer.", "beta1", "beta2", below_one=True)
        check_at_least(self, "optimizer.", accumulate=1, warmup_steps=0)

    def resolved(self, steps: int, previous: "AdamW | None" = None) -> "AdamW":
        """Returns a copy with default values filled in, from the run's length, or from `previous` when resuming."""
        rate, warmup, decay = self.learning_rate, self.warmup_steps, self.decay_steps
        if rate is None:
            rate = previous.learning_rate if previous else learning_rate_for(steps)
        if warmup is None:
            warmup = previous.warmup_steps if previous else steps // 20
        if decay is None and self.decay == "cosine":
            decay = previous.decay_steps if previous else steps
        return dataclasses.replace(self, learning_rate=rate, warmup_steps=warmup, decay_steps=decay)

    def schedule(self) -> optax.Schedule:
        """Returns the learning rate schedule of a resolved optimizer."""
        if self.decay == "cosine":
            if self.decay_steps is None or self.decay_steps <= self.warmup_steps:
                raise UserError(
                    f"optimizer.decay_steps {self.decay_steps} must be above optimizer.warmup_steps {self.warmup_steps}"
                )
            return optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, self.warmup_steps, self.decay_steps)
        if self.warmup_steps:
            return optax.linear_schedule(0.0, self.learning_rate, self.warmup_steps)
        return optax.constant_schedule(self.learning_rate)

    def make(self) -> optax.GradientTransformation:
        """Returns the optimizer as a gradient transformation."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.adamw(
                self.schedule(), b1=self.beta1, b2=self.beta2, eps=self.epsilon, weight_decay=self.weight_decay
            ),
        )
