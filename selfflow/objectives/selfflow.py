"""The heart: one loss for every schedule and every alignment."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from selfflow.modality import Modality, of_latents, to_tokens
from selfflow.models.joint import Caption, JointTransformer, Output
from selfflow.models.joint_config import JointConfig
from selfflow.models.projector import Projector
from selfflow.models.separation import Groups, Separation
from selfflow.models.sit import SiT, SiTConfig
from selfflow.noise import Corruption, Schedule, corrupt, draw_eps, keys_for
from selfflow.objectives.alignment import Alignment, NoAlignment, alignment_error
from selfflow.objectives.flow import flow_error

TAU_BUCKETS = 5

Params = dict[str, Any]


class Draw(NamedTuple):
    """All that is drawn for a batch, sample by sample, before it is split for gradient accumulation.

    Attributes:
      corruption: levels, assignment and given tokens.
      label: the condition that student and teacher both see, [B]; dropped labels are already null.
      caption: the other condition; dropped captions have an empty mask. None in sets without.
      valid: tokens that are not padding, of the modalities that may be padded, [B, N].
      weight: weight of each token in its modality's mean, [B, N]; sums to 1 over the whole batch,
        so that the losses of its parts add up to the loss of the whole.
    """

    corruption: Corruption
    label: Int[Array, "B"]
    caption: Caption | None
    valid: dict[str, Bool[Array, "B N"]]
    weight: dict[str, Float[Array, "B N"]]


@dataclass(frozen=True)
class SelfFlowObjective:
    """Joint flow matching with self-distilled alignment (arXiv 2603.06507).

    Attributes:
      model: shape of the transformer.
      modalities: the streams of latents that the run knows.
      schedule: how noise is spread over tokens.
      alignment: what the early features are aligned with.
      modality_weight: w_m; 1 where a modality is not named.
      condition_drop: probability that a sample's label and caption are replaced by null, for student and teacher.
      separation: whether masked tokens and the others see each other.
    """

    model: JointConfig | SiTConfig
    modalities: dict[str, Modality]
    schedule: Schedule
    alignment: Alignment
    modality_weight: dict[str, float]
    condition_drop: float
    separation: Separation | None = None

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh trainable parameters: {"model": ..., "projector": ...}; no projector without alignment."""
        model_key, projector_key = jax.random.split(key)
        params = {"model": nnx.to_pure_dict(nnx.state(self._model(model_key)))}
        if not isinstance(self.alignment, NoAlignment):
            params["projector"] = nnx.to_pure_dict(nnx.state(self._projector(projector_key)))
        return params

    def logical_axes(self) -> dict[str, tuple[str | None, ...]]:
        """What each axis of each parameter stands for, by the parameter's dotted name."""
        parts = {"model": self._model}
        if not isinstance(self.alignment, NoAlignment):
            parts["projector"] = self._projector
        return {f"{part}.{name}": axes for part, make in parts.items() for name, axes in _structure(make)[1].items()}

    def teacher_of(self, params: Params) -> Params:
        """The part of the trained parameters that the EMA follows: the model, without the projector."""
        return params["model"]

    def apply(self, model_params: Params, *args, **kwargs) -> Output:
        """`JointTransformer.__call__` with the given parameters; a SiT sees the one modality of the set."""
        graph, _ = _structure(self._model)
        model = nnx.merge(graph, nnx.State(_in_compute_type(model_params, self.model.dtype)))
        return _one_modality(model, *args, **kwargs) if isinstance(model, SiT) else model(*args, **kwargs)

    def project(self, params: Params, features: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The student's features through the projector, which all modalities share."""
        graph, _ = _structure(self._projector)
        projector = nnx.merge(graph, nnx.State(params["projector"]))
        return {m: projector(x_BND) for m, x_BND in features.items()}

    # Logical axes are for `jax.jit` to place whole states by; layers are made without a mesh.

    def _model(self, key: Key[Array, ""]) -> JointTransformer | SiT:
        with nnx.use_eager_sharding(False):
            if isinstance(self.model, SiTConfig):
                return SiT(self.model, rngs=nnx.Rngs(key))
            return JointTransformer(self.model, self.modalities, rngs=nnx.Rngs(key))

    def _projector(self, key: Key[Array, ""]) -> Projector:
        with nnx.use_eager_sharding(False):
            return Projector(self.model.width, rngs=nnx.Rngs(key))

    def draw(self, keys_B: Key[Array, "B"], batch: dict[str, Any]) -> Draw:
        """Draws corruption and dropped conditions for a batch.

        Args:
          keys_B: a key for each sample.
          batch: `latents` {modality: [B, ...]}, `label` [B] (below 0 for none), `weight` [B] (0 for samples that count
            in no loss); where there are captions `caption` (embeddings [B, L, C], mask [B, L]), and where clips may be
            padded `frames` {modality: number of latent frames that are data [B]}.
        """
        modalities = of_latents(self.modalities, batch["latents"])
        corruption = self.schedule.sample(keys_B, {m: modality.tokens for m, modality in modalities.items()})
        corruption = self.schedule.hold(corruption, keys_B, modalities)
        dropped_B = jax.vmap(lambda key: jax.random.bernoulli(key, self.condition_drop))(keys_for(keys_B, "label"))
        label_B = jnp.where(dropped_B | (batch["label"] < 0), self.model.labels, batch["label"])
        caption = None
        if "caption" in batch:
            embedding, mask = batch["caption"]
            caption = Caption(embedding, mask & ~dropped_B[:, None])
        valid = {m: modalities[m].valid_tokens(frames_B) for m, frames_B in batch.get("frames", {}).items()}
        return Draw(corruption, label_B, caption, valid, token_weight(corruption, valid, batch["weight"]))

    def views(self, params: Params, teacher: Params, batch: dict[str, Any], keys_B: Key[Array, "B"], draw: Draw):
        """Student and teacher outputs on one batch, and the velocity to predict.

        Both see the same sample, noise, condition and positions; the teacher sees every token at the lower
        of its modality's levels, stops after block k and gets no gradient; None without alignment.
        """
        x = to_tokens(self.modalities, batch["latents"])
        eps = draw_eps(keys_B, x)
        corruption, alignment = draw.corruption, self.alignment
        seen = lambda c: (corrupt(x, eps, c), c.levels, draw.label, c.assignment)
        condition = {"caption": draw.caption, "valid": draw.valid}
        groups = self._groups(corruption)
        target = {m: eps[m] - x[m] for m in x}
        if isinstance(alignment, NoAlignment):
            return self.apply(params["model"], *seen(corruption), groups=groups, **condition), None, target
        layer, k = alignment.student_layer, alignment.teacher_layer
        student = self.apply(params["model"], *seen(corruption), taps=(layer,), groups=groups, **condition)
        teacher, clean = jax.lax.stop_gradient(teacher), corruption.cleanest()
        groups = groups if self.separation and self.separation.teacher else None
        teacher_output = self.apply(teacher, *seen(clean), taps=(k,), stop_at=k, groups=groups, **condition)
        return student, teacher_output, target

    def errors(
        self, params: Params, student: Output, teacher: Output | None, target: dict[str, Float[Array, "B N P"]]
    ) -> tuple[dict[str, Float[Array, "B N"]], dict[str, Float[Array, "B N"]]]:
        """Flow and alignment error of every token, of what `views` gives; the latter empty without alignment."""
        error = flow_error(student.velocity, target)
        if teacher is None:
            return error, {}
        projected = self.project(params, student.taps[self.alignment.student_layer])
        return error, alignment_error(projected, teacher.taps[self.alignment.teacher_layer])

    def _groups(self, corruption: Corruption) -> Groups | None:
        """Who sees whom: masked tokens and the others, across modalities."""
        if self.separation is None:
            return None
        if corruption.given:
            raise ValueError("given tokens have no group: separation does not go with them")
        group = corruption.assignment
        masked = sum(self.schedule.masked(m, group_BN.shape[1]) for m, group_BN in group.items())
        return Groups(group, masked, round(self.separation.whole * len(next(iter(group.values())))))

    def loss(
        self, params: Params, frozen: dict[str, Params], batch: dict[str, Any], keys_B: Key[Array, "B"], draw: Draw
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, "..."]]]:
        """L = sum_m w_m (L_flow,m + gamma L_rep,m), and sums that add up over the parts of a batch.

        Args:
          params: trained parameters.
          frozen: {"ema": the teacher's parameters}.
          batch, keys_B, draw: a batch or a part of one, with what was drawn for it.

        Returns:
          The loss and metrics: `flow_loss/M`, `alignment_cosine/M`, and `flow_sum/M`, `flow_count/M`
          per bucket of tau [TAU_BUCKETS].
        """
        student, teacher, target = self.views(params, frozen["ema"], batch, keys_B, draw)
        error, distance = self.errors(params, student, teacher, target)
        mean = lambda values, m: jnp.sum(values[m] * draw.weight[m])
        flow = {m: mean(error, m) for m in error}
        loss = sum(self.modality_weight.get(m, 1.0) * flow[m] for m in flow)
        metrics = {f"flow_loss/{m}": flow[m] for m in flow}
        if teacher is not None:
            alignment = {m: mean(distance, m) for m in distance}
            loss += self.alignment.weight * sum(self.modality_weight.get(m, 1.0) * alignment[m] for m in alignment)
            for m in distance:
                # Weights of an all-given modality sum to 0: its cosine is then no number to report.
                metrics[f"alignment_cosine/{m}"] = jnp.sum(draw.weight[m]) - alignment[m]
        tau = draw.corruption.tau()
        for m in error:
            bucket_BN = jnp.clip((tau[m] * TAU_BUCKETS).astype(jnp.int32), 0, TAU_BUCKETS - 1)
            counted = jax.nn.one_hot(bucket_BN, TAU_BUCKETS) * (draw.weight[m] > 0)[..., None]
            metrics[f"flow_sum/{m}"] = jnp.einsum("bnk,bn->k", counted, jax.lax.stop_gradient(error[m]))
            metrics[f"flow_count/{m}"] = counted.sum((0, 1))
        return loss, metrics


