"""The joint model on a folder of your own videos, audio and images, small enough for two CPU cores.

    selfflow data build media --source ~/videos
    selfflow train experiments/media.py --data.media.source ~/videos

Hardware: two CPU cores, 2 GB. Wall time: about 4 minutes after the data is built.
Expect flow losses below the linear baseline pi / 2; on 14 overlapping clips of one animated video, 120 steps gave
normalised losses of 0.55 (video), 1.02 (audio, not yet learned) and 0.62 (image).
"""

import dataclasses

from selfflow.config.experiment import Experiment
from selfflow.data.media import Media
from selfflow.experiments import quickstart


def experiment() -> Experiment:
    return dataclasses.replace(quickstart.experiment(), data={"media": Media()})
