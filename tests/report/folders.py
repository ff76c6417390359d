"""Run folders like those of trainings, without training."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selfflow.config.experiment import Experiment
from selfflow.config.files import load_experiment, save_experiment
from selfflow.config.resolve import resolve
from selfflow.sampling.media_files import write_video
from selfflow.sweep.load import with_overrides
from tests.conftest import TINY

STEPS = 40


def experiment(seed: int, **overrides: Any) -> Experiment:
    """The tiny experiment with other seeds and fields; __ in a name stands for a dot."""
    seeds = {f"seed.{name}": seed for name in ("init", "data", "noise")}
    fields = {name.replace("__", "."): value for name, value in overrides.items()}
    base = dataclasses.replace(load_experiment(TINY), steps=STEPS)
    return resolve(with_overrides(base, seeds | fields, "test")).experiment


def make_run(folder: Path, config: Experiment, ratio: float | None, losses: Any = lambda step: 1.0, until: int = STEPS):
    """A finished run whose video flow loss is `ratio` of the linear baseline; without a ratio, an interrupted run."""
    folder.mkdir(parents=True)
    session = {"selfflow": "0.1.0", "commit": "c0ffee", "dirty": True, "python": "3.11", "packages": {"jax": "0.10"}}
    session |= {"devices": ["cpu"], "command": ["/x/selfflow/__main__.py", "train", "gone.py", "--note", "a b"]}
    datasets = {"collisions": {"dataset": "collisions", "fingerprint": "f00d", "latents": "1a7e"}}
    provenance = {"started_from": None, "data": "1a7e", "datasets": datasets, "sessions": [session]}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    save_experiment(config, folder / "experiment.json")
    rows = [
        {"step": step, "component": "joint", "flow_loss/video": losses(step), "cosine/projected/joint/video": 0.5}
        | {f"{kind}/{who}/joint/video": 2.0 for kind in ("norm", "rank") for who in ("student", "teacher")}
        for step in range(1, until + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if ratio is not None:
        losses = {"joint/video": {"loss": ratio, "linear_baseline": 1.0, "normalised_loss": ratio, "split": "test"}}
        (folder / "summary.json").write_text(json.dumps({"steps": until, "flow_loss": losses, "minutes": 1.5}))
    return folder


def make_sweep(folder: Path, scores: dict[str, list[float | None]], question: str = "Is it so?", **fields: Any) -> Path:
    """A sweep of arms with a flow loss for each seed; None for a run that was not started.

    Args:
      folder: to create.
      scores: by arm, the baseline first; every other arm has another alignment weight.
      question: docstring of the experiment file.
      fields: to change in `sweep.json`.
    """
    members = []
    for number, (arm, ratios) in enumerate(scores.items()):
        for seed, ratio in enumerate(ratios, start=1):
            name = f"{arm}_{seed}"
            members.append({"name": name, "arm": arm, "seed": seed, "overrides": {}, "steps": STEPS, "flops": 1.0})
            if ratio is not None:
                overrides = {"alignment__weight": number / 10} if number else {}
                make_run(folder / name, experiment(seed, **overrides), ratio)
    sweep = {"file": "some.py", "question": question, "command": ["selfflow", "sweep", "some.py"], "budget": None}
    folder.mkdir(exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(sweep | {"members": members} | fields))
    return folder


def add_samples(run: Path) -> Path:
    """Two videos with audio and a sheet, as at the end of a run."""
    folder = run / "samples" / f"step_{STEPS}"
    folder.mkdir(parents=True)
    frames = np.zeros((25, 32, 32, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[8:20, i : i + 7] = 200, 90, 40
    audio = (8000 * np.sin(np.arange(16000) / 9)).astype(np.int16)
    for i in range(2):
        write_video(folder / f"joint_{i:02d}.mp4", frames, 12.5, audio, 8000)
    Image.fromarray(frames[:8].reshape(-1, 32, 3)).resize((1000, 400)).save(folder / "joint.png")
    return folder
