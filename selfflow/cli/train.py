"""`selfflow train`: from an experiment file to a trained model and the proof that it learned."""

import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from selfflow.cli.folders import data_folder
from selfflow.errors import UserError
from selfflow.experiment import Experiment, load_experiment
from selfflow.training.state import State

_EXAMPLE = "example: selfflow train experiments/quickstart.py --steps 100 --alignment.weight 0.4"


def main(arguments: list[str]) -> None:
    """Parses `EXPERIMENT [--workdir DIR] [--data-dir DIR] [--FIELD VALUE ...]` and trains."""
    file = next((a for a in arguments if not a.startswith("-")), None) if arguments[:1] != ["--help"] else None
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: selfflow train EXPERIMENT [--workdir DIR] [--data-dir DIR] [--FIELD VALUE ...]\n\n{_EXAMPLE}")
        print("\n`selfflow train EXPERIMENT --help` lists every field of that experiment.")
        return
    if file is None or arguments[0] != file:
        raise UserError(f"name an experiment file first; {_EXAMPLE}")
    default = load_experiment(file)

    def parsed(
        experiment: Annotated[tyro.conf.AvoidSubcommands[Experiment], tyro.conf.arg(name="")] = default,
        workdir: Path = Path("runs") / Path(file).stem,
        data_dir: Path | None = None,
    ) -> tuple[Experiment, Path, Path | None]:
        """Trains an experiment, or goes on with its run.

        Args:
          experiment: the experiment.
          workdir: the run folder.
          data_dir: folder for data sets and latents; by default $SELFFLOW_DATA or ~/.cache/selfflow.
        """
        return experiment, workdir, data_dir

    experiment, workdir, data_dir = tyro.cli(
        parsed, prog=f"selfflow train {file}", description=_EXAMPLE, args=arguments[1:]
    )
    train(experiment, workdir, data_folder(data_dir))


def train(experiment: Experiment, workdir: Path, data_dir: Path) -> dict[str, Any]:
    """Trains an experiment into a run folder, or goes on with the run that is there.

    Args:
      experiment: as loaded from its file.
      workdir: the run folder.
      data_dir: folder for data sets and latents.

    Returns:
      The summary, as printed and written to `summary.json`.

    Raises:
      UserError: for what a user can correct.
    """
    from selfflow.run import alone, check_run

    if not jax.config.jax_compilation_cache_dir:
        # A run that goes on, or the next one of a sweep, need not compile again.
        jax.config.update("jax_compilation_cache_dir", str(data_dir / "compiled"))
    check_run(workdir, experiment)  # before the folder is made
    with alone(workdir):
        return _train_alone(experiment, workdir, data_dir)


def _train_alone(experiment: Experiment, workdir: Path, data_dir: Path) -> dict[str, Any]:
    from selfflow.cli.proof import prove
    from selfflow.input.latents import prepare_latents
    from selfflow.input.mixture import batches
    from selfflow.run import Run, abstract_state, check_run, enter_run, fresh_state
    from selfflow.training.checkpoints import Checkpoints
    from selfflow.training.loop import train as run_loop
    from selfflow.training.metrics import MetricsLog

    began = time.monotonic()
    experiment = check_run(workdir, experiment)
    builder = experiment.data.build(data_dir)
    latents = prepare_latents(builder, experiment.autoencoders, data_dir, experiment.data.sample_rate)
    stream = partial(
        batches,
        latents.source("train"),
        experiment.mixture,
        experiment.label,
        experiment.model.labels,
        experiment.seed.data,
    )
    # All that can be wrong with data or weights comes before the folder becomes a run.
    stream(0)
    start = Run(workdir).last_step() if (workdir / "experiment.json").exists() else 0
    state = None if start else fresh_state(experiment)
    enter_run(workdir, experiment, latents.hash)

    checkpoints = Checkpoints(workdir)
    if state is None:
        state = checkpoints.restore(abstract_state(experiment), start)
    _say_start(experiment, workdir, start, state, latents)
    log = MetricsLog(workdir, start)
    try:
        if start < experiment.steps:
            state = run_loop(
                state,
                batches=stream(start),
                start=start,
                steps=experiment.steps,
                cadence=experiment.cadence,
                log=log,
                checkpoints=checkpoints,
                **_functions(experiment, latents),
            )
    finally:
        log.close()
        checkpoints.close()
    summary = prove(experiment, workdir, builder, latents, state)
    summary["minutes"] = round((time.monotonic() - began) / 60, 2)
    (workdir / "summary.json").write_text(json.dumps(summary, indent=1))
    return summary


