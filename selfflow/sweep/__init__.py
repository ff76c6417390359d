"""Sweeps: comparisons of runs of one experiment file."""

from selfflow.sweep.members import Budget, Member, axis, chain, product, seeds, zipped

__all__ = ["Budget", "Member", "axis", "chain", "product", "seeds", "zipped"]
