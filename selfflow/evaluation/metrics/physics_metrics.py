"""Metrics of the physics verifier."""

from typing import Literal

import numpy as np

from selfflow.evaluation.metrics.metric import Value
from selfflow.evaluation.physics.corruptions import random_partners
from selfflow.evaluation.physics.verifier import TrackedClips
from selfflow.evaluation.physics.verify import measure_av_sync


class PhysicsChecks:
    """Share of the clips that pass each check; data/collisions/README.md defines the checks."""

    name = "physics"
    title = "physics"
    better: Literal["higher"] = "higher"
    needs: Literal["clips"] = "clips"
    unit = "share of clips that pass; of kappa and loudness a correlation"

    def compute(self, clips: TrackedClips) -> dict[str, Value]:
        """One value per check, with the number of clips that it applies to."""
        values = {}
        for check, result in clips.report().rows.items():
            values[f"{self.name}/{check}"] = Value(result.value, count=result.n)
        return values


class AudioMatch:
    """AUC of the verifier's synchrony: a clip with its own audio against the clip with the audio of another clip.

    0.5 if audio and video are independent. It is computed from clips with at least three contacts, for which both
    synchronies are defined.
    """

    name = "physics/audio_match_auc"
    title = "audio match"
    better: Literal["higher"] = "higher"
    needs: Literal["clips"] = "clips"
    unit = "AUC of own against other audio"

    def compute(self, clips: TrackedClips) -> dict[str, Value]:
        """Computes the AUC; no values without audio, or with fewer than two clips."""
        if not clips.tracked or not clips.audio:
            return {}
        own, partners = clips.report().scores["synchrony"], random_partners(len(clips.audio))
        swapped = np.full(len(own), np.nan)
        for i, partner in enumerate(partners):
            swapped[i] = measure_av_sync(clips.tracked[i], clips.audio[partner], clips.verifier.settings)
        both = np.isfinite(own) & np.isfinite(swapped)
        if both.sum() < 2:
            return {}
        from sklearn.metrics import roc_auc_score

        is_own = np.repeat([1, 0], both.sum())
        auc = float(roc_auc_score(is_own, np.concatenate([own[both], swapped[both]])))
        return {self.name: Value(auc, count=int(both.sum()))}
