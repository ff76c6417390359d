"""The joint model on a folder of your own videos, sounds and images, small enough for two CPU cores.

    selfflow data build media --source ~/videos
    selfflow train experiments/media.py --data.source ~/videos
"""

import dataclasses

from selfflow.data.media import Media
from selfflow.experiment import Experiment
from selfflow.experiments import quickstart


def experiment() -> Experiment:
    return dataclasses.replace(quickstart.experiment(), data=Media())
