"""Sweeps: many runs of one experiment file, and what compares them."""

from selfflow.sweep.members import Budget, Member, axis, chain, product, seeds, zipped

__all__ = ["Budget", "Member", "axis", "chain", "product", "seeds", "zipped"]
