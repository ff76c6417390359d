"""A run from end to end: the folder that it leaves, and that a kill loses nothing."""

import dataclasses
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from selfflow.config.resolve import resolve
from selfflow.errors import UserError
from selfflow.run.folder import check_run, create_or_resume, run_lock
from selfflow.run.run import open_run
from selfflow.tasks.train import train
from selfflow.training.loop import Limits
from selfflow.training.metrics import TIMINGS, read_metrics
from tests.conftest import TINY, mentions
from tests.training.recorded import digest


def numbers(folder) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_metrics(folder)]


def test_a_run_leaves_what_it_should(tiny_run, tiny_experiment):
    run = open_run(tiny_run)
    assert run.experiment == resolve(tiny_experiment).experiment
    rows = run.metrics()
    assert [row["step"] for row in rows] == list(range(1, 13))
    joint = next(row for row in rows if row["component"] == "joint")
    for name in ("flow_loss/video", "alignment_cosine/audio", "gradient_norm", "tokens_per_second"):
        assert np.isfinite(joint[name]), name
    for name in ("cosine/direct/joint/audio", "cosine/centred/joint/video", "cosine/other_sample/image/image"):
        assert np.isfinite(rows[7][name]), name
    assert np.isfinite(rows[7]["norm/teacher/joint/video"]) and rows[7]["rank/student/joint/audio"] > 0
    assert any(name.startswith("flow_loss/video/tau_") for name in joint)
    assert not any(name.startswith("rank/") for row in rows if row["step"] % 4 for name in row)
    provenance = json.loads((tiny_run / "provenance.json").read_text())
    assert provenance["data"] and provenance["sessions"][0]["packages"]["jax"] == jax.__version__
    summary = json.loads((tiny_run / "summary.json").read_text())
    assert summary["steps"] == 12 and summary["flow_loss"]["joint/video"]["split"] == "test"
    assert set(summary["flow_loss"]) == {"joint/video", "joint/audio", "image/image"}
    kinds = {file.rsplit(".", 1)[1] for file in summary["files"]}
    assert kinds == {"png", "mp4", "wav"} and all(os.path.getsize(f) > 0 for f in summary["files"])
    rows = summary["probes"]
    assert "material/both" in rows["trained, block 3"] and "untrained network, best block on validation" in rows
    assert list((tiny_run / "tensorboard").iterdir())


def test_a_checkpoint_restores_the_state_itself(tiny_run):
    state = open_run(tiny_run).restore()
    assert int(state.step) == 12
    teacher, student = jax.tree.leaves(state.frozen["ema"]), jax.tree.leaves(state.params["model"])
    assert any((a != b).any() for a, b in zip(teacher, student))
    with pytest.raises(UserError, match=mentions(tiny_run, "checkpoint 5 9 12")):
        open_run(tiny_run).restore(5)


def test_weights_are_those_of_the_state_and_leave_the_optimizer_on_disk(tiny_run):
    run = open_run(tiny_run)
    for step in (9, 12):
        state, weights = run.restore(step), run.weights(step)
        jax.tree.map(np.testing.assert_array_equal, weights[:3], state[:3])
        assert jax.tree.leaves(weights.optimizer) == [] and len(jax.tree.leaves(state.optimizer)) > 2
    with pytest.raises(UserError, match=mentions(tiny_run, "checkpoint 5 9 12")):
        run.weights(5)


def test_a_run_keeps_in_mind_what_it_was_trained_on(tiny_run, tiny_experiment, tmp_path):
    (told,) = open_run(tiny_run).provenance()["datasets"].values()
    assert told["dataset"].startswith("collisions/custom_") and told["licence"] == "Apache-2.0"
    assert set(told["autoencoders"]) == {"video", "audio", "image"} and len(told["fingerprint"]) == 16
    setup = check_run(tmp_path, dataclasses.replace(tiny_experiment, init_from=str(tiny_run)))
    create_or_resume(tmp_path, setup.experiment, "0", {}, {})
    (ancestor,) = open_run(tmp_path).provenance()["ancestors"]
    assert ancestor == {"run": f"{tiny_run}:12", "datasets": {"collisions": told}, "imported": None}


def start(folder, data_dir, seen, *flags):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.recorded", str(seen), "train", str(TINY)]
        + ["--workdir", str(folder), "--data-dir", str(data_dir), *flags],
        cwd=TINY.parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.resilience
def test_kill_and_resume_equals_an_uninterrupted_run(tiny_run, data_dir, tmp_path):
    """kill -9 between two checkpoints, another kill right after the restart, then the same command to the end."""
    folder, seen = tmp_path / "run", tmp_path / "seen.jsonl"
    for _ in range(2):
        before = len(read_metrics(folder))
        process = start(folder, data_dir, seen, "--cadence.checkpoint-every", "5")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if (folder / "checkpoints" / "5").exists() and len(read_metrics(folder)) != before:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and 5 <= open_run(folder).last_step() < 12
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 999, "lo')  # a row cut off by the crash
    assert start(folder, data_dir, seen).wait() == 0
    assert numbers(folder) == numbers(tiny_run)
    a, b = (open_run(f).restore() for f in (folder, tiny_run))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    changed = [s["changed"] for s in json.loads((folder / "provenance.json").read_text())["sessions"]]
    assert changed[-1] == {"cadence.checkpoint_every": [5, 3]}
    assert len(_events(folder)) == len(_events(tiny_run))
    _check_samples(seen, data_dir)


