"""The evaluation at the end of a run: losses with their linear baselines, probes, and samples."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from selfflow.autoencoders.config import can_decode
from selfflow.config.experiment import Experiment
from selfflow.config.setup import FlowSetup
from selfflow.data.built import BuiltDataset
from selfflow.input.batches import BatchSource
from selfflow.latents.store import Latents
from selfflow.media import images_only
from selfflow.noise import UniformTau, UniformTimestep
from selfflow.objectives.alignment import NoAlignment
from selfflow.objectives.flow import linear_baseline
from selfflow.progress import Progress
from selfflow.representation.probes.baselines import BaselineClips
from selfflow.representation.probes.summary import Table, as_text, summary_table
from selfflow.sampling.generate import Condition, Generator
from selfflow.sampling.media_files import write_media, write_sheet
from selfflow.training.metrics import read_metrics
from selfflow.training.state import State
from selfflow.training.step import batch_size, sample_keys

_LOSS_CLIPS = 128
_LOSS_STEP = 2**30  # draws of a step that no run reaches


def evaluate_run(
    setup: FlowSetup, workdir: Path, feed: BatchSource, built: dict[str, BuiltDataset], state: State
) -> dict[str, Any]:
    """Measures and shows what a run has learned; prints the summary and returns it as JSON data."""
    experiment = setup.experiment
    losses = flow_losses(setup, feed, state)
    files = write_samples(setup, workdir, feed, state)
    summary: dict[str, Any] = {"steps": int(state.step), "flow_loss": losses}
    summary["alignment_cosine"] = _last_cosines(workdir)
    summary["ema_decay"] = experiment.ema_decay
    summary["ema_initialisation_left"] = experiment.ema_decay ** int(state.step)
    table = None
    probed = next((name for name, b in built.items() if b.settings.ground_truth is not None), None)
    if probed and experiment.final_evaluation.probe_clips and {"video", "audio"} <= set(setup.objective.modalities):
        table = _probe(setup, built[probed], feed.latents[probed], state)
        summary["probes"] = {row: {c: s._asdict() for c, s in scores.items()} for row, scores in table.items()}
    summary["files"] = [str(f) for f in files]
    _print(summary, experiment, workdir, None if table is None else as_text(table))
    return summary


def flow_losses(setup: FlowSetup, feed: BatchSource, state: State) -> dict[str, dict[str, float]]:
    """Flow loss of the EMA on held-out samples, one tau for all tokens, and its linear baseline; by
    "component/modality"."""
    experiment, tau = setup.experiment, setup.experiment.schedule.tau
    objective = dataclasses.replace(
        setup.objective,
        schedule=UniformTimestep(tau=tau),
        alignment=NoAlignment(),
        separation=None,
        condition_drop=1.0,
    )
    found = {}

    @jax.jit
    def loss(params, batch, keys_B):
        return objective.loss({"model": params}, {"ema": params}, batch, keys_B, objective.draw(keys_B, batch))[1]

    held_out = feed.held_out(("test", "validation"), _LOSS_CLIPS)
    for name, (split, batch) in held_out.items():
        # Every sample at eight taus: the loss varies much more with tau than with the sample.
        keys = [sample_keys(experiment.seed.noise, _LOSS_STEP + i, batch_size(batch)) for i in range(8)]
        metrics = [jax.device_get(loss(state.frozen["ema"], batch, k)) for k in keys]
        for m in batch["latents"]:
            value = float(np.mean([x[f"flow_loss/{m}"] for x in metrics]))
            spread = feed.latents[experiment.mixture[name].data].manifest["statistics"][m]["std"]
            bound = linear_baseline(tau.get(m, UniformTau()), np.array(spread))
            found[f"{name}/{m}"] = {
                "loss": value,
                "linear_baseline": bound,
                "normalised_loss": value / bound,
                "split": split,
            }
    return found


def write_samples(setup: FlowSetup, workdir: Path, feed: BatchSource, state: State) -> list[Path]:
    """Draws samples of every component from the EMA and writes them beside real ones; returns the files."""
    experiment, objective = setup.experiment, setup.objective
    folder = workdir / "samples" / f"step_{int(state.step)}"
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    with Progress("sample", len(experiment.mixture), unit="component") as shown:
        for name, component in experiment.mixture.items():
            modalities, latents = feed.modalities[name], feed.latents[component.data]
            configs = {m: experiment.autoencoders[m] for m in modalities if can_decode(experiment.autoencoders[m])}
            if not configs:  # of latents whose autoencoder is not there
                shown.advance()
                continue
            count = experiment.final_evaluation.samples
            label_B = np.full(count, experiment.model.labels)
            if experiment.model.labels:
                label_B = np.arange(count) % experiment.model.labels
            draw = Generator(objective.apply, modalities, experiment.sampler, experiment.model.labels)
            made = draw(state.frozen["ema"], Condition(label_B), experiment.seed.noise)
            reader = feed.reader(name, "train")
            real = [reader(int(i))["latents"] for i in reader.records[:count]]
            decode = {m: latents.autoencoder(m, config).decode for m, config in configs.items()}
            parts = {
                "data": {m: decode[m](np.stack([r[m] for r in real])) for m in decode},
                "sample": {m: decode[m](made[m]) for m in decode},
            }
            sheet = folder / f"{name}.png"
            shown_parts = {
                g: {m: v[: count if images_only(modalities) else 4] for m, v in media.items()}
                for g, media in parts.items()
            }
            rates = {m: media.rate for m, media in setup.media[name].items()}
            title = f"{name}: data through the autoencoder, and samples"
            write_sheet(sheet, shown_parts, rates, title)
            files.append(sheet)
            for i in range(0 if images_only(modalities) else count):  # the sheet shows images as they are
                files += write_media(folder / f"{name}_{i:02d}", {m: x[i] for m, x in parts["sample"].items()}, rates)
            shown.advance()
    return files


def _last_cosines(workdir: Path) -> dict[str, dict[str, float]]:
    """The newest cosines by "component/modality", from the metrics."""
    found: dict[str, dict[str, float]] = {}
    for row in read_metrics(workdir):
        for name, value in row.items():
            if name.startswith("cosine/"):
                _, view, m = name.split("/", 2)
                found.setdefault(m, {})[view] = value
    return found


def _probe(setup: FlowSetup, built: BuiltDataset, latents: Latents, state: State) -> Table:
    experiment, objective = setup.experiment, setup.objective
    count = experiment.final_evaluation.probe_clips
    counts = {"train": count, "validation": count // 2, "test": count // 2}
    untrained = objective.init(jax.random.key(experiment.seed.init))["model"]
    return summary_table(
        {split: BaselineClips(built, latents, split, n) for split, n in counts.items()},
        {
            "untrained network": (partial(objective.apply, open_gates=True), untrained),
            "trained": (objective.apply, state.frozen["ema"]),
        },
        objective.modalities,
        layers=tuple(range(1, experiment.model.depth + 1)),
        tau=experiment.final_evaluation.probe_tau,
        null_label=experiment.model.labels,
        dataset=built.settings,
    )


def _print(summary: dict[str, Any], experiment: Experiment, workdir: Path, table: str | None) -> None:
    print(f"\n{workdir}: {summary['steps']} steps done\n")
    print("Flow loss of the EMA (linear baseline: the best linear predictor of each channel)")
    for name, value in summary["flow_loss"].items():
        verdict = "learned structure" if value["normalised_loss"] < 1 else "NO structure learned"
        print(
            f"  {name:<14} {value['loss']:.3f}   linear baseline {value['linear_baseline']:.3f}   "
            f"normalised {value['normalised_loss']:.2f}   {verdict} ({value['split']} split)"
        )
    if summary["alignment_cosine"]:
        print("\nAlignment cosine of student and teacher (last diagnostics)")
        for m, views in summary["alignment_cosine"].items():
            print(f"  {m:<14} " + "   ".join(f"{view.replace('_', ' ')} {value:.2f}" for view, value in views.items()))
    print(
        f"\nThe EMA (decay {summary['ema_decay']:.5g}) still holds {summary['ema_initialisation_left']:.2g} "
        "of its initialisation."
    )
    if table is not None:
        print(
            f"\nProbes, test split, tau {experiment.final_evaluation.probe_tau} (accuracy; position and contacts: R^2; "
            f"student reads block {getattr(experiment.alignment, 'student_layer', '-')}, "
            f"teacher block {getattr(experiment.alignment, 'teacher_layer', '-')})\n{table}"
        )
    if not summary["files"]:
        print("\nNo samples are drawn: none of the autoencoders can decode.")
        return
    folder = Path(summary["files"][0]).parent
    print(f"\nSamples ({len(summary['files'])} files) in {folder}:")
    for file in summary["files"]:
        if file.endswith(".png"):
            print(f"  {file}")
    kinds = [f"*.{kind}" for kind in ("mp4", "wav") if any(file.endswith(kind) for file in summary["files"])]
    if kinds:
        print(f"  {folder}/{' and '.join(kinds)}")
