"""Attention Separation (arXiv 2607.02508): a token attends only to tokens of its group.

The groups are the masked tokens of all modalities, and all other tokens. Their sizes are equal in all samples, so
tokens are sorted by group once, before the first block, and attention is computed for two slices: the cost is the sum
of their squared sizes, and no mask is needed.
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from selfflow.errors import UserError, check_fraction
from selfflow.models.attention import Implementation, attention


@dataclass(frozen=True)
class Separation:
    """Attention Separation in training: masked and other tokens do not attend to each other."""

    kind: Literal["groups"] = "groups"
    whole: float = 0.25
    """Fraction of the samples that are not separated, exact in every batch; arXiv 2607.02508 tries 0 and 0.25."""
    teacher: bool = False
    """Whether the teacher's tokens are separated too, as in the code released with that paper."""

    def __post_init__(self):
        check_fraction(self, "separation.", "whole", below_one=True)

    def check(self, batch_size: int, where: str) -> None:
        """Raises `UserError` unless the fraction is a whole number of samples."""
        whole = self.whole * batch_size
        if abs(whole - round(whole)) > 1e-6:
            raise UserError(
                f"separation.whole {self.whole} of {where}, {batch_size} samples at a time, is {whole:g} samples: "
                "change one of the two to make it an integer"
            )


@dataclass(frozen=True)
class Groups:
    """The two groups of tokens of each sample of a batch.

    Attributes:
      group: 1 for the masked tokens of each modality, 0 for the others, [B, N].
      masked: number of tokens of a sample in group 1, over all modalities.
      whole: number of samples of the batch that are not separated: the first ones of each of gcd(B, whole) equal runs
        of samples, so that a batch that is split over at most so many devices needs no exchange.
    """

    group: dict[str, Int[Array, "B N"]]
    masked: int
    whole: int


class Order:
    """Tokens in the order of their groups, and back.

    Args:
      groups: the groups.
      names: the modalities in the order of their tokens.
    """

    def __init__(self, groups: Groups, names: list[str]):
        group_BN = jnp.concatenate([groups.group[m] for m in names], axis=1)
        self._order_BN = jnp.argsort(group_BN, axis=1, stable=True)
        self._back_BN = jnp.argsort(self._order_BN, axis=1)

    def apply(self, x: Float[Array, "B N ..."], after: int = 0) -> Float[Array, "B N ..."]:
        """Sorts tokens by group, group 0 first; the first `after` tokens, of the text, keep their places."""
        return jnp.concatenate([x[:, :after], _take(x[:, after:], self._order_BN)], axis=1)

    def undo(self, x: Float[Array, "B N ..."]) -> Float[Array, "B N ..."]:
        """Restores the original order."""
        return _take(x, self._back_BN)


def _take(x: jax.Array, order_BN: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, order_BN.reshape(*order_BN.shape, *[1] * (x.ndim - 2)), axis=1)


def separated_attention(
    q: Float[Array, "B N A H"],
    k: Float[Array, "B N A H"],
    v: Float[Array, "B N A H"],
    seen_BN: Bool[Array, "B N"] | None,
    groups: Groups,
    text: int,
    implementation: Implementation,
) -> Float[Array, "B N D"]:
    """`attention` within groups; the order of tokens is text, group 0, group 1.

    The first `text` tokens hold the condition. Both groups attend to them; they attend only to each other, so that no
    information passes between the groups through them. In samples that are not separated all tokens attend to all.

    The sizes of the slices are static: L + N0 and L + N1 tokens, where N1 is `groups.masked`.
    """
    batch, count = q.shape[:2]
    runs = math.gcd(batch, groups.whole)  # `batch` if all samples are separated
    first = groups.whole // runs  # samples of each run that are not separated
    middle = count - groups.masked  # where group 1 starts

    def rows(x: jax.Array | None, part: slice) -> jax.Array | None:
        """The samples `part` of every run."""
        if x is None:
            return None
        split = x.reshape(runs, batch // runs, *x.shape[1:])[:, part]
        return split.reshape(-1, *x.shape[1:])

    def attend(part: slice, queries: slice, keys: tuple[slice, ...]) -> jax.Array:
        """Attention of a slice of the tokens to others, in the samples `part` of every run."""

        def visible(x: jax.Array | None) -> jax.Array | None:
            return None if x is None else jnp.concatenate([rows(x, part)[:, s] for s in keys], axis=1)

        return attention(rows(q, part)[:, queries], visible(k), visible(v), visible(seen_BN), implementation)

    everything, condition = slice(0, count), slice(0, text)
    parts = []
    if first:
        parts.append(attend(slice(0, first), everything, (everything,)))
    if first < batch // runs:
        # A group may be empty, at mask ratio 0.
        slices = [s for s in (slice(text, middle), slice(middle, count)) if s.start < s.stop]
        within = [attend(slice(first, None), s, (condition, s)) for s in slices]
        if text:
            within.insert(0, attend(slice(first, None), condition, (condition,)))
        parts.append(jnp.concatenate(within, axis=1))
    out = jnp.concatenate([x.reshape(runs, -1, *x.shape[1:]) for x in parts], axis=1)
    return out.reshape(batch, count, -1)
