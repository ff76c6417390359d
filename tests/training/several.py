"""Trains a small experiment as one of several processes, without the proof at its end; run by test_processes.py.

python -m tests.training.several WORKDIR DATA_DIR TENSOR COORDINATOR PROCESSES PROCESS
"""

import dataclasses
import sys
from pathlib import Path

import selfflow.cli.proof
from selfflow.cli.train import train
from selfflow.experiment import Experiment
from selfflow.input.mixture import Set
from selfflow.models.execution import Execution
from selfflow.training.loop import Cadence
from selfflow.training.processes import Processes
from selfflow.training.sharding import Devices
from tests.tiny import experiment


def small(tensor: int = 1) -> Experiment:
    """One set and rolled loops, so that little is compiled: nothing of it is kept for several processes."""
    made = experiment()
    model = dataclasses.replace(made.model, execution=Execution(unroll=1))
    mixture = {"joint": Set(modalities=("video", "audio"), batch_size=4)}
    cadence = Cadence(log_every=100, checkpoint_every=2)
    devices = Devices(tensor=tensor)
    return dataclasses.replace(made, model=model, mixture=mixture, steps=8, cadence=cadence, devices=devices)


if __name__ == "__main__":
    workdir, data_dir, tensor, coordinator, processes, process = sys.argv[1:]
    selfflow.cli.proof.prove = lambda *_: {}
    Processes(coordinator, int(processes), int(process)).join()
    train(small(int(tensor)), Path(workdir), Path(data_dir))