def _functions(experiment: Experiment, latents: Any) -> dict[str, Any]:
    """What the loop calls: the compiled step and diagnostics, and how to read a batch and its metrics."""
    from selfflow.input.mixture import held_out_batches
    from selfflow.objectives.diagnostics import diagnose
    from selfflow.training.step import batch_size, make_step, sample_keys

    objective, noise = experiment.objective(), experiment.seed.noise
    step = make_step(
        objective, experiment.optimizer.make(), experiment.ema_decay, noise, experiment.optimizer.accumulate
    )
    modalities = experiment.modalities()
    names = {frozenset(chosen.modalities): name for name, chosen in experiment.mixture.items()}

    looked_at = held_out_batches(latents, experiment.mixture, ("validation",))

    @jax.jit
    def look_at(state: State, batch: Any) -> dict[str, jax.Array]:
        return diagnose(objective, state.params, state.frozen, batch, sample_keys(noise, state.step, batch_size(batch)))

    def look(state: State) -> dict[str, jax.Array]:
        # One batch of every set, always the same: the step's own would show one set, and other samples each time.
        return {
            f"{view}/{name}/{m}": value
            for name, (_, batch) in looked_at.items()
            for (view, m), value in _split_names(look_at(state, batch)).items()
        }

    def describe(batch: Any) -> dict[str, Any]:
        seen = frozenset(batch["latents"])
        return {"set": names[seen], "tokens": batch_size(batch) * sum(modalities[m].tokens for m in seen)}

    return {
        "step": jax.jit(step, donate_argnums=0),
        "diagnose": look,
        "describe": describe,
        "summarise": _numbers,
    }


def _split_names(metrics: dict[str, jax.Array]) -> dict[tuple[str, str], jax.Array]:
    return {tuple(name.rsplit("/", 1)): value for name, value in metrics.items()}


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Fetched metrics as the numbers of a row; sums and counts per bucket of tau become means."""
    row = {name: float(value) for name, value in metrics.items() if value.ndim == 0}
    for name, total in metrics.items():
        if name.startswith("flow_sum/"):
            m = name.removeprefix("flow_sum/")
            count = metrics[f"flow_count/{m}"]
            for i in range(len(total)):
                if count[i] > 0:
                    row[f"flow_loss/{m}/tau_{i / len(total):.1f}-{(i + 1) / len(total):.1f}"] = float(
                        total[i] / count[i]
                    )
    return row


def _say_start(experiment: Experiment, workdir: Path, start: int, state: State, latents: Any) -> None:
    count = sum(x.size for x in jax.tree.leaves(state.params["model"]))
    print(
        f"{workdir}: {count / 1e6:.1f} M parameters, {experiment.steps} steps"
        + (f", from step {start}" if start else "")
    )
    for m, quality in latents.manifest["quality"].items():
        numbers = [f"{name.replace('_db', ' (dB)').replace('_', '-')} {value:.1f}" for name, value in quality.items()]
        print(f"  {m} autoencoder {latents.manifest['autoencoders'][m]}: {', '.join(numbers)}")
    forgotten = experiment.steps * (1 - experiment.ema_decay)
    if forgotten < 5:
        print(
            f"warning: ema_decay {experiment.ema_decay} keeps {math.exp(-forgotten):.0%} of the random initialisation "
            f"in the teacher after {experiment.steps} steps; leave ema_decay out to have it fit the run's length"
        )
