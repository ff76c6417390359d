"""Flow matching: the error, its linear baseline, and the interface of flow objectives."""

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
    """An objective with a velocity model: its parameters are "model", its frozen EMA "ema".

    Training, sampling, probes, evaluation, plans and export use only these members.

    Attributes:
      model: shape of the velocity model.
      modalities: all streams of latents of the run.
    """

    model: JointConfig | SiTConfig
    modalities: dict[str, Modality]

    def apply(self, model_params: Tree, *args: Any, **kwargs: Any) -> Output:
        """Applies the model with these parameters; arguments as for `JointTransformer.__call__`."""
        ...

    def diagnose(
        self, params: Tree, frozen: dict[str, Tree], batch: dict[str, Any], keys_B: Key[Array, "B"]
    ) -> dict[str, Float[Array, ""]]:
        """Computes metrics of a held-out batch, logged every `cadence.log_every` steps; names end in "/MODALITY"."""
        ...

    def held_out_metrics(
        self,
        model_params: Tree,
        batch: dict[str, Any],
        keys_B: Key[Array, "B"],
        tau: dict[str, UniformTau | LogitNormalTau],
    ) -> dict[str, Float[Array, "..."]]:
        """Computes metrics of a held-out batch at the end of a run, including `flow_loss/MODALITY`.

        The flow loss is comparable between objectives: it is unconditional, and all tokens of a modality in a sample
        have one level.

        Args:
          model_params: parameters of the EMA.
          batch, keys_B: as for `loss`.
          tau: p(tau) of each modality; uniform for modalities that are not named.
        """
        ...

    def extra_flops(self, sample: SampleShape) -> float:
        """Returns the operations per sample beyond the student's forward and backward pass."""
        ...

    def frozen_from(self) -> dict[str, str]:
        """Returns frozen trees that start as the EMA of another run: {tree: RUN or RUN:STEP}.

        The tree has the shape that `init_frozen` gives it, and the name of the objective's setting that holds the run.
        It replaces the values from `init_frozen` and `init_from`.
        """
        ...


def flow_error(
    velocity: dict[str, Float[Array, "B N P"]], target: dict[str, Float[Array, "B N P"]]
) -> dict[str, Float[Array, "B N"]]:
    """Computes L_flow of each token by modality, the mean of (v - (eps - x0))^2 over P elements (arXiv 2603.06507)."""
    return {m: jnp.mean(jnp.square(velocity[m] - target[m]), axis=-1) for m in velocity}


def linear_baseline(tau: UniformTau | LogitNormalTau, std_C: Float[np.ndarray, "C"] | float = 1.0) -> float:
    """Returns the flow loss of the best per-channel linear predictor; a model above it has learned no structure.

    For independent x0 with standard deviation s and eps with 1, var(eps - x0) - cov(eps - x0, x_tau)^2 / var(x_tau) is
    s^2 / ((1 - tau)^2 s^2 + tau^2). Its mean over p(tau) and channels is pi / 2 for whitened latents and uniform tau.

    Args:
      tau: p(tau).
      std_C: standard deviation of each latent channel in the data set: latents whitened over several data sets are not
        white in each.
    """
    # Average over p(tau) by the midpoint rule over its quantiles.
    u = (np.arange(100_000) + 0.5) / 100_000
    t = np.asarray(tau.quantile(jnp.asarray(u)), np.float64)
    # Channels of equal variance have equal losses, so whitened latents need one integral.
    variances, counts = np.unique(np.square(np.atleast_1d(std_C)).round(9), return_counts=True)
    losses = []
    for variance in variances:
        losses.append(np.mean(variance / ((1 - t) ** 2 * variance + t**2)) if variance else 0.0)
    return float(np.average(losses, weights=counts))
