"""The protocol of an objective: a loss, its parameters, and its frozen trees."""

from typing import Any, Protocol

from jaxtyping import Array, Float, Int, Key

Tree = dict[str, Any]
Axes = dict[str, tuple[str | None, ...]]


class Objective(Protocol):
    """A loss with the parameters that it trains and the frozen trees that it reads.

    The step, the state and the shardings of a run are computed by these methods alone. Frozen trees are parameters
    without gradient, such as an EMA, a reference network or a second teacher; the objective defines how each of them is
    initialised, sharded and updated. A frozen tree may have any shape.

    The name of a parameter is its path in the tree with dots, as `training.state.parameter_name` writes it. A logical
    axis is the name of an axis of a parameter, such as "embed", or None; `Devices.rules` maps it to an axis of the
    mesh.
    """

    def init(self, key: Key[Array, ""]) -> Tree:
        """Fresh trainable parameters."""
        ...

    def logical_axes(self) -> Axes:
        """The logical axes of each trainable parameter, by its name."""
        ...

    def init_frozen(self, params: Tree, key: Key[Array, ""]) -> dict[str, Tree]:
        """The frozen trees at step 0, by name.

        Args:
          params: the trainable parameters at step 0, which are not to be shared: a step may reuse their memory.
          key: independent of that of `init`.
        """
        ...

    def frozen_axes(self) -> dict[str, Axes]:
        """The logical axes of each frozen tree's parameters: {tree: {name within the tree: axes}}."""
        ...

    def update_frozen(self, frozen: dict[str, Tree], params: Tree, ema_decay: float) -> dict[str, Tree]:
        """The frozen trees after an update; one that is never updated is returned unchanged.

        Args:
          frozen: the trees before.
          params: the trainable parameters after.
          ema_decay: decay of moving averages of the parameters.
        """
        ...

    def draw(self, keys_B: Key[Array, "B"], batch: Any, step: Int[Array, ""] | int) -> Any:
        """The random draws of the loss of a batch: a tree of arrays [B, ...].

        Args:
          keys_B: a key for each sample.
          batch: a whole batch, before it is split for gradient accumulation.
          step: number of finished updates.
        """
        ...

    def loss(
        self, params: Tree, frozen: dict[str, Tree], batch: Any, keys_B: Key[Array, "B"], draw: Any
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, "..."]]]:
        """The loss and metrics of a batch, or of a part of one with the same part of the draw.

        The values for the parts of a batch must add up to those of the whole.
        """
        ...
