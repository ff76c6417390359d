"""The interface and the shared settings of alignment methods, and the distances between features.

Alignment adds a second term to the flow loss (arXiv 2603.06507):

    L_align = mean over tokens i of 1 - cos(projector(student_l,i), target_i)

where student_l,i are the student's features of token i after block l, computed from tokens at mixed noise levels, and
the target comes from cleaner tokens, a later block or another network. Methods differ mainly in the target.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from selfflow.encoders.config import Encoder
from selfflow.errors import UserError
from selfflow.models.joint import Output
from selfflow.models.joint_config import JointConfig
from selfflow.models.layers import to_float32
from selfflow.models.sit import SiTConfig
from selfflow.noise import Corruption, Schedule
from selfflow.objectives.draw import Draw, View, token_weight

_BETA = 0.05  # transition of smooth l1 from a parabola to a line, as in the code of SRA

Features = dict[str, Float[Array, "B N D"]]


class Forward(Protocol):
    """A forward pass of the model on the batch of the step, with the noise of the step."""

    def __call__(
        self, params: Any, view: View, *, taps: tuple[int, ...] = (), stop_at: int | None = None, teacher: bool = False
    ) -> Output:
        """Runs the model.

        Args:
          params: parameters of the model.
          view: noise levels and condition.
          taps: blocks whose features are returned.
          stop_at: the last block to run; later blocks and the head are skipped.
          teacher: whether this is the teacher's pass, to which Attention Separation may not apply.
        """
        ...


class SampleShape(NamedTuple):
    """The shapes of one sample, which determine the cost of a method.

    Attributes:
      width: D, channels of the model.
      tokens: number of tokens of each modality.
      levels: number of noise levels of each modality, including the context's.
      context: whether one of the levels belongs to the context.
      forward: operations of a teacher's forward pass, as a function of (levels, number of blocks).
      network: operations of the forward pass of another network on the sample, with its last layer, as a function of
        (config, levels).
    """

    width: int
    tokens: dict[str, int]
    levels: dict[str, int]
    context: bool
    forward: Callable[[dict[str, int], int], float]
    network: Callable[[JointConfig | SiTConfig, dict[str, int]], float]


class AlignmentMethod:
    """Base class of alignment methods; it has no target, and therefore no alignment loss.

    A method is a frozen dataclass of settings, in a separate file and in the union `Alignment`. Most methods subclass
    `FeatureAlignment` and define `target`; everything that depends on the method is one of the members below.

    Attributes:
      student_taps: blocks whose features the student's forward pass returns, the aligned one first; none without
        alignment.
      projector_depth: number of layers of the student's projector; 0 for none.
      target_encoders: frozen encoder of each modality whose features are the target; `batch["features"]` holds them.
      target_channels: channels of the target by modality, each with its own projector; None if the target has the
        model's width and all modalities share one projector.
      teacher_layer: block whose features are the target, which evaluation probes by default; None if the target does
        not come from one block of the model.
      unaligned: modalities that the settings exempt from alignment.
    """

    projector_depth: int = 0
    teacher_layer: int | None = None

    @property
    def student_taps(self) -> tuple[int, ...]:
        return ()

    @property
    def target_encoders(self) -> dict[str, Encoder]:
        return {}

    @property
    def target_channels(self) -> dict[str, int] | None:
        return None

    @property
    def unaligned(self) -> tuple[str, ...]:
        return ()

    def check(self, depth: int, width: int, modalities: dict[str, str]) -> None:
        """Raises `UserError`, naming the field, unless the settings fit the model and the mixture.

        Args:
          depth: number of blocks of the model.
          width: D, channels of the model.
          modalities: each modality of the mixture, with the name of a component that has it.
        """

    def gamma(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """Returns the weight of the alignment loss after `step` updates."""
        return jnp.zeros((), jnp.float32)

    def token_weight(
        self, corruption: Corruption, valid: dict[str, Bool[Array, "B N"]], weight_B: Float[Array, "B"]
    ) -> dict[str, Float[Array, "B N"]]:
        """Returns each token's weight in its modality's alignment error; arguments as for `draw.token_weight`."""
        return {}

    def draw_teacher(self, student: View, undropped: View, schedule: Schedule, keys_B: Key[Array, "B"]) -> View | None:
        """Draws the teacher's view of the batch; None for methods without a teacher.

        Args:
          student: the student's view.
          undropped: the same view before labels and captions are dropped.
          schedule: the schedule that drew the levels.
          keys_B: a key for each sample.
        """
        return None

    def student_features(self, student: Output) -> Features:
        """Returns the student's features before the projector."""
        return {}

    def target(
        self, forward: Forward, frozen: dict[str, Any], student: Output, batch: dict[str, Any], draw: Draw
    ) -> dict[str, Float[Array, "B N E"]]:
        """Computes the features that the projected student is compared with, by modality; no gradient reaches them.

        Args:
          forward: the model on this batch.
          frozen: {"ema": the EMA of the student's parameters}; there are no other trees.
          student: output of the student's forward pass.
          batch, draw: the batch and its random draws.
        """
        return {}

    def error(
        self, projected: dict[str, Float[Array, "B N E"]], target: dict[str, Float[Array, "B N E"]], draw: Draw
    ) -> dict[str, Float[Array, "B N"]]:
        """Computes the distance between each token's projected features and the target, by modality."""
        return {}

    def metrics(self, error: dict[str, Float[Array, ""]], draw: Draw) -> dict[str, Float[Array, ""]]:
        """Computes metrics from the mean errors by modality, named "alignment_.../MODALITY"."""
        return {}

    def extra_flops(self, sample: SampleShape) -> float:
        """Returns the operations that the method adds to the student's forward and backward pass, per sample."""
        return 0