def _in_compute_type(params: Params, dtype: str) -> Params:
    """The weights of dense layers in the type that these cast them to, before they are gathered from the devices.

    A parameter that is split over devices is sent to all of them, layer by layer: in bfloat16 that is half the bytes.
    Norms, embeddings and the projector, which compute in float32, keep their type.
    """
    dense = lambda path: path[-1].key in ("kernel", "bias")
    return jax.tree_util.tree_map_with_path(lambda path, x: x.astype(dtype) if dense(path) else x, params)


def _structure(make: Callable[[Key[Array, ""]], nnx.Module]) -> tuple[nnx.GraphDef, dict[str, tuple[str | None, ...]]]:
    """A module without its parameters, and their logical axes by dotted name."""
    found = []

    def look() -> None:
        graph, state = nnx.split(make(jax.random.key(0)))
        flat = nnx.to_flat_state(state)
        found.append((graph, {".".join(map(str, path)): x.get_metadata("out_sharding") for path, x in flat}))

    # Not nnx.eval_shape: where a mesh is set it looks for the logical axes among those of the mesh.
    jax.eval_shape(look)
    return found[0]


def _one_modality(
    model: SiT,
    tokens: dict[str, Float[Array, "B N P"]],
    levels: dict[str, Float[Array, "B K"]],
    label_B: Int[Array, "B"],
    assignment: dict[str, Int[Array, "B N"]],
    caption: Caption | None = None,
    valid: dict[str, Bool[Array, "B N"]] | None = None,
    **more,
) -> Output:
    if len(tokens) != 1 or caption is not None or valid:
        raise ValueError(f"a SiT takes one modality without captions or padding, not {sorted(tokens)}")
    (m,) = tokens
    out = model(tokens[m], levels[m], label_B, assignment[m], **more)
    velocity = None if out.velocity is None else {m: out.velocity}
    return Output(velocity, {block: {m: x_BND} for block, x_BND in out.taps.items()})


def token_weight(
    corruption: Corruption, valid: dict[str, Bool[Array, "B N"]], weight_B: Float[Array, "B"]
) -> dict[str, Float[Array, "B N"]]:
    """The samples' weights for tokens that are neither given nor padding, summing to 1 over the batch and modality."""
    weight = {}
    for m, assignment_BN in corruption.assignment.items():
        counted_BN = jnp.broadcast_to(weight_B[:, None], assignment_BN.shape).astype(jnp.float32)
        if m in corruption.given:
            counted_BN *= ~corruption.given[m]
        if m in valid:
            counted_BN *= valid[m]
        # Where nothing counts the weights stay 0.
        total = counted_BN.sum()
        weight[m] = counted_BN / jnp.where(total > 0, total, 1.0)
    return weight
