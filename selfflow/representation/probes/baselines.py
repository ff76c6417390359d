"""Clips of the probe table at the end of training, and their features without a network."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from selfflow.data.built import BuiltDataset
from selfflow.data.shards import BadRecord
from selfflow.encoders.audio import log_mel
from selfflow.latents.store import Latents
from selfflow.modality import Modality


class BaselineClips:
    """The first clips of a split that have video and audio: latents, records, and features of the records.

    Clips that cannot be read are left out, with a warning.

    Args:
      built: the data set with raw records and ground truth.
      latents: latents of the same data set.
      split: split of the data set and its latents.
      count: maximum number of clips.

    Attributes:
      ids: ids of the clips.
      labels: none; targets are computed from the records.
      latents: {modality: [...]} per clip.
      frame_differences: see `frame_differences`, [n, T].
      log_mel: mean log-mel spectrum, [n, bands].
      motion: `ProbeTargets.oracle_features`, [n, F].
    """

    def __init__(self, built: BuiltDataset, latents: Latents, split: str, count: int):
        source, records = latents.open_split(split), built.records(split)
        settings, truth = built.settings, built.settings.ground_truth
        self.ids: list[str] = []
        self.labels: dict[str, np.ndarray] = {}
        self.latents: list[dict[str, np.ndarray]] = []
        self._records: list[dict[str, Any]] = []
        differences, spectra, motion, unreadable = [], [], [], 0
        for i in source.indices_with(("video", "audio"))[:count]:
            try:
                record, of_clip = records[int(i)], source[int(i)]
            except BadRecord:
                unreadable += 1
                continue
            self.ids.append(source.id(int(i)))
            self.latents.append(of_clip)
            # Media are not kept: they take much more memory than latents and ground truth.
            self._records.append({feature: record[feature] for feature in truth.features})
            differences.append(frame_differences(record["video"]))
            spectra.append(log_mel(record["audio"], settings.sample_rate).mean(axis=1))
            motion.append(truth.oracle_features(record))
        if unreadable:
            print(f"warning: {unreadable} clips of the {split} split are unreadable and not probed", file=sys.stderr)
        self.frame_differences, self.log_mel, self.motion = np.stack(differences), np.stack(spectra), np.stack(motion)

    def record(self, i: int) -> Mapping[str, Any]:
        """Returns the fields of clip i's raw record that targets are computed from."""
        return self._records[i]


def frame_differences(video: np.ndarray) -> np.ndarray:
    """Log of the mean squared difference of successive frames of a uint8 video, [T - 1], and the log of its mean."""
    # 1e-5 is below the square of one level of 8 bits, and bounds the logarithm for frames without motion.
    energy = np.mean(np.square(np.diff(video.astype(np.float32) / 255, axis=0)), axis=(1, 2, 3))
    return np.log(np.append(energy, energy.mean()) + 1e-5)


def latent_tokens(modality: Modality, latent: np.ndarray) -> np.ndarray:
    """Converts a latent to tokens, float32 [N, P]."""
    return np.asarray(modality.to_tokens(latent[None].astype(np.float32))[0])


def latent_moments(modality: Modality, latent: np.ndarray) -> np.ndarray:
    """Mean and log standard deviation over the tokens of a latent, float32 [2P]."""
    tokens_NP = latent_tokens(modality, latent)
    # 1e-3 bounds the logarithm for constant channels; latents have a standard deviation of about 1.
    return np.concatenate([tokens_NP.mean(axis=0), np.log(tokens_NP.std(axis=0) + 1e-3)])
