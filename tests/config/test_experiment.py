import dataclasses
import json
from pathlib import Path

import pytest

from selfflow.autoencoders.mel import LogMel
from selfflow.config.experiment import Experiment
from selfflow.config.files import diff, is_fixed, load_experiment, load_module, read_experiment, save_experiment
from selfflow.config.resolve import resolve
from selfflow.config.shapes import all_streams
from selfflow.errors import UserError
from selfflow.modality import Modality
from selfflow.noise import DiffusionForcing, DualTimestep, FullMasking, LogitNormalTau, UniformTau, UniformTimestep
from selfflow.objectives.alignment import NoAlignment
from selfflow.serialization import from_json, to_json
from selfflow.sweep.load import load_sweep
from selfflow.training.loop import Limits
from selfflow.training.optimizer import AdamW
from selfflow.training.profile import Profile

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(path for path in (ROOT / "experiments").rglob("*.py") if path.name != "__init__.py")


@pytest.fixture
def experiment() -> Experiment:
    return load_experiment(ROOT / "experiments" / "quickstart.py")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_shipped_experiments_read_back_equal(path, tmp_path):
    experiment = resolve(load_experiment(path, autoencoders=True)).experiment
    save_experiment(experiment, tmp_path / "experiment.json")
    assert read_experiment(tmp_path / "experiment.json") == experiment
    command = "sweep" if hasattr(load_module(path), "sweep") else "train"
    assert f"selfflow {command} {path.relative_to(ROOT)}" in path.read_text().split('"""')[1]
    if command == "sweep":
        load_sweep(path, load_experiment(path))


@pytest.mark.parametrize(
    "schedule",
    [
        UniformTimestep(tau={"video": LogitNormalTau(mean=0.5)}),
        DualTimestep(tau={"video": UniformTau(shift=2.0)}, draw="per_modality"),
        FullMasking(),
        DiffusionForcing(),
    ],
)
def test_every_member_of_a_union_reads_back(experiment, schedule):
    changed = dataclasses.replace(experiment, schedule=schedule, alignment=NoAlignment(), ema_decay=0.5)
    assert from_json(json.loads(json.dumps(to_json(changed))), Experiment, "here") == changed


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": "many"}, "here: steps is 'many', expected int"),
        ({"steps": True}, "steps is True"),
        ({"step": 3}, "unknown field step; did you mean steps?"),
        ({"patch": {"image": [1, "a"]}}, r"patch.image\[1\] is 'a', expected int"),
        ({"seed": {"inti": 0}}, "unknown field seed.inti; did you mean init?"),
        ({"alignment": {"kind": "self_flo"}}, "alignment is"),
        ({"ema_decay": "x"}, "ema_decay is 'x', expected float"),
        ({"model": {"kind": "joint", "text_tau": "max"}}, "model.text_tau is 'max', expected one of 'mean', 'clean'"),
        ({"seed": {"init": -1}}, "here: seed.init is -1"),
        ({"optimizer": {"warmup_steps": 1.5}}, "optimizer.warmup_steps is 1.5, expected int"),
    ],
)
def test_wrong_json_is_named_by_file_and_field(experiment, change, message):
    with pytest.raises(UserError, match=message):
        from_json(to_json(experiment) | change, Experiment, "here")


def test_an_integer_stands_for_a_float():
    assert from_json({"learning_rate": 1}, AdamW, "here").learning_rate == 1.0


def test_changes_are_named_and_judged(experiment):
    other = dataclasses.replace(
        experiment, steps=7, optimizer=AdamW(), cadence=dataclasses.replace(experiment.cadence, log_every=1)
    )
    found = diff(experiment, other)
    assert found["steps"] == (experiment.steps, 7) and "optimizer.learning_rate" in found
    assert [n for n in found if not is_fixed(n)] == ["cadence.log_every", "steps"]


def test_a_run_of_before_a_field_is_read_with_its_default(experiment, tmp_path):
    """As `experiment.json` of a run that began before there were limits and profiles."""
    told = to_json(resolve(experiment).experiment)
    del told["limits"], told["profile"]
    (tmp_path / "experiment.json").write_text(json.dumps(told))
    assert read_experiment(tmp_path / "experiment.json") == resolve(experiment).experiment


def test_limits_and_profile_may_change_in_a_run(experiment):
    other = dataclasses.replace(experiment, limits=Limits(3, 60.0), profile=Profile("2:4"))
    assert set(diff(experiment, other)) == {"limits.max_skipped_steps", "limits.hang_timeout", "profile.steps"}
    assert not any(is_fixed(name) for name in diff(experiment, other))
    with pytest.raises(UserError, match="profile.steps 399:402 goes beyond the 400 steps"):
        resolve(dataclasses.replace(experiment, profile=Profile("399:402")))


def test_modalities_share_the_clock_of_their_media(experiment):
    found = all_streams(experiment)
    assert found["video"].latent[0] * found["video"].period == found["audio"].latent[0] * found["audio"].period == 200
    assert isinstance(found["image"], Modality) and found["image"].period == 0


@pytest.mark.parametrize(
    "seconds, message",
    [
        (0.51, "0.51 s, 12.75 latent frames: give a multiple of 0.04 s"),
        (-0.04, "-0.04 s: give a finite number, at least 0"),
        (float("nan"), "nan s: give a finite number"),
        (float("inf"), "inf s: give a finite number"),
    ],
)
def test_delays_are_looked_at_before_there_is_a_run(experiment, seconds, message):
    late = lambda seconds: dataclasses.replace(experiment.mixture["joint"], delayed={"audio": seconds})
    with pytest.raises(UserError, match=f"mixture.joint.delayed.audio is {message}"):
        resolve(dataclasses.replace(experiment, mixture=experiment.mixture | {"joint": late(seconds)}))
    resolve(dataclasses.replace(experiment, mixture=experiment.mixture | {"joint": late(0.52)}))


def test_mel_bands_are_of_the_rate_of_the_data(experiment):
    heard = lambda rate: dataclasses.replace(
        experiment, autoencoders=experiment.autoencoders | {"audio": LogMel(sample_rate=rate)}
    )
    resolve(heard(8000))
    with pytest.raises(UserError, match="autoencoders.audio.sample_rate is 16000, but collisions has 8000"):
        resolve(heard(16000))


def test_derived_fields_follow_the_length_and_stay_when_a_run_is_taken_up(experiment):
    short = resolve(dataclasses.replace(experiment, steps=100)).experiment
    assert short.ema_decay == pytest.approx(0.9)
    assert short.optimizer.decay_steps == 100 and short.optimizer.warmup_steps == 5
    constant = dataclasses.replace(
        experiment, steps=100, optimizer=dataclasses.replace(experiment.optimizer, decay="constant")
    )
    longer = resolve(dataclasses.replace(constant, steps=200), resolve(constant).experiment).experiment
    assert longer.ema_decay == short.ema_decay and longer.optimizer.warmup_steps == 5 and longer.steps == 200
    with pytest.raises(UserError, match="cosine rate reaches 0 at optimizer.decay_steps 100"):
        resolve(dataclasses.replace(experiment, steps=200), short)
