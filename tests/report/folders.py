"""Run folders as trainings leave them, written by hand in no time."""

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
    """The tiny experiment with other seeds and fields, its dots written as __."""
    seeds = {f"seed.{name}": seed for name in ("init", "data", "noise")}
    fields = {name.replace("__", "."): value for name, value in overrides.items()}
    base = dataclasses.replace(load_experiment(TINY), steps=STEPS)
    return resolve(with_overrides(base, seeds | fields, "test")).experiment


def make_run(folder: Path, made: Experiment, ratio: float | None, losses: Any = lambda step: 1.0, until: int = STEPS):
    """A run that ended with a flow loss of video that is `ratio` of its linear baseline; without one it was stopped."""
    folder.mkdir(parents=True)
    session = {"selfflow": "0.1.0", "commit": "c0ffee", "dirty": True, "python": "3.11", "packages": {"jax": "0.10"}}
    session |= {"devices": ["cpu"], "command": ["/x/selfflow/__main__.py", "train", "gone.py", "--note", "a b"]}
    datasets = {"collisions": {"dataset": "collisions", "fingerprint": "f00d", "latents": "1a7e"}}
    told = {"started_from": None, "data": "1a7e", "datasets": datasets, "sessions": [session]}
    (folder / "provenance.json").write_text(json.dumps(told))
    save_experiment(made, folder / "experiment.json")
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
    """A sweep of arms with a flow loss for each seed; None for a member that was not begun.

    Args:
      folder: where to.
      scores: of each arm, the baseline first; every arm but the first has another alignment weight.
      question: docstring of its file.
      fields: to change in `sweep.json`.
    """
    members = []
    for number, (arm, ratios) in enumerate(scores.items()):
        for seed, ratio in enumerate(ratios, start=1):
            name = f"{arm}_{seed}"
            members.append({"name": name, "arm": arm, "seed": seed, "overrides": {}, "steps": STEPS, "flops": 1.0})
            if ratio is not None:
                more = {"alignment__weight": number / 10} if number else {}
                make_run(folder / name, experiment(seed, **more), ratio)
    told = {"file": "some.py", "question": question, "command": ["selfflow", "sweep", "some.py"], "budget": None}
    folder.mkdir(exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(told | {"members": members} | fields))
    return folder


def add_samples(run: Path) -> Path:
    """Two films with sound and a sheet, as at the end of a run."""
    folder = run / "samples" / f"step_{STEPS}"
    folder.mkdir(parents=True)
    frames = np.zeros((25, 32, 32, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[8:20, i : i + 7] = 200, 90, 40
    sound = (8000 * np.sin(np.arange(16000) / 9)).astype(np.int16)
    for i in range(2):
        write_video(folder / f"joint_{i:02d}.mp4", frames, 12.5, sound, 8000)
    Image.fromarray(frames[:8].reshape(-1, 32, 3)).resize((1000, 400)).save(folder / "joint.png")
    return folder
