"""Distances between real and generated sets, over named features."""

from selfflow.evaluation.accumulate import Accumulator, Statistics, load_reference
from selfflow.evaluation.adm import write_adm
from selfflow.evaluation.compare import Comparison, compare
from selfflow.evaluation.extractors import Extractor, open_extractor

__all__ = [
    "Accumulator",
    "Comparison",
    "Extractor",
    "Statistics",
    "compare",
    "load_reference",
    "open_extractor",
    "write_adm",
]
