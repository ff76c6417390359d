"""Metrics of generated samples.

`METRICS` lists all of them. The tables of `selfflow evaluate`, its JSON file, the metrics of training and reports
iterate over it, so a new metric needs only a class, as described in `metric.py`, and an entry here.
"""

from selfflow.evaluation.metrics.av_sync import AVSync
from selfflow.evaluation.metrics.feature_metrics import KID, Frechet, Precision, Recall
from selfflow.evaluation.metrics.metric import Metric
from selfflow.evaluation.metrics.physics_metrics import AudioMatch, PhysicsChecks

METRICS: tuple[Metric, ...] = (KID(), Frechet(), Precision(), Recall(), PhysicsChecks(), AudioMatch(), AVSync())


def metric_of(key: str) -> Metric | None:
    """Returns the metric of a key such as `kid/LogMel/audio`; None if the key belongs to no metric."""
    owners = [metric for metric in METRICS if key == metric.name or key.startswith(f"{metric.name}/")]
    # Prefer the longest name: `physics/audio_match_auc` also starts with `physics/`.
    return max(owners, key=lambda metric: len(metric.name), default=None)
