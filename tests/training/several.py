"""Trains a small experiment as one of several processes, without the proof at its end; run by test_processes.py.

python -m tests.training.several WORKDIR DATA_DIR TENSOR EVALUATE_EVERY COORDINATOR PROCESSES PROCESS
"""

import dataclasses
import sys
from pathlib import Path

import selfflow.tasks.flow
from selfflow.config.experiment import Experiment
from selfflow.evaluation.config import Evaluation
from selfflow.input.mixture import Component
from selfflow.models.execution import Execution
from selfflow.tasks.train import train
from selfflow.training.distributed import Processes
from selfflow.training.loop import Cadence
from selfflow.training.sharding import Devices
from tests.tiny import experiment


def small(tensor: int = 1, evaluate_every: int | None = None) -> Experiment:
    """One set and rolled loops, so that little is compiled: nothing of it is kept for several processes."""
    made = experiment()
    model = dataclasses.replace(made.model, execution=Execution(unroll=1))
    mixture = {"joint": Component(modalities=("video", "audio"), batch_size=4)}
    cadence = Cadence(log_every=100, checkpoint_every=2, evaluate_every=evaluate_every)
    looked = Evaluation(samples=6, shown=1, features=("layer",))
    fields = {"cadence": cadence, "evaluation": looked, "devices": Devices(tensor=tensor)}
    return dataclasses.replace(made, model=model, mixture=mixture, steps=8, **fields)


if __name__ == "__main__":
    workdir, data_dir, tensor, evaluate_every, coordinator, processes, process = sys.argv[1:]
    selfflow.tasks.flow.evaluate_run = lambda *_: {}
    Processes(coordinator, int(processes), int(process)).connect()
    train(small(int(tensor), int(evaluate_every) or None), Path(workdir), Path(data_dir))
