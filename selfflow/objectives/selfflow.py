"""The heart: one loss for every schedule and every alignment."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from selfflow.encoders.config import Encoder
from selfflow.modality import Modality, of_latents, to_tokens
from selfflow.models.joint import Caption, JointTransformer, Output
from selfflow.models.joint_config import JointConfig
from selfflow.models.projector import Projector, Projectors
from selfflow.models.separation import Groups, Separation
from selfflow.models.sit import SiT, SiTConfig
from selfflow.noise import Corruption, Schedule, corrupt, draw_eps, keys_for
from selfflow.objectives.alignment import (
    Alignment,
    ExternalEncoder,
    LayerSync,
    NoAlignment,
    alignment_error,
    encoders_of,
)
from selfflow.objectives.draw import Draw, TeacherView, token_weight
from selfflow.objectives.flow import flow_error

TAU_BUCKETS = 5

Params = dict[str, Any]


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

    @property
    def encoders(self) -> dict[str, Encoder]:
        """The frozen encoder of each modality that is aligned with one; empty for other methods."""
        return encoders_of(self.alignment)

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh trainable parameters: {"model": ..., "projector": ...}; no projector where none is learned."""
        model_key, projector_key = jax.random.split(key)
        params = {"model": nnx.to_pure_dict(nnx.state(self._model(model_key)))}
        if self._projected:
            params["projector"] = nnx.to_pure_dict(nnx.state(self._projector(projector_key)))
        return params

    def logical_axes(self) -> dict[str, tuple[str | None, ...]]:
        """What each axis of each parameter stands for, by the parameter's dotted name."""
        parts = {"model": self._model}
        if self._projected:
            parts["projector"] = self._projector
        return {f"{part}.{name}": axes for part, make in parts.items() for name, axes in _structure(make)[1].items()}

    def teacher_of(self, params: Params) -> Params:
        """The part of the trained parameters that the EMA follows: the model, without the projector."""
        return params["model"]

    def apply(self, model_params: Params, *args, **kwargs) -> Output:
        """`JointTransformer.__call__` with the given parameters; a SiT sees the one modality of the component."""
        graph, _ = _structure(self._model)
        model = nnx.merge(graph, nnx.State(_in_compute_type(model_params, self.model.dtype)))
        return _one_modality(model, *args, **kwargs) if isinstance(model, SiT) else model(*args, **kwargs)

    def project(self, params: Params, features: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The student's features through the projector, which all modalities share.

        Where encoders are the target each modality has its own, and those without an encoder are left out.
        """
        if not self._projected:
            return features
        graph, _ = _structure(self._projector)
        projector = nnx.merge(graph, nnx.State(params["projector"]))
        return projector(features) if self.encoders else {m: projector(x_BND) for m, x_BND in features.items()}

    # Logical axes are for `jax.jit` to place whole states by; layers are made without a mesh.

    def _model(self, key: Key[Array, ""]) -> JointTransformer | SiT:
        with nnx.use_eager_sharding(False):
            if isinstance(self.model, SiTConfig):
                return SiT(self.model, rngs=nnx.Rngs(key))
            return JointTransformer(self.model, self.modalities, rngs=nnx.Rngs(key))

    def _projector(self, key: Key[Array, ""]) -> Projector | Projectors:
        width, depth = self.model.width, self.alignment.projector_depth
        with nnx.use_eager_sharding(False):
            if self.encoders:
                outputs = {m: encoder.width for m, encoder in self.encoders.items()}
                return Projectors(width, outputs, rngs=nnx.Rngs(key), depth=depth)
            return Projector(width, rngs=nnx.Rngs(key), depth=depth)

    @property
    def _projected(self) -> bool:
        return not isinstance(self.alignment, NoAlignment) and self.alignment.projector_depth > 0

    def draw(self, keys_B: Key[Array, "B"], batch: dict[str, Any], step: Int[Array, ""] | int = 0) -> Draw:
        """Draws corruption and dropped conditions for a batch.

        Args:
          keys_B: a key for each sample.
          batch: `latents` {modality: [B, ...]}, `label` [B] (below 0 for none), `weight` [B] (0 for samples that count
            in no loss); where there are captions `caption` (embeddings [B, L, C], mask [B, L]), where clips may be
            padded `frames` {modality: number of latent frames that are data [B]}, and where encoders are the target
            `features` {modality: theirs, on the grid of the tokens [B, N, E]}.
          step: finished updates, which the weight of the alignment loss may follow.
        """
        modalities = of_latents(self.modalities, batch["latents"])
        corruption = self.schedule.sample(keys_B, {m: modality.tokens for m, modality in modalities.items()})
        corruption = self.schedule.hold(corruption, keys_B, modalities)
        dropped_B = jax.vmap(lambda key: jax.random.bernoulli(key, self.condition_drop))(keys_for(keys_B, "label"))
        label_B = jnp.where(dropped_B | (batch["label"] < 0), self.model.labels, batch["label"])
        whole = Caption(*batch["caption"]) if "caption" in batch else None
        caption = whole and Caption(whole.embedding, whole.mask & ~dropped_B[:, None])
        valid = {m: modalities[m].valid_tokens(frames_B) for m, frames_B in batch.get("frames", {}).items()}
        weight = token_weight(corruption, valid, batch["weight"])
        draw, alignment = Draw(corruption, label_B, caption, valid, weight), self.alignment
        if isinstance(alignment, NoAlignment):
            return draw
        aligned = token_weight(corruption, valid, batch["weight"], alignment.tokens)
        draw = draw._replace(aligned=aligned, gamma=jnp.broadcast_to(alignment.gamma(step), label_B.shape))
        if isinstance(alignment, LayerSync | ExternalEncoder):
            return draw
        if alignment.teacher_keeps_condition:
            label_B, caption = jnp.where(batch["label"] < 0, self.model.labels, batch["label"]), whole
        views = {
            "min": corruption.cleanest,
            "interval": lambda: corruption.less(self.schedule.intervals(keys_B, corruption, alignment.interval)),
            "same": lambda: corruption,
        }
        return draw._replace(teacher=TeacherView(views[alignment.teacher_view](), label_B, caption))

    def views(self, params: Params, teacher: Params, batch: dict[str, Any], keys_B: Key[Array, "B"], draw: Draw):
        """The student's output on one batch, the features that it is aligned with, and the velocity to predict.

        Student and teacher see the same sample, noise and positions. The teacher, at the levels of its view, stops
        after block k and gets no gradient. Features are [B, N, D] by modality, those of encoders [B, N, E] and of the
        modalities that have one; None without alignment.
        """
        x = to_tokens(self.modalities, batch["latents"])
        eps = draw_eps(keys_B, x)
        corruption, alignment = draw.corruption, self.alignment
        seen = lambda view: (
            corrupt(x, eps, view.corruption),
            view.corruption.levels,
            view.label,
            view.corruption.assignment,
        )
        condition = lambda view: {"caption": view.caption, "valid": draw.valid}
        groups = self._groups(corruption)
        target = {m: eps[m] - x[m] for m in x}
        taps = () if isinstance(alignment, NoAlignment) else (alignment.student_layer,)
        if isinstance(alignment, LayerSync):
            taps += (alignment.teacher_layer,)
        student = self.apply(params["model"], *seen(draw), taps=taps, groups=groups, **condition(draw))
        if not taps:
            return student, None, target
        if isinstance(alignment, LayerSync):
            return student, jax.lax.stop_gradient(student.taps[alignment.teacher_layer]), target
        if isinstance(alignment, ExternalEncoder):
            features = batch.get("features", {})
            if lacking := (self.encoders.keys() & x.keys()) - features.keys():
                raise ValueError(f"the batch has no features of {', '.join(sorted(lacking))} to align with")
            return student, {m: jax.lax.stop_gradient(jnp.asarray(features[m])) for m in features}, target
        teacher, k = jax.lax.stop_gradient(teacher), alignment.teacher_layer
        groups = groups if self.separation and self.separation.teacher else None
        found = self.apply(teacher, *seen(draw.teacher), taps=(k,), stop_at=k, groups=groups, **condition(draw.teacher))
        return student, found.taps[k], target

    def errors(
        self,
        params: Params,
        student: Output,
        aligned_with: dict[str, Float[Array, "B N E"]] | None,
        target: dict[str, Float[Array, "B N P"]],
        draw: Draw,
    ) -> tuple[dict[str, Float[Array, "B N"]], dict[str, Float[Array, "B N"]]]:
        """Flow and alignment error of every token, of what `views` gives; the latter empty without alignment."""
        error, alignment = flow_error(student.velocity, target), self.alignment
        if aligned_with is None:
            return error, {}
        projected = self.project(params, student.taps[alignment.student_layer])
        return error, {
            m: alignment_error(x, aligned_with[m], draw.aligned[m] > 0, alignment.metric, alignment.over)
            for m, x in projected.items()
            if m in aligned_with
        }

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
          The loss and metrics: `flow_loss/M`, `alignment_cosine/M` or of another metric `alignment_loss/M`, and
          `flow_sum/M`, `flow_count/M` per bucket of tau [TAU_BUCKETS].
        """
        student, aligned_with, target = self.views(params, frozen["ema"], batch, keys_B, draw)
        error, distance = self.errors(params, student, aligned_with, target, draw)
        mean = lambda values, weight: jnp.sum(values * weight)
        flow = {m: mean(error[m], draw.weight[m]) for m in error}
        loss = sum(self.modality_weight.get(m, 1.0) * flow[m] for m in flow)
        metrics = {f"flow_loss/{m}": flow[m] for m in flow}
        for m in distance:
            weighted = mean(distance[m], draw.aligned[m] * draw.gamma[:, None])
            loss += self.modality_weight.get(m, 1.0) * weighted
            alignment = mean(distance[m], draw.aligned[m])
            if self.alignment.metric == "cosine":
                # Weights of an all-given modality sum to 0: its cosine is then no number to report.
                metrics[f"alignment_cosine/{m}"] = jnp.sum(draw.aligned[m]) - alignment
            else:
                metrics[f"alignment_loss/{m}"] = alignment
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
