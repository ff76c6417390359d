"""Self-Flow: flow matching over any set of modalities, with the alignment of early features as a second term.

The loss of arXiv 2603.06507, for clean tokens x0, noise eps and noise levels tau_i of the tokens i:

    x_tau   = (1 - tau) x0 + tau eps                               the student's input, tau_i in {t, s}
    L_flow  = mean_i |v(x_tau, tau)_i - (eps_i - x0_i)|^2 / P
    L_align = mean_i 1 - cos(projector(student_l,i), teacher_k,i)  block l < k; the teacher sees min(t, s)
    L       = sum over modalities m of w_m (L_flow,m + gamma L_align,m)

In `SelfFlowObjective.terms` and `loss`, with target and distance from the alignment method:

    student = forward(params["model"], draw.student, taps=alignment.student_taps)
    flow    = flow_error(student.velocity, eps - x)
    target  = alignment.target(forward, frozen, student, batch, draw)
    aligned = alignment.error(project(student features), target, draw)

Shapes: B samples, N tokens of a modality, P elements of a token, D channels of the model, E of the target.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from selfflow.errors import UserError
from selfflow.modality import Modality, of_latents, to_tokens
from selfflow.models.joint import Caption, JointTransformer, Output
from selfflow.models.joint_config import JointConfig
from selfflow.models.projector import Projector, Projectors
from selfflow.models.separation import Groups, Separation
from selfflow.models.sit import SiT, SiTConfig
from selfflow.noise import (
    Corruption,
    LogitNormalTau,
    Schedule,
    UniformTau,
    UniformTimestep,
    corrupt,
    draw_eps,
    keys_for,
)
from selfflow.objectives.alignment import Alignment, NoAlignment
from selfflow.objectives.alignment.base import SampleShape
from selfflow.objectives.diagnostics import alignment_diagnostics
from selfflow.objectives.draw import Draw, View, token_weight
from selfflow.objectives.flow import FlowObjective, flow_error
from selfflow.training.objective import Axes
from selfflow.training.state import init_ema, update_ema

TAU_BUCKETS = 5

Params = dict[str, Any]


class Terms(NamedTuple):
    """The terms of a batch's loss, token by token.

    Attributes:
      student: the student's output.
      velocity: eps - x0, the velocity to predict, {modality: [B, N, P]}.
      projected: the student's features after block l and the projector, {modality: [B, N, E]}; empty without alignment.
      target: the features that `projected` is aligned with, {modality: [B, N, E]}; empty without alignment.
      flow: flow error of every token, {modality: [B, N]}.
      aligned: alignment error of every token, {modality: [B, N]}; empty without alignment.
    """

    student: Output
    velocity: dict[str, Float[Array, "B N P"]]
    projected: dict[str, Float[Array, "B N E"]]
    target: dict[str, Float[Array, "B N E"]]
    flow: dict[str, Float[Array, "B N"]]
    aligned: dict[str, Float[Array, "B N"]]


@dataclass(frozen=True)
class SelfFlowObjective:
    """Joint flow matching with self-distilled alignment (arXiv 2603.06507).

    Attributes:
      model: shape of the transformer.
      modalities: the streams of latents of the run.
      schedule: distribution of the noise levels over tokens.
      alignment: the alignment method, which computes the target of the early features.
      modality_weight: w_m; 1 for modalities that are not named.
      condition_drop: probability that a sample's label and caption are replaced by null, for student and teacher.
      separation: settings of Attention Separation; None to disable it.
    """

    model: JointConfig | SiTConfig
    modalities: dict[str, Modality]
    schedule: Schedule
    alignment: Alignment
    modality_weight: dict[str, float]
    condition_drop: float
    separation: Separation | None = None

    def draw(self, keys_B: Key[Array, "B"], batch: dict[str, Any], step: Int[Array, ""] | int = 0) -> Draw:
        """Draws corruption and dropped conditions for a batch.

        Args:
          keys_B: a key for each sample.
          batch: `latents` {modality: [B, ...]}, `label` [B] (below 0 for none), `weight` [B] (0 for samples that count
            in no loss). Optional: `caption` (embeddings [B, L, C], mask [B, L]); `frames` {modality: number of latent
            frames that are data [B]} of clips that may be padded; `features` {modality: [B, N, E]} of a frozen encoder
            that is the target, on the grid of the tokens.
          step: number of finished updates, on which the weight of the alignment loss may depend.
        """
        # Noise: levels [B, K] and assignment [B, N] of each modality, then the context tokens, at tau = 0.
        modalities = of_latents(self.modalities, batch["latents"])
        corruption = self.schedule.sample(keys_B, {m: modality.tokens for m, modality in modalities.items()})
        corruption = self.schedule.with_context(corruption, keys_B, modalities)

        # Condition: label and caption are dropped together, for student and teacher alike. A label below 0 means no
        # label.
        dropped_B = jax.vmap(lambda key: jax.random.bernoulli(key, self.condition_drop))(keys_for(keys_B, "label"))
        label_B = jnp.where(dropped_B | (batch["label"] < 0), self.model.labels, batch["label"])
        caption = undropped_caption = None
        if "caption" in batch:
            undropped_caption = Caption(*batch["caption"])
            caption = undropped_caption._replace(mask=undropped_caption.mask & ~dropped_B[:, None])
        student = View(corruption, label_B, caption)

        # Weights [B, N] of the tokens in both losses, 0 for context and padding, with sum 1 in each modality. They are
        # computed for the whole batch: in gradient accumulation each part has its share of the sum.
        valid = {}
        for m, frames_B in batch.get("frames", {}).items():
            valid[m] = modalities[m].valid_tokens(frames_B)
        weight = token_weight(corruption, valid, batch["weight"])
        aligned = self.alignment.token_weight(corruption, valid, batch["weight"])
        gamma = jnp.broadcast_to(self.alignment.gamma(step), label_B.shape)

        # The teacher's view: by default the student's, with all tokens at min(t, s).
        undropped_label_B = jnp.where(batch["label"] < 0, self.model.labels, batch["label"])
        undropped = View(corruption, undropped_label_B, undropped_caption)
        teacher = self.alignment.draw_teacher(student, undropped, self.schedule, keys_B)
        return Draw(student, teacher, valid, weight, aligned, gamma)

    def loss(
        self, params: Params, frozen: dict[str, Params], batch: dict[str, Any], keys_B: Key[Array, "B"], draw: Draw
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, "..."]]]:
        """Computes L = sum_m w_m (L_flow,m + gamma L_align,m), and metrics that add up over the parts of a batch.

        Args:
          params: trained parameters.
          frozen: {"ema": the teacher's parameters}.
          batch, keys_B, draw: a batch or a part of one, with its keys and draws.

        Returns:
          The loss and metrics: `flow_loss/M`, alignment metrics, and `flow_sum/M`, `flow_count/M` per bucket of tau
          [TAU_BUCKETS].
        """
        terms = self.terms(params, frozen, batch, keys_B, draw)

        # These are means over the tokens of a modality, since its weights sum to 1.
        flow = {m: jnp.sum(error_BN * draw.weight[m]) for m, error_BN in terms.flow.items()}
        loss = sum(self.modality_weight.get(m, 1.0) * flow[m] for m in flow)
        aligned = {}
        for m, error_BN in terms.aligned.items():
            # gamma is the same in all samples; it multiplies the weights, and not the sum, because it is split with the
            # batch in gradient accumulation.
            weighted = jnp.sum(error_BN * (draw.aligned[m] * draw.gamma[:, None]))
            loss += self.modality_weight.get(m, 1.0) * weighted
            aligned[m] = jnp.sum(error_BN * draw.aligned[m])

        metrics = {f"flow_loss/{m}": value for m, value in flow.items()}
        metrics |= self.alignment.metrics(aligned, draw)

        # Flow error by noise level: sums and counts, so that their quotient does not depend on gradient accumulation.
        tau = draw.student.corruption.tau()
        for m, error_BN in terms.flow.items():
            bucket_BN = jnp.clip((tau[m] * TAU_BUCKETS).astype(jnp.int32), 0, TAU_BUCKETS - 1)
            counted_BNK = jax.nn.one_hot(bucket_BN, TAU_BUCKETS) * (draw.weight[m] > 0)[..., None]
            metrics[f"flow_sum/{m}"] = jnp.einsum("bnk,bn->k", counted_BNK, jax.lax.stop_gradient(error_BN))
            metrics[f"flow_count/{m}"] = counted_BNK.sum((0, 1))
        return loss, metrics

    def terms(
        self, params: Params, frozen: dict[str, Params], batch: dict[str, Any], keys_B: Key[Array, "B"], draw: Draw
    ) -> Terms:
        """Computes the errors of every token and the features behind them; arguments as for `loss`.

        Student and teacher see the same samples, noise and positions; no gradient reaches the target.
        """
        # x0 and eps [B, N, P] by modality; the velocity to predict is eps - x0.
        x = to_tokens(self.modalities, batch["latents"])
        eps = draw_eps(keys_B, x)
        forward = partial(self.forward, x, eps, draw)
        velocity = {m: eps[m] - x[m] for m in x}

        # Student: velocity [B, N, P] and features [B, N, D] after block l, from tokens at mixed noise levels.
        student = forward(params["model"], draw.student, taps=self.alignment.student_taps)
        flow = flow_error(student.velocity, velocity)

        # Teacher: features [B, N, E]; for Self-Flow after block k of the EMA copy, at min(t, s).
        target = self.alignment.target(forward, frozen, student, batch, draw)
        projected = self.project(params, self.alignment.student_features(student))
        aligned = self.alignment.error(projected, target, draw)
        return Terms(student, velocity, projected, target, flow, aligned)

    def forward(
        self,
        x: dict[str, Float[Array, "B N P"]],
        eps: dict[str, Float[Array, "B N P"]],
        draw: Draw,
        model_params: Params,
        view: View,
        *,
        taps: tuple[int, ...] = (),
        stop_at: int | None = None,
        teacher: bool = False,
    ) -> Output:
        """Applies the model to the noisy tokens of a view; with x, eps and draw bound, an `alignment.base.Forward`."""
        corruption, groups = view.corruption, None
        if self.separation and (self.separation.teacher or not teacher):
            groups = self._groups(draw.student.corruption)
        return self.apply(
            model_params,
            corrupt(x, eps, corruption),
            corruption.levels,
            view.label,
            corruption.assignment,
            taps=taps,
            stop_at=stop_at,
            groups=groups,
            caption=view.caption,
            valid=draw.valid,
        )

    def _groups(self, corruption: Corruption) -> Groups:
        """Groups the masked tokens of all modalities, and the other tokens."""
        if corruption.context:
            raise ValueError("context tokens have no group: separation excludes them")
        # Masked tokens have index 1 of the two levels.
        group = corruption.assignment
        masked = sum(self.schedule.masked(m, group_BN.shape[1]) for m, group_BN in group.items())
        batch_size = len(next(iter(group.values())))
        return Groups(group, masked, round(self.separation.whole * batch_size))

    # Parameters: the model's, the projector's, and the EMA of the model's.

    def init(self, key: Key[Array, ""]) -> Params:
        """Initialises the parameters: {"model": ..., "projector": ...}; no projector if none is trained."""
        model_key, projector_key = jax.random.split(key)
        params = {"model": nnx.to_pure_dict(nnx.state(self._model(model_key)))}
        if self.alignment.projector_depth:
            params["projector"] = nnx.to_pure_dict(nnx.state(self._projector(projector_key)))
        return params

    def logical_axes(self) -> Axes:
        """Returns the logical axes of each parameter by name."""
        axes = {f"model.{name}": value for name, value in _structure(self._model)[1].items()}
        if self.alignment.projector_depth:
            axes |= {f"projector.{name}": value for name, value in _structure(self._projector)[1].items()}
        return axes

    def init_frozen(self, params: Params, key: Key[Array, ""]) -> dict[str, Params]:
        """Initialises the frozen tree {"ema": ...}, the EMA of the model without the projector."""
        return {"ema": init_ema(params["model"])}

    def frozen_axes(self) -> dict[str, Axes]:
        """Returns the logical axes of the EMA, which are those of the model."""
        return {"ema": _structure(self._model)[1]}

    def update_frozen(self, frozen: dict[str, Params], params: Params, ema_decay: float) -> dict[str, Params]:
        """Updates the EMA."""
        return {"ema": update_ema(frozen["ema"], params["model"], ema_decay)}

    def apply(self, model_params: Params, *args, **kwargs) -> Output:
        """Calls the `JointTransformer` or `SiT` with these parameters."""
        graph, _ = _structure(self._model)
        model = nnx.merge(graph, nnx.State(_in_compute_type(model_params, self.model.dtype)))
        return model(*args, **kwargs)

    def diagnose(
        self, params: Params, frozen: dict[str, Params], batch: dict[str, Any], keys_B: Key[Array, "B"]
    ) -> dict[str, Float[Array, ""]]:
        """Computes `alignment_diagnostics` on one batch; empty without alignment."""
        draw = self.draw(keys_B, batch)
        terms = self.terms(params, frozen, batch, keys_B, draw)
        features = self.alignment.student_features(terms.student)
        same_width = self.alignment.target_channels is None
        return alignment_diagnostics(features, terms.projected, terms.target, draw.weight, same_width)

    def held_out_metrics(
        self,
        model_params: Params,
        batch: dict[str, Any],
        keys_B: Key[Array, "B"],
        tau: dict[str, UniformTau | LogitNormalTau],
    ) -> dict[str, Float[Array, "..."]]:
        """Computes the metrics of `loss` without alignment, separation or condition, with one level per modality."""
        plain = replace(
            self, schedule=UniformTimestep(tau=tau), alignment=NoAlignment(), separation=None, condition_drop=1.0
        )
        params, frozen = {"model": model_params}, {"ema": model_params}
        return plain.loss(params, frozen, batch, keys_B, plain.draw(keys_B, batch))[1]

    def extra_flops(self, sample: SampleShape) -> float:
        """Returns the operations of the alignment on one sample."""
        return self.alignment.extra_flops(sample)

    def frozen_from(self) -> dict[str, str]:
        """Returns an empty dict: the EMA starts from the student."""
        return {}

    def project(self, params: Params, features: dict[str, Float[Array, "B N D"]]) -> dict[str, Float[Array, "B N E"]]:
        """Applies the projector, which all modalities share, to the student's features.

        If the target's channels differ by modality, each modality has its own projector; modalities without one are
        left out.
        """
        if not self.alignment.projector_depth:
            return features
        graph, _ = _structure(self._projector)
        projector = nnx.merge(graph, nnx.State(params["projector"]))
        if self.alignment.target_channels is not None:
            return projector(features)
        return {m: projector(features_BND) for m, features_BND in features.items()}

    # Layers are created without a mesh; `jax.jit` places the whole state by the logical axes.

    def _model(self, key: Key[Array, ""]) -> JointTransformer | SiT:
        with nnx.use_eager_sharding(False):
            if isinstance(self.model, SiTConfig):
                return SiT(self.model, rngs=nnx.Rngs(key))
            return JointTransformer(self.model, self.modalities, rngs=nnx.Rngs(key))

    def _projector(self, key: Key[Array, ""]) -> Projector | Projectors:
        width, depth = self.model.width, self.alignment.projector_depth
        channels = self.alignment.target_channels
        with nnx.use_eager_sharding(False):
            if channels is not None:
                return Projectors(width, channels, rngs=nnx.Rngs(key), depth=depth)
            return Projector(width, rngs=nnx.Rngs(key), depth=depth)


def require_self_flow(objective: FlowObjective, purpose: str) -> SelfFlowObjective:
    """Checks the objective for tools that need members of `SelfFlowObjective`, such as `alignment` and `terms`.

    Args:
      objective: objective of a run.
      purpose: caller, for the error message.

    Raises:
      UserError: if it is not a `SelfFlowObjective`.
    """
    if not isinstance(objective, SelfFlowObjective):
        raise UserError(
            f"objective is {type(objective).__name__}: {purpose} needs FlowMatching; take a run or experiment with it"
        )
    return objective


def _in_compute_type(params: Params, dtype: str) -> Params:
    """Casts the weights of dense layers to their compute dtype before they are gathered from the devices.

    A parameter that is split over devices is sent to all of them, layer by layer; in bfloat16 that is half the bytes.
    Norms, embeddings and the projector, which compute in float32, keep their dtype.
    """

    def cast(path: tuple, x: jax.Array) -> jax.Array:
        return x.astype(dtype) if path[-1].key in ("kernel", "bias") else x

    return jax.tree_util.tree_map_with_path(cast, params)


def _structure(make: Callable[[Key[Array, ""]], nnx.Module]) -> tuple[nnx.GraphDef, Axes]:
    """Returns a module without its parameters, and the parameters' logical axes by name."""
    graph, axes = None, {}

    def trace() -> None:
        nonlocal graph
        graph, state = nnx.split(make(jax.random.key(0)))
        for path, variable in nnx.to_flat_state(state):
            axes[".".join(map(str, path))] = variable.get_metadata("out_sharding")

    # Not nnx.eval_shape: with a mesh set it would look for the logical axes among the axes of the mesh.
    jax.eval_shape(trace)
    return graph, axes
