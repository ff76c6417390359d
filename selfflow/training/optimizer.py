"""AdamW with gradient clipping, warm-up and a constant or cosine learning rate."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import optax

from selfflow.errors import UserError, check_above_zero, check_at_least, check_fraction


def learning_rate_for(steps: int) -> float:
    """min(2e-3, 1e-4 sqrt(400 000 / steps)), but at least 1e-4."""
    return min(2e-3, 1e-4 * max(1.0, 400_000 / steps) ** 0.5)


@dataclass(frozen=True)
class AdamW:
    """AdamW; defaults are those of arXiv 2603.06507, except where short runs need others."""

    learning_rate: float | None = None
    """Peak rate; by default min(2e-3, 1e-4 sqrt(400 000 / steps)), and at least 1e-4: the paper's is for 4 M steps, and
    the best constant rate falls with the root of their number (Zinkevich, 2003)."""
    beta1: float = 0.9
    """Decay of the gradient's mean."""
    beta2: float = 0.999
    """Decay of the gradient's square."""
    epsilon: float = 1e-8
    """Added to the root of the squares."""
    weight_decay: float = 0.0
    """Decoupled decay of all parameters."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    warmup_steps: int | None = 0
    """Steps in which the rate rises linearly from 0; none means a twentieth of the run's length."""
    decay: Literal["constant", "cosine"] = "constant"
    """Schedule of the rate after the warm-up."""
    decay_steps: int | None = None
    """Step at which a cosine reaches 0; by default the run's length."""
    accumulate: int = 1
    """Parts that a batch is split into; the gradient equals that of the whole batch."""

    def __post_init__(self):
        check_above_zero(self, "optimizer.", "learning_rate", "clip", "epsilon")
        check_fraction(self, "optimizer.", "beta1", "beta2", below_one=True)
        check_at_least(self, "optimizer.", accumulate=1, warmup_steps=0)

    def resolved(self, steps: int, previous: "AdamW | None" = None) -> "AdamW":
        """A copy whose rate and lengths are filled in, from the run's length or from `previous` on resuming."""
        rate, warmup, decay = self.learning_rate, self.warmup_steps, self.decay_steps
        if rate is None:
            rate = previous.learning_rate if previous else learning_rate_for(steps)
        if warmup is None:
            warmup = previous.warmup_steps if previous else steps // 20
        if decay is None and self.decay == "cosine":
            decay = previous.decay_steps if previous else steps
        return dataclasses.replace(self, learning_rate=rate, warmup_steps=warmup, decay_steps=decay)

    def schedule(self) -> optax.Schedule:
        """The learning rate by step, of a resolved optimizer."""
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
        """The optimizer."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.adamw(
                self.schedule(), b1=self.beta1, b2=self.beta2, eps=self.epsilon, weight_decay=self.weight_decay
            ),
        )