@dataclass(frozen=True)
class FeatureAlignment(AlignmentMethod):
    """Alignment of the features of one block of the student: settings, projector and distance of all methods."""

    weight: float = 0.8
    """gamma, the weight of the alignment loss beside the flow loss: 0.8 in arXiv 2603.06507, 0.5 in 2607.02508."""
    warm_up: int = 0
    """Steps over which the weight rises from 0, while projector and teacher are far from each other, as in
    musubi-tuner's port (its pull request 913)."""
    until: int | None = None
    """Step from which the weight is 0: the early termination of HASTE (arXiv 2505.16792). The target is still computed,
    so that its cosine is logged."""
    fade: int = 0
    """Steps before `until` over which the weight falls to 0 linearly, instead of HASTE's one step."""
    student_layer: int = 6
    """l: the student's features are taken after this block, counted from 1 (about 0.3 of the depth in
    arXiv 2603.06507, where 4, 8 and 12 of 28 differ little)."""
    metric: Literal["cosine", "l1", "smooth_l1"] = "cosine"
    """1 - cosine (arXiv 2603.06507, where l1 was unstable late), or the mean absolute error over channels, or the same
    with a parabola below 0.05 (SRA, arXiv 2505.02831)."""
    over: Literal["features", "tokens"] = "features"
    """Axis of the cosine: over the channels of each token, or over the tokens of each channel, as in the code released
    with arXiv 2607.02508."""
    tokens: Literal["all", "noisier", "cleaner"] = "all"
    """Tokens that count: all (arXiv 2603.06507), or those at the highest or at the lowest level of their modality. The
    paper attributes its gain to information of cleaner tokens about noisier ones, which arXiv 2607.02508 disputes."""
    projector_depth: int = 2
    """Layers of the student's projector: 2 in the weights released with arXiv 2603.06507; 3 layers match the number of
    parameters in its text, and REPA; 0 omits the projector."""

    def __post_init__(self):
        for name in ("weight", "warm_up", "fade", "projector_depth"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"alignment.{name} is {getattr(self, name)}: give a number that is not negative")
        if self.until is not None and self.until < max(1, self.fade):
            raise UserError(f"alignment.until is {self.until}: give at least 1, and at least fade, {self.fade}")
        if self.fade and self.until is None:
            raise UserError(f"alignment.fade is {self.fade}: set alignment.until, the step at which it ends")
        if self.over == "tokens" and self.metric != "cosine":
            raise UserError(
                f"alignment.over is tokens: {self.metric} is the same over both axes; set alignment.metric cosine"
            )

    @property
    def student_taps(self) -> tuple[int, ...]:
        return (self.student_layer,)

    def check(self, depth: int, width: int, modalities: dict[str, str]) -> None:
        """Raises `UserError` unless the student's block is one of the model's."""
        check_block("student_layer", self.student_layer, depth)

    def gamma(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """Returns `weight`, after a linear rise over `warm_up` and before a linear fall over `fade` to `until`."""
        # gamma(n) = weight min(1, n / warm_up) clip((until - n) / fade, 0, 1)
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum(1.0, step / self.warm_up) if self.warm_up else 1.0
        fall = 1.0 if self.until is None else jnp.clip((self.until - step) / max(1, self.fade), 0.0, 1.0)
        return self.weight * rise * fall

    def token_weight(
        self, corruption: Corruption, valid: dict[str, Bool[Array, "B N"]], weight_B: Float[Array, "B"]
    ) -> dict[str, Float[Array, "B N"]]:
        return token_weight(corruption, valid, weight_B, self.tokens)

    def student_features(self, student: Output) -> Features:
        return student.taps[self.student_layer]

    def error(
        self, projected: dict[str, Float[Array, "B N E"]], target: dict[str, Float[Array, "B N E"]], draw: Draw
    ) -> dict[str, Float[Array, "B N"]]:
        error = {}
        for m, projected_BNE in projected.items():
            # A modality may be exempt, such as audio if there is only an image encoder.
            if m in target:
                error[m] = feature_error(projected_BNE, target[m], draw.aligned[m] > 0, self.metric, self.over)
        return error

    def metrics(self, error: dict[str, Float[Array, ""]], draw: Draw) -> dict[str, Float[Array, ""]]:
        """Returns `alignment_cosine/M`, or `alignment_loss/M` for other metrics."""
        if self.metric != "cosine":
            return {f"alignment_loss/{m}": value for m, value in error.items()}
        # Errors are sums of w_i (1 - cos_i), so that sum_i w_i - error is the weighted cosine; 0 where no token counts.
        return {f"alignment_cosine/{m}": jnp.sum(draw.aligned[m]) - value for m, value in error.items()}

    def extra_flops(self, sample: SampleShape) -> float:
        """Returns the operations of the projector's forward and backward pass."""
        if not self.projector_depth:
            return 0
        channels = self.target_channels
        if channels is None:
            channels = dict.fromkeys(sample.tokens, sample.width)
        total = 0
        for m, outputs in channels.items():
            # The backward pass costs twice the forward pass.
            total += 3 * sample.tokens.get(m, 0) * projector_flops(self.projector_depth, sample.width, outputs)
        return total


def check_block(name: str, block: int, depth: int) -> None:
    """Raises `UserError` unless a setting of the alignment names a block of the model."""
    if not 1 <= block <= depth:
        raise UserError(f"alignment.{name} is {block}: the model has blocks 1 to {depth}")


def check_below(student_layer: int, teacher_layer: int) -> None:
    """Raises `UserError` unless the student's block lies below the target's."""
    if student_layer >= teacher_layer:
        raise UserError(
            f"alignment.student_layer is {student_layer}: it must be below alignment.teacher_layer, {teacher_layer}"
        )


def projector_flops(depth: int, width: int, outputs: int) -> int:
    """Returns the operations of a `Projector`'s forward pass on one token."""
    if depth == 1:
        return 2 * width * outputs
    return 2 * (2 * width**2 + 4 * (depth - 2) * width**2 + 2 * width * outputs)


def cosine(a: Float[Array, "... D"], b: Float[Array, "... D"]) -> Float[Array, "..."]:
    """a . b / sqrt(max(|a|^2 |b|^2, 1e-12)) over the feature axis, in float32: squares overflow in half precision."""
    a, b = to_float32(a), to_float32(b)
    squares = jnp.sum(a * a, axis=-1) * jnp.sum(b * b, axis=-1)
    return jnp.sum(a * b, axis=-1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def feature_error(
    student_BND: Float[Array, "B N D"],
    target_BND: Float[Array, "B N D"],
    counted_BN: Bool[Array, "B N"],
    metric: str = "cosine",
    over: str = "features",
) -> Float[Array, "B N"]:
    """Computes the distance between each token's features and the target, in float32; the target gets no gradient.

    Args:
      student_BND, target_BND: features.
      counted_BN: tokens that count; a cosine over tokens leaves out the others.
      metric, over: see the settings. Over tokens, all tokens of a sample have the same error, the mean over channels.
    """
    student_BND, target_BND = to_float32(student_BND), to_float32(jax.lax.stop_gradient(target_BND))
    if metric == "cosine" and over == "features":
        return 1 - cosine(student_BND, target_BND)
    if metric == "cosine":
        # One cosine over the N tokens of each channel; tokens that do not count are zeros, which change no cosine.
        student_BDN = jnp.where(counted_BN[..., None], student_BND, 0.0).swapaxes(1, 2)
        target_BDN = jnp.where(counted_BN[..., None], target_BND, 0.0).swapaxes(1, 2)
        error_B = 1 - cosine(student_BDN, target_BDN).mean(axis=1)
        return jnp.broadcast_to(error_B[:, None], counted_BN.shape)
    error_BND = jnp.abs(student_BND - target_BND)
    if metric == "smooth_l1":
        # d^2 / (2 beta) below beta, d - beta / 2 above: value and slope are continuous.
        error_BND = jnp.where(error_BND < _BETA, error_BND**2 / (2 * _BETA), error_BND - _BETA / 2)
    return error_BND.mean(axis=-1)
