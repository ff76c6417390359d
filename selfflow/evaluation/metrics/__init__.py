"""Metrics of generated samples.

`METRICS` lists all of them. The tables of `selfflow evaluate`, its JSON file, the metrics of training and reports
iterate over it, so that a new metric is a class, as `metric.py` describes, and an entry here.
"""

from selfflow.evaluation.metrics.av_sync import AVSync
from selfflow.evaluation.metrics.feature_metrics import KID, Frechet, Precision, Recall
from selfflow.evaluation.metrics.metric import Metric
from selfflow.evaluation.metrics.physics_metrics import AudioMatch, PhysicsChecks

METRICS: tuple[Metric, ...] = (KID(), Frechet(), Precision(), Recall(), PhysicsChecks(), AudioMatch(), AVSync())


def metric_of(key: str) -> Metric | None:
    """The metric that a key of an evaluation belongs to, such as `kid/LogMel/audio`; None for other keys."""
    owners = [metric for metric in METRICS if key == metric.name or key.startswith(f"{metric.name}/")]
    # The longest name: `physics/audio_match_auc` also starts with `physics/`.
    return max(owners, key=lambda metric: len(metric.name), default=None)
