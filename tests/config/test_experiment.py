import dataclasses
import json
from pathlib import Path

import pytest

from selfflow.autoencoders.log_mel import LogMel
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
from tests.conftest import mentions

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
    "change, words",
    [
        ({"steps": "many"}, "steps many int"),
        ({"steps": True}, "steps True int"),
        ({"step": 3}, "step steps"),
        ({"patch": {"image": [1, "a"]}}, "patch.image[1] a int"),
        ({"seed": {"inti": 0}}, "seed.inti init"),
        ({"alignment": {"kind": "self_flo"}}, "alignment self_flo"),
        ({"objective": {"kind": "distillation"}}, "objective distillation flow_matching"),
        ({"ema_decay": "x"}, "ema_decay x float"),
        ({"model": {"kind": "joint", "text_tau": "max"}}, "model.text_tau max mean clean"),
        ({"seed": {"init": -1}}, "seed.init -1"),
        ({"optimizer": {"warmup_steps": 1.5}}, "optimizer.warmup_steps 1.5 int"),
    ],
)
def test_wrong_json_is_named_by_file_and_field(experiment, change, words):
    with pytest.raises(UserError, match=mentions("here", words)):
        from_json(to_json(experiment) | change, Experiment, "here")


def test_an_integer_is_read_as_a_float():
    assert from_json({"learning_rate": 1}, AdamW, "here").learning_rate == 1.0


def test_changes_are_named_and_judged(experiment):
    other = dataclasses.replace(
        experiment, steps=7, optimizer=AdamW(), cadence=dataclasses.replace(experiment.cadence, log_every=1)
    )
    changed = diff(experiment, other)
    assert changed["steps"] == (experiment.steps, 7) and "optimizer.learning_rate" in changed
    assert [n for n in changed if not is_fixed(n)] == ["cadence.log_every", "steps"]


def test_a_run_of_before_a_field_is_read_with_its_default(experiment, tmp_path):
    """As `experiment.json` of a run that began before there were limits and profiles."""
    content = to_json(resolve(experiment).experiment)
    del content["limits"], content["profile"]
    (tmp_path / "experiment.json").write_text(json.dumps(content))
    assert read_experiment(tmp_path / "experiment.json") == resolve(experiment).experiment


def test_limits_and_profile_may_change_in_a_run(experiment):
    other = dataclasses.replace(experiment, limits=Limits(3, 60.0), profile=Profile("2:4"))
    assert set(diff(experiment, other)) == {"limits.max_skipped_steps", "limits.hang_timeout", "profile.steps"}
    assert not any(is_fixed(name) for name in diff(experiment, other))
    with pytest.raises(UserError, match=mentions("profile.steps 399:402 400")):
        resolve(dataclasses.replace(experiment, profile=Profile("399:402")))


def test_modalities_have_the_duration_of_their_media(experiment):
    streams = all_streams(experiment)
    for m in ("video", "audio"):
        assert streams[m].latent[0] * streams[m].period == 200
    assert isinstance(streams["image"], Modality) and streams["image"].period == 0


@pytest.mark.parametrize("seconds, words", [(0.51, "12.75 0.04"), (-0.04, "0"), (float("nan"), ""), (float("inf"), "")])
def test_delays_are_checked_before_there_is_a_run(experiment, seconds, words):
    def delayed(seconds):
        component = dataclasses.replace(experiment.mixture["joint"], delayed={"audio": seconds})
        return dataclasses.replace(experiment, mixture=experiment.mixture | {"joint": component})

    with pytest.raises(UserError, match=mentions("mixture.joint.delayed.audio", seconds, "s", words)):
        resolve(delayed(seconds))
    resolve(delayed(0.52))


def test_mel_bands_have_the_sample_rate_of_the_data(experiment):
    def at_rate(rate):
        autoencoders = experiment.autoencoders | {"audio": LogMel(sample_rate=rate)}
        return dataclasses.replace(experiment, autoencoders=autoencoders)

    resolve(at_rate(8000))
    with pytest.raises(UserError, match=mentions("autoencoders.audio.sample_rate 16000 collisions 8000")):
        resolve(at_rate(16000))


def test_derived_fields_follow_the_length_and_stay_when_a_run_resumes(experiment):
    short = resolve(dataclasses.replace(experiment, steps=100)).experiment
    assert short.ema_decay == pytest.approx(0.9)
    assert short.optimizer.decay_steps == 100 and short.optimizer.warmup_steps == 5
    constant = dataclasses.replace(
        experiment, steps=100, optimizer=dataclasses.replace(experiment.optimizer, decay="constant")
    )
    longer = resolve(dataclasses.replace(constant, steps=200), resolve(constant).experiment).experiment
    assert longer.ema_decay == short.ema_decay and longer.optimizer.warmup_steps == 5 and longer.steps == 200
    with pytest.raises(UserError, match=mentions("steps 200 optimizer.decay_steps 100")):
        resolve(dataclasses.replace(experiment, steps=200), short)


def test_an_experiment_may_have_an_upper_case_suffix(tmp_path):
    (tmp_path / "QUICK.PY").write_text((ROOT / "experiments" / "quickstart.py").read_text(encoding="utf-8"))
    assert load_experiment(tmp_path / "QUICK.PY") == load_experiment(ROOT / "experiments" / "quickstart.py")


@pytest.mark.parametrize("file", ["experiments/quickstart.py", "experiments/ablations/schedules.py"])
def test_the_file_of_the_installed_package_is_named_where_there_is_no_clone(file, tmp_path, monkeypatch):
    assert (ROOT / file).is_file()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=mentions(file, ROOT / file)):
        load_experiment(file)
    with pytest.raises(UserError, match=mentions("experiments/nothing.py")) as error:
        load_experiment("experiments/nothing.py")
    assert str(ROOT) not in str(error.value)
