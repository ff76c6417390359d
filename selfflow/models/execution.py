"""The loop over depth: blocks of equal shape as stacked parameters, run in segments that end at each tap."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from selfflow.errors import UserError, check_at_least
from selfflow.models.attention import Implementation
from selfflow.models.placement import BATCH_AXES, constrain, platform

Carry = TypeVar("Carry")
# Queries, keys and values of all tokens [B, N, A, H] -> what they attend to [B, N, D].
Attend = Callable[[Float[Array, "B N A H"], Float[Array, "B N A H"], Float[Array, "B N A H"]], Float[Array, "B N D"]]

_KEPT = {"block": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


@dataclass(frozen=True)
class Execution:
    """Execution settings of a model; they change results only by rounding."""

    unroll: int | None = None
    """Blocks per iteration of the loop over depth; more blocks take longer to compile. By default 1; on a CPU, where a
    loop costs a third of the step, all blocks up to the next tap."""
    remat: Literal["none", "block", "dots"] = "none"
    """What the backward pass recomputes to save memory: nothing, whole blocks, or all of a block but the outputs of its
    dense layers."""
    attention: Implementation = "auto"
    """The program that computes attention: `auto` takes `splash` on a TPU, `cudnn` on a GPU in half precision and `xla`
    elsewhere."""
    split_tokens: bool = False
    """On several devices keep the tokens between blocks split over the mesh axis `tensor`, as heads and hidden channels
    are within blocks; saves memory for many tokens (arXiv 2205.05198)."""

    def __post_init__(self):
        check_at_least(self, "model.execution.", unroll=1)

    def check(self, platform: str) -> None:
        """Raises `UserError` if a platform ("cpu", "gpu" or "tpu") does not support this attention."""
        needed = {"splash": "tpu", "cudnn": "gpu"}.get(self.attention, platform)
        if platform != needed:
            raise UserError(
                f"model.execution.attention {self.attention!r} runs on a {needed.upper()}, and this is a "
                f"{platform.upper()}: set 'auto'"
            )


def stack(block: type, config: Any, count: int, rngs: nnx.Rngs) -> nnx.Module:
    """Creates `count` blocks whose parameters have a leading axis `layers`."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
    def make(rngs: nnx.Rngs):
        return block(config, rngs=rngs)

    return make(rngs)


def last_block(depth: int, stop_at: int | None, **layers: tuple[int, ...]) -> int:
    """Returns the last block that runs, counted from 1: `stop_at`, or `depth`.

    Args:
      depth: number of blocks.
      stop_at: argument of a model's call.
      layers: blocks whose results are requested, by argument name.

    Raises:
      ValueError: if one of them is not a block of the model, or lies above `stop_at`.
    """
    last = depth if stop_at is None else stop_at
    requested = {last}.union(*layers.values())
    if last > depth or min(requested) < 1 or max(requested) > last:
        arguments = ", ".join(f"{name} {blocks}" for name, blocks in layers.items())
        raise ValueError(f"{arguments} and stop_at {stop_at}: this model has blocks 1 to {depth}")
    return last


def run_blocks(
    blocks: nnx.Module,
    start: int,
    stop: int,
    carry: Carry,
    call: Callable[[nnx.Module, Carry], Carry],
    execution: Execution,
) -> Carry:
    """Applies blocks `start` to `stop` (counted from 0, `stop` excluded) of a stack, one after the other.

    Args:
      blocks: blocks from `stack`; only the parameters of `start` to `stop` are read.
      carry: input of the first block.
      call: (block, carry) -> input of the next block.
      execution: execution settings of the blocks.
    """
    # Parameters of these blocks only, [stop - start, ...]: a tap or a teacher's last block ends the loop here.
    graph, params = nnx.split(blocks)
    params = jax.tree.map(lambda p: p[start:stop], params)
    unroll = execution.unroll
    if unroll is None:
        unroll = stop - start if platform() == "cpu" else 1

    def body(carry: Carry, layer: Any) -> tuple[Carry, None]:
        tokens = "tensor" if execution.split_tokens else None
        carry = call(nnx.merge(graph, layer), carry)
        return jax.tree.map(lambda x_BND: constrain(x_BND, BATCH_AXES, tokens), carry), None

    if execution.remat != "none":
        # A loop's body cannot be merged with its recomputation by CSE; for unrolled blocks this must be prevented.
        body = jax.checkpoint(body, prevent_cse=unroll > 1, policy=_KEPT[execution.remat])
    return jax.lax.scan(body, carry, params, unroll=unroll)[0]


def run_apart(blocks: nnx.Module, index: int, carry: Carry, call: Callable[[nnx.Module, Carry], Carry]) -> Carry:
    """Applies one block of a stack outside any loop, so that `call` can return arrays from inside the block.

    Args:
      blocks, carry, call: as for `run_blocks`.
      index: index of the block, from 0.
    """
    graph, params = nnx.split(blocks)
    return call(nnx.merge(graph, jax.tree.map(lambda p: p[index], params)), carry)


class Segments:
    """The blocks of one forward pass, run in segments that end at requested outputs.

    Args:
      execution: execution settings of the blocks.
      attend: attention of all blocks.
      taps: blocks after which the residual stream is returned, counted from 1.
      features_of: function from the residual stream of the media tokens to features by modality.
      attention_of: blocks whose attention weights are returned.
      weights_of: (queries, keys) -> attention weights by modality; needed with `attention_of`.

    Attributes:
      features: features of the taps that have run, {block: {modality: [B, N, D]}}.
      weights: attention weights of the blocks of `attention_of` that have run.
    """

    def __init__(
        self,
        execution: Execution,
        attend: Attend,
        taps: tuple[int, ...],
        features_of: Callable[[jax.Array], dict[str, jax.Array]],
        attention_of: tuple[int, ...] = (),
        weights_of: Callable[[jax.Array, jax.Array], Any] | None = None,
    ):
        self.features: dict[int, dict[str, jax.Array]] = {}
        self.weights: dict[int, Any] = {}
        self._execution, self._attend = execution, attend
        self._taps, self._features_of = taps, features_of
        self._attention_of, self._weights_of = attention_of, weights_of

    def run(
        self,
        blocks: nnx.Module,
        first: int,
        last: int,
        carry: Carry,
        call: Callable[[nnx.Module, Carry, Attend], Carry],
        media_of: Callable[[Carry], jax.Array] = lambda carry: carry,
    ) -> Carry:
        """Applies blocks `first` + 1 to `last` of the model, one after the other.

        Args:
          blocks: stack whose first block is `first` + 1.
          carry: input of block `first` + 1.
          call: (block, carry, attend) -> input of the next block.
          media_of: the residual stream of the media tokens in a carry; by default all of it.

        Returns:
          The carry after block `last`.
        """
        # A block whose attention weights are returned is a separate segment, outside of any loop.
        stops = {last, *self._taps, *self._attention_of, *(block - 1 for block in self._attention_of)}
        start = first
        for stop in sorted(stop for stop in stops if first < stop <= last):
            if stop in self._attention_of:
                attend = partial(self._attend_and_keep, stop)
                carry = run_apart(blocks, start - first, carry, partial(call, attend=attend))
            else:
                whole = partial(call, attend=self._attend)
                carry = run_blocks(blocks, start - first, stop - first, carry, whole, self._execution)
            if stop in self._taps:
                self.features[stop] = self._features_of(media_of(carry))
            start = stop
        return carry

    def _attend_and_keep(self, block: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        self.weights[block] = self._weights_of(q, k)
        return self._attend(q, k, v)
