"""Depth: equal blocks as stacked parameters, and how they are run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import jax
from flax import nnx

from selfflow.errors import UserError, check_at_least
from selfflow.models.attention import Implementation
from selfflow.models.placement import BATCH_AXES, constrain, platform

Carry = TypeVar("Carry")

_KEPT = {"block": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


@dataclass(frozen=True)
class Execution:
    """How a model is run on the hardware at hand, and nothing of what it computes."""

    unroll: int | None = None
    """Blocks in one turn of the loop over depth; compilation time grows with them. By default 1, and on a CPU, where
    a loop costs a third of the step, all blocks up to the next tap."""
    remat: Literal["none", "block", "dots"] = "none"
    """What the backward pass computes again to save memory: nothing, whole blocks, or all of a block but the results of
    its dense layers."""
    attention: Implementation = "auto"
    """The program that computes attention: `auto` takes `splash` on a TPU, `cudnn` on a GPU in half precision and `xla`
    elsewhere."""
    split_tokens: bool = False
    """On several devices keep the tokens between blocks split over the mesh axis `tensor`, as heads and hidden channels
    are within them: less memory where tokens are many (arXiv 2205.05198)."""

    def __post_init__(self):
        check_at_least(self, "model.execution.", unroll=1)

    def check(self, platform: str) -> None:
        """Raises `UserError` if a platform ("cpu", "gpu" or "tpu") does not have this attention."""
        needed = {"splash": "tpu", "cudnn": "gpu"}.get(self.attention, platform)
        if platform != needed:
            raise UserError(
                f"model.execution.attention {self.attention!r} runs on a {needed.upper()}, and this is a "
                f"{platform.upper()}: set 'auto'"
            )


def stack(block: type, config: Any, count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` blocks whose parameters have a leading axis `layers`."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
    def make(rngs: nnx.Rngs):
        return block(config, rngs=rngs)

    return make(rngs)


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
      blocks: as `stack` makes them; the parameters of other blocks are never touched.
      carry: what the first block gets.
      call: (block, carry) -> what the next block gets.
      execution: how.
    """
    graph, params = nnx.split(blocks)
    params = jax.tree.map(lambda p: p[start:stop], params)
    unroll = execution.unroll
    if unroll is None:
        unroll = stop - start if platform() == "cpu" else 1

    def body(carry: Carry, layer: Any) -> tuple[Carry, None]:
        tokens = "tensor" if execution.split_tokens else None
        placed = jax.tree.map(lambda x_BND: constrain(x_BND, BATCH_AXES, tokens), call(nnx.merge(graph, layer), carry))
        return placed, None

    if execution.remat != "none":
        # A loop's body cannot be merged with its own recomputation; unrolled blocks must be kept from it.
        body = jax.checkpoint(body, prevent_cse=unroll > 1, policy=_KEPT[execution.remat])
    return jax.lax.scan(body, carry, params, unroll=unroll)[0]


def run_apart(blocks: nnx.Module, index: int, carry: Carry, call: Callable[[nnx.Module, Carry], Carry]) -> Carry:
    """Applies one block of a stack, counted from 0, outside of any loop: `call` may keep what it sees of it.

    Args:
      blocks, carry, call: as for `run_blocks`.
      index: which.
    """
    graph, params = nnx.split(blocks)
    return call(nnx.merge(graph, jax.tree.map(lambda p: p[index], params)), carry)
