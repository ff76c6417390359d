"""The shape of a joint transformer, and named sizes."""

from dataclasses import dataclass
from typing import Literal

from selfflow.errors import UserError, check_at_least
from selfflow.models.execution import Execution

# width, heads, double-stream blocks, single-stream blocks. arXiv 2603.06507 gives the shape of its model of 625 M
# parameters, and only the number of parameters of the others. Those shapes are chosen here: heads of 72 channels, as in
# the published model, and about two single-stream blocks for each double-stream block.
SHAPES = {"290M": (864, 12, 6, 12), "420M": (1008, 14, 6, 12), "625M": (1152, 16, 7, 14), "1B": (1440, 20, 7, 15)}


@dataclass(frozen=True)
class JointConfig:
    """The shape of a joint transformer; blocks are counted from 1, double-stream blocks first."""

    kind: Literal["joint"] = "joint"
    width: int = 1152
    """D, channels of the residual stream."""
    heads: int = 16
    """Number of attention heads, which divides the width."""
    double_blocks: int = 7
    """Blocks in which text and media have separate weights."""
    single_blocks: int = 14
    """Blocks with the same weights for text and media."""
    mlp_ratio: float = 4.0
    """Ratio of the SwiGLU's hidden channels to the width."""
    rotary: tuple[int, int, int, int] = (18, 18, 18, 18)
    """Channels of a head rotated by the coordinates t, h, w and l; even numbers that add up to width / heads."""
    rotary_theta: float = 2000.0
    """Base of the rotary frequencies."""
    labels: int = 0
    """Number of class labels; one more learned token means no label."""
    text: int = 0
    """Channels of a caption's embeddings; 0 for a model without captions."""
    text_tau: Literal["mean", "clean"] = "mean"
    """Noise level that modulates the text stream: the mean over the media tokens, as in a port of arXiv 2603.06507, or
    0. Text carries no noise, and the paper does not specify the level (see issue 9 of the released code)."""
    scalars: tuple[str, ...] = ()
    """Names of scalar conditions, such as a guidance scale, whose embeddings are added to that of tau. The embeddings
    are initialised to zero, so that a run can start from weights without them."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the computation; parameters are float32."""
    execution: Execution = Execution()
    """Execution on the hardware."""

    def __post_init__(self):
        check_at_least(self, "model.", width=1, heads=1, labels=0, text=0, mlp_ratio=0.1)
        if self.width % self.heads:
            raise UserError(f"model.width {self.width} is not a multiple of model.heads {self.heads}")
        head = self.width // self.heads
        if any(c % 2 or c < 0 for c in self.rotary) or sum(self.rotary) != head:
            raise UserError(
                f"model.rotary is {self.rotary}: give four even numbers that add up to width / heads = {head}"
            )
        check_at_least(self, "model.", double_blocks=1, single_blocks=1)
        if len(set(self.scalars)) < len(self.scalars) or "" in self.scalars:
            raise UserError(f"model.scalars is {self.scalars}: give each a distinct name")

    @classmethod
    def named(cls, name: str, **fields) -> "JointConfig":
        """Returns a shape by its number of parameters, such as `JointConfig.named("625M", labels=1000)`.

        Args:
          name: 290M, 420M, 625M or 1B.
          fields: other fields of the config.

        Raises:
          UserError: if there is no such shape.
        """
        if name not in SHAPES:
            raise UserError(f"there is no joint transformer {name!r}; choose from {', '.join(SHAPES)}")
        width, heads, double, single = SHAPES[name]
        return cls(width=width, heads=heads, double_blocks=double, single_blocks=single, **fields)

    @property
    def depth(self) -> int:
        """Number of blocks of both kinds."""
        return self.double_blocks + self.single_blocks
