"""What a notebook asks of a run: its model, its clips, samples."""

import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from selfflow.config.files import save_experiment
from selfflow.config.resolve import resolve
from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.report.study import open_study
from selfflow.run.prepare_data import prepare_data
from selfflow.run.run import open_run
from tests.conftest import mentions


@pytest.fixture(scope="module")
def run(tiny_run):
    return open_run(tiny_run)


def test_the_package_is_light_until_a_run_is_opened():
    code = (
        "import selfflow, sys\nassert 'jax' not in sys.modules\n"
        "from selfflow import open_run\nassert open_run is selfflow.open_run and 'jax' in sys.modules\n"
        "try:\n    selfflow.nothing\nexcept AttributeError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "has no attribute 'nothing'" in done.stdout, done.stderr


def test_weights_have_a_name_that_is_theirs(run, tiny_run):
    state = run.weights()
    ema, ema_again = run.model(), run.model("ema", 12)
    assert ema is ema_again and ema.step == 12 and ema.depth == 3 and ema.null_label == 0
    jax.tree.map(np.testing.assert_array_equal, ema.params, state.frozen["ema"])
    student, older = run.model("student"), run.model("ema", 9)
    jax.tree.map(np.testing.assert_array_equal, student.params, state.params["model"])
    untrained = run.model("untrained")
    fresh = jax.jit(lambda: run.objective.init(jax.random.key(run.experiment.seed.init))["model"])()
    jax.tree.map(np.testing.assert_array_equal, untrained.params, fresh)
    assert untrained.step == 0 and untrained.apply.keywords == {"open_gates": True}
    assert len({ema.identity, student.identity, older.identity, untrained.identity}) == 4
    assert open_run(tiny_run).model("ema").identity == ema.identity
    assert set(ema.modalities) == {"video", "audio", "image"} and "params" not in repr(ema)


def test_clips_are_what_the_set_has_of_a_split(run, data_dir):
    clips = run.data("test", data_dir=data_dir)
    feed, built = prepare_data(run.setup, data_dir)
    assert run.open_data(data_dir) is run.open_data(str(data_dir))
    reader, records = feed.reader("joint", "test"), built["collisions"].records("test")
    assert (clips.component, clips.split, len(clips)) == ("joint", "test", 12) and set(clips.labels) >= {
        "count",
        "material",
    }
    for i in (0, 7):
        raw = clips.record(i)
        assert raw["id"] == clips.ids[i] == records[int(reader.records[i])]["id"]
        assert clips.labels["count"][i] == raw["count"] and clips.labels["material"][i] == raw["material"]
        expected = reader(int(reader.records[i]))["latents"]
        assert {m: x.shape for m, x in clips.latents(i).items()} == clips.shapes
        jax.tree.map(np.testing.assert_array_equal, clips.latents(i), expected)
    assert len(list(clips)) == 12
    assert set(run.data("train", component="image", data_dir=data_dir).shapes) == {"image"}


def test_clips_that_cannot_be_read_are_counted_and_raw_data_may_be_elsewhere(run, data_dir, monkeypatch, capsys):
    from selfflow.latents.store import LatentSource
    from selfflow.run.data import Clips
    from selfflow.run.prepare_data import RunData

    clips = Clips(RunData(run.open_data(data_dir).source, built={}), "validation", "joint")
    read = LatentSource.__getitem__

    def torn(self, i):
        if i in (2, 5):
            raise BadRecord(self.shard_of(i), "it is torn")
        return read(self, i)

    monkeypatch.setattr(LatentSource, "__getitem__", torn)
    assert len(list(clips)) == 10
    err = capsys.readouterr().err
    assert err.count("warning") == 1 and mentions("2 clips", clips.ids[2]).search(err)
    with pytest.raises(BadRecord, match="it is torn"):
        clips.latents(5)
    with pytest.raises(UserError, match=mentions("raw data collisions data build")):
        clips.record(0)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(split="tset"), "split 'tset': collisions has train, validation, test"),
        (dict(component="smell"), "component 'smell': this run has joint, image"),
    ],
)
def test_splits_and_components_that_do_not_exist(run, data_dir, arguments, words):
    with pytest.raises(UserError, match=mentions(words)):
        run.data(data_dir=data_dir, **arguments)


def test_rebuilt_data_is_refused(tiny_run, tmp_path, data_dir):
    shutil.copytree(tiny_run, tmp_path / "run")
    provenance = (tmp_path / "run" / "provenance.json").read_text()
    known = open_run(tiny_run).provenance()["data"]
    (tmp_path / "run" / "provenance.json").write_text(provenance.replace(f'"data": "{known}"', '"data": "other"'))
    with pytest.raises(UserError, match=mentions(tmp_path / "run", "latents other", known)):
        open_run(tmp_path / "run").data("test", data_dir=data_dir)


def test_samples_are_those_of_the_command(run, tiny_run, data_dir, tmp_path):
    from selfflow.cli.sample import main

    flags = ["--modality", "image", "--count", "3", "--batch-size", "2", "--seed", "5"]
    main([str(tiny_run), "--out", str(tmp_path), "--data-dir", str(data_dir), *flags])
    samples = run.sample(3, ("image",), seed=5, batch_size=2)
    assert samples.numbers.tolist() == [0, 1, 2] and samples.media["image"].shape == (3, 32, 32, 3)
    for i in range(3):
        with np.load(tmp_path / f"{i:05d}.npz") as made:
            np.testing.assert_array_equal(samples.latents["image"][i], made["image"])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(count=0), "count 0"),
        (dict(weights="untrained"), "weights untrained ema student"),
        (dict(modalities=("smell",)), "smell video, audio, image"),
    ],
)
def test_samples_that_cannot_be_drawn(run, arguments, words):
    with pytest.raises(UserError, match=mentions(words)):
        run.sample(**arguments)


def test_a_run_is_named_by_its_folder_however_it_is_opened(tiny_experiment, tmp_path, monkeypatch):
    folder = tmp_path / "first"
    (folder / "samples").mkdir(parents=True)
    save_experiment(resolve(tiny_experiment).experiment, folder / "experiment.json")
    (folder / "provenance.json").write_text('{"sessions": [], "datasets": {}}')
    (tmp_path / "link").symlink_to(folder)
    for path in (folder, f"{folder}/", tmp_path / "link"):
        assert open_run(path).name == "first"
    monkeypatch.chdir(folder)
    assert open_run(".").name == "first" and open_run("../first").name == "first"
    monkeypatch.chdir(folder / "samples")
    assert open_run("..").name == "first"
    assert open_study([".."]).name == "first"
    assert [member.name for member in open_study([str(tmp_path)]).members] == ["first"]


@pytest.mark.parametrize(
    "content, word",
    [
        ('{"datasets": {"a": {}}}', "fingerprint"),
        ('{"datasets": [1]}', "datasets"),
        ("[]", "JSON"),
        ('{"datasets"', "damaged"),
    ],
)
def test_an_edited_provenance_is_named(content, word, tiny_experiment, tmp_path):
    save_experiment(resolve(tiny_experiment).experiment, tmp_path / "experiment.json")
    (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(UserError, match=mentions(tmp_path / "provenance.json", word)):
        open_run(tmp_path).open_data()
