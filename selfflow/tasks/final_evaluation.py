"""Evaluation at the end of a run: normalised losses, probes, and samples."""

from collections.abc import Callable, Sequence
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
from selfflow.media import MEDIA, images_only
from selfflow.models.joint import Output
from selfflow.noise import UniformTau
from selfflow.objectives.flow import linear_baseline
from selfflow.progress import Progress
from selfflow.representation.probes.baselines import BaselineClips
from selfflow.representation.probes.summary import Column, Table, as_text, columns_of, measures_of, summary_table
from selfflow.sampling.generate import Condition, Generator
from selfflow.sampling.media_files import write_media, write_sheet
from selfflow.tasks.check_end import probed_dataset
from selfflow.training.metrics import read_metrics
from selfflow.training.state import State
from selfflow.training.step import batch_size, sample_keys

Decode = Callable[[np.ndarray], np.ndarray]
"""Function from latents [B, ...] to media."""

_LOSS_CLIPS = 128
_LOSS_DRAWS = 8
_LOSS_STEP = 2**30  # step for the noise keys, beyond the last step of any run
_SHEET_CLIPS = 4  # number of video or audio clips on a sheet


def evaluate_run(
    setup: FlowSetup, workdir: Path, source: BatchSource, built: dict[str, BuiltDataset], state: State
) -> dict[str, Any]:
    """Evaluates the last state of a run and writes samples; prints the summary and returns it as JSON data.

    Args:
      setup: setup of the experiment.
      workdir: the run folder.
      source: batches and latents of the run.
      built: data sets with raw records, by name.
      state: the last state, on one device.
    """
    experiment = setup.experiment
    losses = flow_losses(setup, source, state)
    files = write_samples(setup, workdir, source, state)
    summary: dict[str, Any] = {"steps": int(state.step), "flow_loss": losses}
    summary["alignment_cosine"] = _last_cosines(workdir)
    summary["ema_decay"] = experiment.ema_decay
    summary["ema_initialisation_left"] = experiment.ema_decay ** int(state.step)
    table = None
    probed = probed_dataset(setup, built)
    if probed:
        table = _probe(setup, built[probed], source.latents[probed], state)
        summary["probes"] = {}
        for row, scores in table.items():
            summary["probes"][row] = {column: score._asdict() for column, score in scores.items()}
    summary["files"] = [str(file) for file in files]
    columns = columns_of(built[probed].settings.ground_truth) if table is not None else ()
    _print(summary, experiment, workdir, table, columns)
    return summary


def flow_losses(setup: FlowSetup, source: BatchSource, state: State) -> dict[str, dict[str, float]]:
    """Computes the normalised flow loss of the EMA on held-out samples.

    All tokens of a sample have the same tau, independent of the training schedule, so that arms of a study are
    comparable.

    Returns:
      {"component/modality": {"loss", "linear_baseline", "normalised_loss", "split"}}, where the normalised loss is the
      loss divided by the linear baseline.
    """
    experiment, tau = setup.experiment, setup.experiment.schedule.tau

    @jax.jit
    def held_out_metrics(params, batch, keys_B):
        return setup.objective.held_out_metrics(params, batch, keys_B, tau)

    losses = {}
    held_out = source.held_out(("test", "validation"), _LOSS_CLIPS)
    for name, (split, batch) in held_out.items():
        # Several noise levels for each sample, because the loss varies much more with tau than between samples.
        metrics = []
        for draw in range(_LOSS_DRAWS):
            keys_B = sample_keys(experiment.seed.noise, _LOSS_STEP + draw, batch_size(batch))
            metrics.append(jax.device_get(held_out_metrics(state.frozen["ema"], batch, keys_B)))
        statistics = source.latents[experiment.mixture[name].data].manifest["statistics"]
        for m in batch["latents"]:
            mean = float(np.mean([metrics_of_draw[f"flow_loss/{m}"] for metrics_of_draw in metrics]))
            baseline = linear_baseline(tau.get(m, UniformTau()), np.array(statistics[m]["std"]))
            losses[f"{name}/{m}"] = {
                "loss": mean,
                "linear_baseline": baseline,
                "normalised_loss": mean / baseline,
                "split": split,
            }
    return losses


def write_samples(setup: FlowSetup, workdir: Path, source: BatchSource, state: State) -> list[Path]:
    """Draws samples of every component from the EMA and writes them next to real clips; returns the files."""
    experiment = setup.experiment
    folder = workdir / "samples" / f"step_{int(state.step)}"
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    with Progress("sample", len(experiment.mixture), unit="component") as shown:
        for name, component in experiment.mixture.items():
            decoders: dict[str, Decode] = {}
            for m in source.modalities[name]:
                config = experiment.autoencoders[m]
                if can_decode(config):
                    decoders[m] = source.latents[component.data].autoencoder(m, config).decode
            if decoders:  # precomputed latents may have no decoder
                files += _write_component(setup, folder, source, state, name, decoders)
            shown.advance()
    return files


