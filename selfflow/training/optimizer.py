"""AdamW with clipping, warm-up and a constant or cosine rate."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import optax

from selfflow.errors import UserError


def learning_rate_for(steps: int) -> float:
    """1e-4 from 400 000 steps on, and for shorter runs more, up to 2e-3."""
    return min(2e-3, 1e-4 * max(1.0, 400_000 / steps) ** 0.5)


@dataclass(frozen=True)
class AdamW:
    """The settings of arXiv 2603.06507 are the defaults, except where a short run needs others."""

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
    """What the rate does after the warm-up."""
    decay_steps: int | None = None
    """Step at which a cosine reaches 0; by default the run's length."""
    accumulate: int = 1
    """Parts that a batch is split into; the gradient equals that of the whole batch."""

    def __post_init__(self):
        for name in ("learning_rate", "clip", "epsilon"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}: it must be above 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}: give a number from 0 to below 1")
        if self.accumulate < 1 or (self.warmup_steps or 0) < 0:
            raise UserError("optimizer.accumulate must be at least 1 and optimizer.warmup_steps at least 0")

    def resolved(self, steps: int, previous: "AdamW | None" = None) -> "AdamW":
        """A copy with rate and lengths that follow from the number of steps filled in, or taken from `previous`."""
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
