"""Sweeps: sets of runs of one experiment file that are compared with each other."""

from selfflow.sweep.members import Budget, Member, axis, chain, product, seeds, zipped

__all__ = ["Budget", "Member", "axis", "chain", "product", "seeds", "zipped"]