def _write_component(
    setup: FlowSetup, folder: Path, source: BatchSource, state: State, name: str, decoders: dict[str, Decode]
) -> list[Path]:
    """Writes a sheet with decoded real clips and samples of a component, and files of video and audio samples."""
    experiment, modalities = setup.experiment, source.modalities[name]
    count, labels = experiment.final_evaluation.samples, experiment.model.labels
    label_B = np.arange(count) % labels if labels else np.full(count, labels)
    generator = Generator(setup.objective.apply, modalities, experiment.sampler, labels)
    generated = generator(state.frozen["ema"], Condition(label_B), experiment.seed.noise)
    reader = source.reader(name, "train")
    real = [reader(int(i))["latents"] for i in reader.records[:count]]

    only_images = images_only(modalities)
    on_sheet = slice(count if only_images else _SHEET_CLIPS)
    sheet: dict[str, dict[str, np.ndarray]] = {"data": {}, "sample": {}}
    samples = {}
    for m, decode in decoders.items():
        samples[m] = decode(generated[m])
        sheet["data"][m] = decode(np.stack([latents[m] for latents in real]))[on_sheet]
        sheet["sample"][m] = samples[m][on_sheet]
    rates = {m: media.rate for m, media in setup.media[name].items()}
    files = [folder / f"{name}.png"]
    write_sheet(files[0], sheet, rates, f"{name}: data through the autoencoder, and samples")
    if not only_images:  # the sheet already has all images at full resolution
        for i in range(count):
            files += write_media(folder / f"{name}_{i:02d}", {m: x[i] for m, x in samples.items()}, rates)
    return files


def _last_cosines(workdir: Path) -> dict[str, dict[str, float]]:
    """Returns the last logged alignment cosines, by "component/modality" and by view."""
    cosines: dict[str, dict[str, float]] = {}
    for row in read_metrics(workdir):
        for name, value in row.items():
            if name.startswith("cosine/"):
                _, view, m = name.split("/", 2)
                cosines.setdefault(m, {})[view] = value
    return cosines


def _probe(setup: FlowSetup, built: BuiltDataset, latents: Latents, state: State) -> Table:
    """Computes the table of probes of the untrained network and of the EMA."""
    experiment, objective = setup.experiment, setup.objective
    count = experiment.final_evaluation.probe_clips
    counts = {"train": count, "validation": count // 2, "test": count // 2}
    trained = state.frozen["ema"]
    untrained = objective.init(jax.random.key(experiment.seed.init))["model"]
    untrained = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), untrained, trained)

    def apply(params: tuple[Any, Any], *inputs: Any, **options: Any) -> Output:
        model_params, open_gates = params
        return objective.apply(model_params, *inputs, open_gates=open_gates, **options)

    return summary_table(
        {split: BaselineClips(built, latents, split, n) for split, n in counts.items()},
        {
            # The gates of all blocks are initialised to 0; with open gates the untrained network is a random network.
            "untrained network": (apply, (untrained, np.True_)),
            "trained": (apply, (trained, np.False_)),
        },
        objective.modalities,
        layers=tuple(range(1, experiment.model.depth + 1)),
        tau=experiment.final_evaluation.probe_tau,
        null_label=experiment.model.labels,
        dataset=built.settings,
    )


def _print(
    summary: dict[str, Any], experiment: Experiment, workdir: Path, table: Table | None, columns: Sequence[Column]
) -> None:
    print(f"\n{workdir}: {summary['steps']} steps done\n")
    print("Flow loss of the EMA (linear baseline: the best linear predictor of each channel)")
    for name, value in summary["flow_loss"].items():
        verdict = "better than linear" if value["normalised_loss"] < 1 else "NOT better than linear"
        print(
            f"  {name:<14} {value['loss']:.3f}   linear baseline {value['linear_baseline']:.3f}   "
            f"normalised {value['normalised_loss']:.2f}   {verdict} ({value['split']} split)"
        )
    if summary["alignment_cosine"]:
        print("\nAlignment cosine of student and teacher (last diagnostics)")
        for m, views in summary["alignment_cosine"].items():
            cells = [f"{view.replace('_', ' ')} {value:.2f}" for view, value in views.items()]
            print(f"  {m:<14} " + "   ".join(cells))
    print(
        f"\nThe EMA (decay {summary['ema_decay']:.5g}) still holds {summary['ema_initialisation_left']:.2g} "
        "of its initialisation."
    )
    if table is not None:
        student = next(iter(experiment.alignment.student_taps), "-")
        teacher = experiment.alignment.teacher_layer or "-"
        print(
            f"\nProbes, test split, tau {experiment.final_evaluation.probe_tau} ({measures_of(columns)}; "
            f"student reads block {student}, teacher block {teacher})\n{as_text(table, columns)}"
        )
    _print_files([Path(file) for file in summary["files"]])
    print(f"\nNext: selfflow report {workdir} writes losses, probes and samples as one HTML page")


def _print_files(files: list[Path]) -> None:
    """Prints the path of each sheet, and file name patterns for video and audio."""
    if not files:
        print("\nNo samples are drawn: none of the autoencoders can decode.")
        return
    folder = files[0].parent
    print(f"\nSamples ({len(files)} files) in {folder}:")
    suffixes = set()
    for file in files:
        suffixes.add(file.suffix)
        if file.suffix == ".png":
            print(f"  {file}")
    patterns = [f"*{medium.suffix}" for medium in MEDIA.values() if medium.suffix in suffixes - {".png"}]
    if patterns:
        print(f"  {folder}/{' and '.join(patterns)}")
