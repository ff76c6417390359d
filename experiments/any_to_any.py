"""Any modality from any other: the quickstart's model, trained with context tokens.

    selfflow train experiments/any_to_any.py

Four samples in ten have context: some modality whole, the first frame, all before a point in time, all but a stretch
of time or but a region. `selfflow sample` accepts the kinds of context that a run was trained with:

    selfflow sample runs/any_to_any --modality audio --context video

Each modality has a noise level of its own: with a shared one, clean video would never meet noisy sound.

Hardware: two CPU cores, 2 GB. Wall time: 70 minutes, with other work beside it.
Expect on the test split, as a ratio to the linear baseline: video 0.54, audio 0.55, image 0.40. That is enough for bodies
that last some frames, and not for sounds that fit a given film: see experiments/README.md.
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
            # A body that shows in every frame is seen through much noise: what is hard to learn lies near tau = 1.
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