def _check_samples(seen, data_dir) -> None:
    """The batches that count are those of an uninterrupted run, and hold each sample once an epoch, by id."""
    from selfflow.config.files import load_experiment
    from selfflow.run.prepare_data import prepare_data

    setup = resolve(load_experiment(TINY))
    feed, _ = prepare_data(setup, data_dir)
    lines = [json.loads(line) for line in seen.read_text().splitlines()]
    assert len(lines) > 12  # steps after a checkpoint were done again
    last = {step: (name, samples) for step, name, samples in lines}
    whole = [
        (facts["component"], [digest(x) for x in batch["latents"][min(batch["latents"])]])
        for batch, facts in feed.batches(0, 12)
    ]
    assert [last[step] for step in range(1, 13)] == whole
    for name, component in setup.experiment.mixture.items():
        source, m = feed.latents["collisions"].open_split("train"), min(component.modalities)
        ids = {digest(source[i][m]): source.id(i) for i in range(len(source))}
        drawn = [ids[sample] for set_name, samples in last.values() if set_name == name for sample in samples]
        assert len(ids) == 24 and len(set(drawn[:24])) == len(drawn[:24]) > 4


def _events(folder) -> list[tuple[str, int]]:
    """(tag, step) of every scalar in the TensorBoard events."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  (the format: length, crc, data, crc)

    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found += [(value.tag, event.step) for value in event.summary.value]
            at += 16 + size
    assert len(set(found)) == len(found)
    return found


@pytest.mark.resilience
def test_more_steps_resume_the_run_and_change_nothing_before(tiny_run, tiny_experiment, data_dir, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    train(dataclasses.replace(tiny_experiment, steps=13), folder, data_dir)
    assert numbers(folder)[:12] == numbers(tiny_run) and len(numbers(folder)) == 13
    # Settings derived from the first length of the run do not change.
    assert open_run(folder).experiment.ema_decay == open_run(tiny_run).experiment.ema_decay


def test_lengths_that_make_no_sense_are_refused(tiny_run, tiny_experiment, data_dir):
    cosine = dataclasses.replace(
        tiny_experiment, optimizer=dataclasses.replace(tiny_experiment.optimizer, decay="cosine", decay_steps=10)
    )
    with pytest.raises(UserError, match=mentions("steps 12 optimizer.decay_steps 10")):
        resolve(cosine)
    with pytest.raises(UserError, match=mentions("steps 5", tiny_run, "12")):
        train(dataclasses.replace(tiny_experiment, steps=5), tiny_run, data_dir)


def test_one_run_is_trained_by_one_process(tiny_run, tiny_experiment, data_dir):
    with run_lock(tiny_run), pytest.raises(UserError, match=mentions("another process", tiny_run)):
        train(tiny_experiment, tiny_run, data_dir)


def test_another_experiment_is_refused_by_name(tiny_run, tiny_experiment, data_dir):
    before = (tiny_run / "experiment.json").read_bytes()
    other = dataclasses.replace(
        tiny_experiment, optimizer=dataclasses.replace(tiny_experiment.optimizer, learning_rate=0.5)
    )
    with pytest.raises(UserError, match=mentions(tiny_run, "optimizer.learning_rate 0.5")):
        train(other, tiny_run, data_dir)
    assert (tiny_run / "experiment.json").read_bytes() == before


def test_init_from_takes_the_weights_and_starts_afresh(tiny_run, tiny_experiment, data_dir, capsys):
    from selfflow.run.init_state import initial_state

    old = open_run(tiny_run).restore()
    setup = resolve(dataclasses.replace(tiny_experiment, init_from=f"{tiny_run}:12"))
    state = initial_state(setup)
    assert int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, old.params)
    jax.tree.map(np.testing.assert_array_equal, state.frozen, old.frozen)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(state.optimizer))
    wider = dataclasses.replace(setup.experiment, model=dataclasses.replace(setup.experiment.model, mlp_ratio=4.0))
    with pytest.raises(UserError, match=mentions("init_from", f"{tiny_run}:12", "shape (1, 32, 128) (1, 32, 256)")):
        initial_state(resolve(wider))
    assert "init_from" not in capsys.readouterr().out  # no parameter is new


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_named(tiny_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    files = sorted((folder / "checkpoints" / "12" / "state").rglob("*"), key=lambda f: f.stat().st_size)
    files[-1].write_bytes(files[-1].read_bytes()[:100])
    with pytest.raises(UserError, match=mentions(folder / "checkpoints" / "12", "damaged")):
        open_run(folder).restore()
    gc.collect()  # warnings of TensorStore about it belong to this test


@pytest.mark.resilience
def test_updates_that_are_not_finite_stop_the_run_and_name_their_samples(tiny_experiment, data_dir, tmp_path):
    wild = dataclasses.replace(tiny_experiment.optimizer, learning_rate=1e30, warmup_steps=0, clip=1e30)
    experiment = dataclasses.replace(tiny_experiment, optimizer=wild, limits=Limits(max_skipped_steps=2))
    with pytest.raises(UserError, match=mentions("limits.max_skipped_steps 2 step 3 no checkpoint")):
        train(experiment, tmp_path / "run", data_dir)
    assert [row["skipped"] for row in read_metrics(tmp_path / "run")] == [0, 1, 1]
    named = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [len(row["ids"]) == {"joint": 2, "image": 4}[row["component"]] for row in named] == [True, True]
