"""Alignment methods, one file each; `base.py` documents the members of a method."""

from selfflow.objectives.alignment.external import ExternalEncoder
from selfflow.objectives.alignment.layer_sync import LayerSync
from selfflow.objectives.alignment.none import NoAlignment
from selfflow.objectives.alignment.self_flow import SelfFlow
from selfflow.objectives.alignment.sra import SRA

Alignment = NoAlignment | SelfFlow | SRA | LayerSync | ExternalEncoder

__all__ = ["SRA", "Alignment", "ExternalEncoder", "LayerSync", "NoAlignment", "SelfFlow"]
