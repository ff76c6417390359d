"""Protocol of training objectives, which define a loss, its parameters and its frozen trees."""

from typing import Any, Protocol

from jaxtyping import Array, Float, Int, Key

Tree = dict[str, Any]
Axes = dict[str, tuple[str | None, ...]]


class Objective(Protocol):
    """Protocol of an objective: a loss, its trainable parameters, and frozen trees.

    Step, state and shardings of a run use only these methods. Frozen trees are parameters without gradient, such as an
    EMA, a reference network or a second teacher. The objective defines how each frozen tree is initialised, sharded and
    updated; its structure may differ from that of the trainable parameters.

    Parameters are named by `training.state.parameter_name`. A logical axis is the name of an axis of a parameter, such
    as "embed", or None; `Devices.rules` maps logical axes to axes of the mesh.
    """

    def init(self, key: Key[Array, ""]) -> Tree:
        """Returns the trainable parameters at step 0."""
        ...

    def logical_axes(self) -> Axes:
        """Returns the logical axes of each trainable parameter, by its name."""
        ...

    def init_frozen(self, params: Tree, key: Key[Array, ""]) -> dict[str, Tree]:
        """Returns the frozen trees at step 0, by name.

        Args:
          params: trainable parameters at step 0. The frozen trees must not share their memory, which a step may donate.
          key: random key, independent of the key of `init`.
        """
        ...

    def frozen_axes(self) -> dict[str, Axes]:
        """Returns the logical axes of the parameters of each frozen tree, {tree: {name within the tree: axes}}."""
        ...

    def update_frozen(self, frozen: dict[str, Tree], params: Tree, ema_decay: float) -> dict[str, Tree]:
        """Returns the frozen trees after an update; constant trees are returned unchanged.

        Args:
          frozen: frozen trees before the update.
          params: trainable parameters after the update.
          ema_decay: decay of moving averages of the parameters.
        """
        ...

    def draw(self, keys_B: Key[Array, "B"], batch: Any, step: Int[Array, ""] | int) -> Any:
        """Returns the random numbers for the loss of a batch, as a tree of arrays [B, ...].

        Args:
          keys_B: random key of each sample.
          batch: the whole batch, before it is split for gradient accumulation.
          step: number of finished updates.
        """
        ...

    def loss(
        self, params: Tree, frozen: dict[str, Tree], batch: Any, keys_B: Key[Array, "B"], draw: Any
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, "..."]]]:
        """Returns loss and metrics of a batch, or of a part of a batch with the corresponding part of `draw`.

        Both must be additive: their sums over the parts of a batch must equal the values for the whole batch.
        """
        ...
