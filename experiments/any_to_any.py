"""Any modality from any other: the quickstart's model, trained with context tokens.

    selfflow train experiments/any_to_any.py

Four samples in ten have context: a whole modality, the first frame, everything before a time step, or everything
outside an interval of time or a region of the frame. A run can be sampled with any context that it was trained with:

    selfflow sample runs/any_to_any --modality audio --context video

Each modality has its own noise level: with a shared level, clean video would never be paired with noisy audio.

Hardware: two CPU cores, 2 GB. Wall time: 70 minutes, on a machine with other load.
Expect a normalised loss on the test split of video 0.54, audio 0.55, image 0.40. At this loss bodies persist for
several frames; generated audio does not yet match a video given as context: see experiments/README.md.
"""

import dataclasses

from selfflow.config.experiment import Experiment
from selfflow.experiments import quickstart
from selfflow.input.mixture import Component
from selfflow.noise import DualTimestep, UniformTau


def experiment() -> Experiment:
    return dataclasses.replace(
        quickstart.experiment(),
        mixture={
            "joint": Component(modalities=("video", "audio"), weight=0.85, batch_size=16),
            "image": Component(modalities=("image",), weight=0.15, batch_size=64),
        },
        schedule=DualTimestep(
            # Bodies appear in every frame and survive much noise: what is hard to learn is near tau = 1.
            tau={"video": UniformTau(shift=3.0)},
            mask_ratio={"image": 0.25, "video": 0.1, "audio": 0.5},
            draw="per_modality",
            context={
                "modality": 0.25,
                "first_frame": 0.05,
                "prefix": 0.05,
                "inpaint_time": 0.025,
                "inpaint_region": 0.025,
            },
        ),
        steps=5000,
    )
