"""Alignment: the student's features after block l, seen through mixed noise, against features that know more."""

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from selfflow.encoders.config import Encoder
from selfflow.errors import UserError
from selfflow.models.layers import to_float32

_BETA = 0.05  # where smooth l1 goes from a parabola to a line, as in the code of SRA


@dataclass(frozen=True)
class NoAlignment:
    """Flow matching alone: no teacher runs; an EMA is still kept to sample from."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True)
class _Aligned:
    weight: float = 0.8
    """gamma, the weight of the alignment loss beside the flow loss: 0.8 in arXiv 2603.06507, 0.5 in 2607.02508."""
    warm_up: int = 0
    """Steps over which the weight rises from 0, while projector and teacher are far from each other, as in
    musubi-tuner's port (its pull request 913)."""
    until: int | None = None
    """Step from which the weight is 0: the early termination of HASTE (arXiv 2505.16792). The target is computed as
    before, so that its cosine can be followed."""
    fade: int = 0
    """Steps before `until` over which the weight falls to 0 along a line, in place of HASTE's one jump."""
    student_layer: int = 6
    """l: the student's features are taken after this block, counted from 1 (about 0.3 of the depth in
    arXiv 2603.06507, where 4, 8 and 12 of 28 differ little)."""
    metric: Literal["cosine", "l1", "smooth_l1"] = "cosine"
    """1 - cosine (arXiv 2603.06507, where l1 was unstable late), or the mean absolute error over channels, or the same
    with a parabola below 0.05 (SRA, arXiv 2505.02831)."""
    over: Literal["features", "tokens"] = "features"
    """Axis of the cosine: over the channels of each token, or over the tokens of each channel, as the code released
    with arXiv 2607.02508 has it."""
    tokens: Literal["all", "noisier", "cleaner"] = "all"
    """Tokens that count: all (arXiv 2603.06507), or those at the highest or at the lowest level of their modality. What
    cleaner tokens tell of noisier ones is the paper's account of the gain, which arXiv 2607.02508 disputes."""
    projector_depth: int = 2
    """Layers of the student's projector: 2 in the weights released with arXiv 2603.06507; 3 have the number of
    parameters that its text gives, and are REPA's; 0 is none."""

    def __post_init__(self):
        where = "alignment"
        for name in ("weight", "warm_up", "fade", "projector_depth"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{where}.{name} is {getattr(self, name)}: give a number that is not negative")
        if self.until is not None and self.until < max(1, self.fade):
            raise UserError(f"{where}.until is {self.until}: give at least 1, and no less than fade, {self.fade}")
        if self.fade and self.until is None:
            raise UserError(f"{where}.fade is {self.fade}: name the step that it leads to, {where}.until")
        if self.over == "tokens" and self.metric != "cosine":
            raise UserError(f"{where}.over is tokens: {self.metric} is the same over both axes; take metric cosine")

    def gamma(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """The weight after this many updates."""
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum(1.0, step / self.warm_up) if self.warm_up else 1.0
        fall = 1.0 if self.until is None else jnp.clip((self.until - step) / max(1, self.fade), 0.0, 1.0)
        return self.weight * rise * fall

    def check(self, depth: int) -> None:
        """Raises `UserError` unless the layers are blocks of the model, the student's below the other."""
        names = [name for name in ("student_layer", "teacher_layer") if hasattr(self, name)]
        for name in names:
            if not 1 <= getattr(self, name) <= depth:
                raise UserError(f"alignment.{name} is {getattr(self, name)}, but the model has blocks 1 to {depth}")
        if len(names) == 2 and self.student_layer >= self.teacher_layer:
            raise UserError(
                f"alignment.student_layer {self.student_layer} must be below alignment.teacher_layer "
                f"{self.teacher_layer}: the student predicts deeper features"
            )


@dataclass(frozen=True)
class _Distilled(_Aligned):
    teacher_layer: int = 14
    """k: the teacher's features are taken after this block (about 0.7 of the depth); l < k."""
    teacher_view: Literal["min", "interval", "same"] = "min"
    """What the teacher sees: all tokens at the lower of the two levels (arXiv 2603.06507); each level less a uniform
    draw up to `interval`, at least 0, as in SRA and in the code of arXiv 2607.02508; or what the student sees."""
    interval: float = 0.2
    """Most that `interval` takes off a level (arXiv 2505.02831)."""
    teacher_keeps_condition: bool = False
    """Whether the teacher is told labels and captions that the student is not, as in the code of arXiv 2607.02508."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.interval <= 1:
            raise UserError(f"alignment.interval is {self.interval}: give a number above 0, up to 1")


@dataclass(frozen=True)
class SelfFlow(_Distilled):
    """Alignment with the EMA copy, which sees all tokens at the cleaner of the two levels (arXiv 2603.06507)."""

    kind: Literal["self_flow"] = "self_flow"


@dataclass(frozen=True)
class SRA(_Distilled):
    """Self-Representation Alignment (arXiv 2505.02831): an EMA copy sees a little less noise; with schedule uniform.

    The defaults are the paper's smooth l1 and the layers of SiT-XL/2; its other setting is cosine with weight 0.5.
    """

    kind: Literal["sra"] = "sra"
    weight: float = 0.2
    """gamma, the weight of the alignment loss beside the flow loss: 0.2 for smooth l1, 0.5 for cosine."""
    student_layer: int = 8
    metric: Literal["cosine", "l1", "smooth_l1"] = "smooth_l1"
    teacher_layer: int = 20
    teacher_view: Literal["min", "interval", "same"] = "interval"


@dataclass(frozen=True)
class LayerSync(_Aligned):
    """A deeper layer of the student's own forward pass is the target, without gradient (arXiv 2510.12581).

    No teacher runs and no projector is learned; an EMA is still kept to sample from. Weight and layers are those of the
    code released with the paper, for SiT-XL/2.
    """

    kind: Literal["layer_sync"] = "layer_sync"
    weight: float = 0.2
    """gamma, the weight of the alignment loss beside the flow loss."""
    student_layer: int = 8
    """l: the student's features are taken after this block, counted from 1."""
    projector_depth: int = 0
    """Layers of the student's projector; the paper has none."""
    teacher_layer: int = 16
    """k: the block whose features are the target; l < k."""


@dataclass(frozen=True)
class ExternalEncoder(_Aligned):
    """REPA (arXiv 2410.06940): the target are features that a frozen encoder has of the clean sample.

    They are computed once and stored beside the latents, and brought to the grid of the tokens; every modality has a
    projector of its own, for encoders differ in their channels. No teacher runs; an EMA is still kept to sample from.
    The defaults are the paper's: weight 0.5, block 8 of SiT-XL/2's 28, three layers, cosine.
    """

    kind: Literal["external"] = "external"
    weight: float = 0.5
    """gamma, the weight of the alignment loss beside the flow loss."""
    student_layer: int = 8
    projector_depth: int = 3
    encoders: dict[str, Encoder | None] = field(default_factory=dict)
    """The encoder of each modality of the mixture; None for those that are not aligned. The paper takes DINOv2-B for
    images, arXiv 2603.06507 compares with MERT for sound."""

    def __post_init__(self):
        super().__post_init__()
        for m, encoder in self.encoders.items():
            if encoder is not None and encoder.media and m not in encoder.media:
                raise UserError(
                    f"alignment.encoders.{m}: {encoder.kind} looks at {' and '.join(encoder.media)}; give FeatureFiles "
                    "that you computed, or None to leave it unaligned"
                )


Alignment = NoAlignment | SelfFlow | SRA | LayerSync | ExternalEncoder


def encoders_of(alignment: Alignment) -> dict[str, Encoder]:
    """The frozen encoder of each modality that is aligned with one; empty for other methods."""
    named = alignment.encoders if isinstance(alignment, ExternalEncoder) else {}
    return {m: encoder for m, encoder in named.items() if encoder is not None}


def cosine(a: Float[Array, "... D"], b: Float[Array, "... D"]) -> Float[Array, "..."]:
    """Cosine over the feature axis, in float32: half precision overflows in the norms."""
    a, b = to_float32(a), to_float32(b)
    squares = jnp.sum(a * a, axis=-1) * jnp.sum(b * b, axis=-1)
    return jnp.sum(a * b, axis=-1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def alignment_error(
    student_BND: Float[Array, "B N D"],
    target_BND: Float[Array, "B N D"],
    counted_BN: Bool[Array, "B N"],
    metric: str = "cosine",
    over: str = "features",
) -> Float[Array, "B N"]:
    """How far the projected student is from its target, token by token; no gradient reaches the target.

    Args:
      student_BND, target_BND: features.
      counted_BN: tokens that count; over tokens the others are left out of the cosine.
      metric, over: see the settings. Over tokens all tokens of a sample have one error, the mean of its channels'.
    """
    student_BND, target_BND = to_float32(student_BND), to_float32(jax.lax.stop_gradient(target_BND))
    if metric == "cosine" and over == "features":
        return 1 - cosine(student_BND, target_BND)
    if metric == "cosine":
        kept_BDN = lambda x_BND: jnp.where(counted_BN[..., None], x_BND, 0.0).swapaxes(1, 2)
        error_B = 1 - cosine(kept_BDN(student_BND), kept_BDN(target_BND)).mean(axis=1)
        return jnp.broadcast_to(error_B[:, None], counted_BN.shape)
    size_BND = jnp.abs(student_BND - target_BND)
    if metric == "smooth_l1":
        size_BND = jnp.where(size_BND < _BETA, size_BND**2 / (2 * _BETA), size_BND - _BETA / 2)
    return size_BND.mean(axis=-1)
