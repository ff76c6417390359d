"""Flow matching: its error, the linear baseline that normalises it, and the members shared by its objectives."""

from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from selfflow.modality import Modality
from selfflow.models.joint import Output
from selfflow.models.joint_config import JointConfig
from selfflow.models.sit import SiTConfig
from selfflow.noise import LogitNormalTau, UniformTau
from selfflow.objectives.alignment.base import SampleShape
from selfflow.training.objective import Objective, Tree


class FlowObjective(Objective, Protocol):
    """An objective whose parameters "model" and frozen tree "ema" are those of a velocity model.

    Training, sampling, probes, evaluation, plans and export use these members alone.

    Attributes:
      model: shape of the velocity model.
      modalities: all streams of latents of the run.
    """

    model: JointConfig | SiTConfig
    modalities: dict[str, Modality]

    def apply(self, model_params: Tree, *args: Any, **kwargs: Any) -> Output:
        """The model with these parameters; arguments as of `JointTransformer.__call__`."""
        ...

    def diagnose(
        self, params: Tree, frozen: dict[str, Tree], batch: dict[str, Any], keys_B: Key[Array, "B"]
    ) -> dict[str, Float[Array, ""]]:
        """Metrics of a held-out batch that are logged every `cadence.log_every` steps, under names that end in
        "/MODALITY"."""
        ...

    def held_out_metrics(
        self,
        model_params: Tree,
        batch: dict[str, Any],
        keys_B: Key[Array, "B"],
        tau: dict[str, UniformTau | LogitNormalTau],
    ) -> dict[str, Float[Array, "..."]]:
        """Metrics of a held-out batch at the end of a run, `flow_loss/MODALITY` among them.

        The flow loss is comparable between objectives: it is unconditional, and all tokens of a modality in a sample
        have one level.

        Args:
          model_params: the EMA.
          batch, keys_B: as of `loss`.
          tau: p(tau) of each modality; uniform where none is named.
        """
        ...

    def extra_flops(self, sample: SampleShape) -> float:
        """Operations of one sample's step beside the student's forward and backward pass."""
        ...

    def frozen_from(self) -> dict[str, str]:
        """Frozen trees that are the EMA of another run at step 0: {tree: RUN or RUN:STEP}.

        The tree has the shape that `init_frozen` gives it, and the name of the setting of the objective that names the
        run. It replaces what `init_frozen` and `init_from` give.
        """
        ...


def flow_error(
    velocity: dict[str, Float[Array, "B N P"]], target: dict[str, Float[Array, "B N P"]]
) -> dict[str, Float[Array, "B N"]]:
    """L_flow of each token: the mean over its P elements of (v - (eps - x0))^2, by modality (arXiv 2603.06507)."""
    return {m: jnp.mean(jnp.square(velocity[m] - target[m]), axis=-1) for m in velocity}


def linear_baseline(tau: UniformTau | LogitNormalTau, std_C: Float[np.ndarray, "C"] | float = 1.0) -> float:
    """The flow loss of the best linear predictor per channel; a model above it has learned no structure.

    For independent x0 with standard deviation s and eps with 1, var(eps - x0) - cov(eps - x0, x_tau)^2 / var(x_tau) is
    s^2 / ((1 - tau)^2 s^2 + tau^2). Its mean over p(tau) and channels is pi / 2 for whitened latents and uniform tau.

    Args:
      tau: p(tau).
      std_C: standard deviation of each latent channel in the data set: latents whitened over several data sets are not
        white in each.
    """
    # The mean over p(tau) by the midpoint rule over its quantiles.
    u = (np.arange(100_000) + 0.5) / 100_000
    t = np.asarray(tau.quantile(jnp.asarray(u)), np.float64)
    # Channels of equal variance have equal losses: whitened latents of many channels take one integral.
    variances, counts = np.unique(np.square(np.atleast_1d(std_C)).round(9), return_counts=True)
    losses = []
    for variance in variances:
        losses.append(np.mean(variance / ((1 - t) ** 2 * variance + t**2)) if variance else 0.0)
    return float(np.average(losses, weights=counts))
