"""`selfflow import`: a file of weights becomes a run like others, or nothing."""

import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from selfflow.config.files import load_experiment
from selfflow.config.resolve import resolve
from selfflow.errors import UserError
from selfflow.run.init_state import initial_state
from selfflow.run.run import open_run
from selfflow.sampling.generate import Condition, Generator, Sampler
from tests.cli.test_commands import called
from tests.cli.test_errors import refusal, run
from tests.conftest import mentions
from tests.interop.released import HEADS, PT, SAFETENSORS, entries, recorded, write_entries
from tests.weights.hostile import CallOnLoad

# Fine-tunes a SiT of the recorded shape; its data is never built here.
FINE_TUNE = """
from selfflow.autoencoders.linear import PatchPCA
from selfflow.data.digits import Digits
from selfflow.config.experiment import Experiment
from selfflow.input.mixture import Component
from selfflow.models.sit import SiTConfig
from selfflow.objectives.alignment import SelfFlow

def experiment():
    return Experiment(
        data={"digits": Digits()},
        autoencoders={"image": PatchPCA(patch=4, channels=4)},
        patch={"image": (2, 2)},
        mixture={"image": Component(modalities=("image",), batch_size=2)},
        model=SiTConfig(width=48, heads=4, depth=4, input_size=8, channels=4, labels=10, learn_sigma=True),
        label="digit",
        alignment=SelfFlow(student_layer=1, teacher_layer=3),
        steps=4,
    )
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    from selfflow.cli.importing import main

    folder = tmp_path_factory.mktemp("runs") / "sit"
    main([str(PT), "--out", str(folder), "--num-heads", str(HEADS)])
    return folder


@pytest.fixture
def fine_tuned(imported, tmp_path):
    file = tmp_path / "fine_tune.py"
    file.write_text(FINE_TUNE)
    return dataclasses.replace(load_experiment(file), init_from=str(imported))


def test_it_prints_the_model_its_origin_and_the_next_commands(capsys, tmp_path):
    out, _ = called(capsys, "import", SAFETENSORS, "--out", tmp_path / "sit", "--num-heads", HEADS)
    assert mentions("SiT 4 blocks width 48 heads 10 labels 8 x 8 x 4 2 x 2 0.19 M projector 0.01 M").search(out)
    assert mentions(SAFETENSORS, "sha256", hashlib.sha256(SAFETENSORS.read_bytes()).hexdigest()).search(out)
    assert f"selfflow train EXPERIMENT --init-from {tmp_path}/sit" in out and "selfflow export" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sit"]
    assert {p.name for p in (tmp_path / "sit").iterdir()} == {"experiment.json", "provenance.json", "checkpoints"}


@pytest.mark.parametrize("command", ["import", "export"])
def test_help_shows_an_example_and_is_light(command):
    code = (
        f"import sys; sys.argv = ['selfflow', {command!r}, '--help']\nimport selfflow.cli\n"
        "try:\n    selfflow.cli.main()\n"
        "finally:\n    print([m for m in ('jax', 'flax', 'orbax') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and f"example: selfflow {command} " in done.stdout and "--out" in done.stdout
    assert done.stderr.strip() == "[]"


def test_the_run_computes_what_the_original_does_and_draws_samples(imported):
    opened, golden = open_run(imported), recorded()
    state = opened.weights()
    levels, assignment = {"image": golden["tau_uniform"][:, None]}, {"image": np.zeros(golden["x"].shape[:2], np.int32)}
    apply = jax.jit(lambda params, *inputs: opened.objective.apply(params, *inputs).velocity)
    for params in (state.frozen["ema"], state.params["model"]):
        velocity = apply(params, {"image": golden["x"]}, levels, jnp.asarray(golden["labels"]), assignment)
        np.testing.assert_allclose(velocity["image"], golden["velocity_uniform"], rtol=0, atol=1e-5)
    modalities = opened.objective.modalities
    draw = Generator(opened.objective.apply, modalities, Sampler(steps=2), opened.experiment.model.labels)
    samples = draw(state.frozen["ema"], Condition(np.array([3, 10])), seed=0)
    assert samples["image"].shape == (2, 8, 8, 4) and np.isfinite(samples["image"]).all()
    assert opened.metrics() == [] and opened.summary() is None and opened.last_step() == 0


def test_it_is_a_run_without_data_steps_and_optimizer(imported):
    opened = open_run(imported)
    assert opened.experiment.data == {} and opened.experiment.steps == 0
    assert (opened.experiment.alignment.student_layer, opened.experiment.alignment.teacher_layer) == (1, 3)
    for state in (opened.restore(), opened.weights(0)):
        assert int(state.step) == 0 and state.optimizer == optax.EmptyState()
    provenance = opened.provenance()
    whole = PT.read_bytes()
    assert provenance["imported"] == {
        "file": str(PT),
        "bytes": len(whole),
        "sha256": hashlib.sha256(whole).hexdigest(),
    }
    assert provenance["sessions"][0]["packages"]["jax"] == jax.__version__
    # Twice the file, for student and EMA; moments would be four times.
    stored = sum(path.stat().st_size for path in (imported / "checkpoints").rglob("*") if path.is_file())
    assert stored < 2.2 * len(whole)


def test_training_starts_from_it_with_its_projector(imported, fine_tuned, capsys):
    state, old = initial_state(resolve(fine_tuned)), open_run(imported).weights()
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.frozen), (old.params, old.frozen))
    assert "projector" in state.params and "new parameters" not in capsys.readouterr().out
    # The step takes over the memory of its state: none of it may be shared or borrowed.
    after = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)(state)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 1), after.frozen, old.frozen)


@pytest.mark.slow
def test_from_a_released_file_over_training_to_an_export(capsys, imported, data_dir, tmp_path):
    file = tmp_path / "fine_tune.py"
    file.write_text(FINE_TUNE)
    flags = ["--final_evaluation.samples", "2", "--sampler.steps", "2", "--workdir", tmp_path / "run"]
    called(capsys, "train", file, "--init-from", imported, "--data-dir", data_dir, *flags)
    called(capsys, "export", tmp_path / "run", "--out", tmp_path / "out")
    trained, origin = load_file(tmp_path / "out" / "model.safetensors"), load_file(SAFETENSORS)
    moved = {key for key in origin if (trained[key] != origin[key]).any()}
    assert list(trained) == list(origin) and len(moved) > len(origin) / 2 and "pos_embed" not in moved
    assert max(np.abs(trained[key] - origin[key]).max() for key in origin) < 1e-2  # four small steps away
    card = (tmp_path / "out" / "README.md").read_text()
    assert "descend from the run sit:0: imported from sit_small.weights.pt" in card and "- digits: CC BY 4.0" in card


def test_without_a_projector_training_initialises_one_and_names_its_parameters(fine_tuned, tmp_path, capsys):
    weights = {key: value for key, value in load_file(SAFETENSORS).items() if not key.startswith("projector")}
    save_file(weights, tmp_path / "bare.safetensors")
    out, _ = called(capsys, "import", tmp_path / "bare.safetensors", "--out", tmp_path / "bare", "--num-heads", HEADS)
    assert mentions("0.19 M").search(out) and not mentions("0.01 M").search(out)
    assert set(open_run(tmp_path / "bare").weights().params) == {"model"}
    initial_state(resolve(dataclasses.replace(fine_tuned, init_from=f"{tmp_path}/bare:0")))
    out = capsys.readouterr().out
    assert mentions("init_from projector.linear1.bias projector.linear2.kernel").search(out) and "model." not in out


def test_it_cannot_be_trained_on_itself(capsys, imported, tmp_path, data_dir):
    file = tmp_path / "fine_tune.py"
    file.write_text(FINE_TUNE)
    before = sorted(path.name for path in imported.iterdir())
    for arguments, words in (
        ([file, "--workdir", imported, "--data-dir", data_dir], "--workdir"),
        ([imported], "file"),
    ):
        assert mentions(words, "--init-from", imported).search(refusal(capsys, "train", *arguments))
    file.write_text(
        "from pathlib import Path\nfrom selfflow.config.files import read_experiment\n"
        f"experiment = lambda: read_experiment(Path({str(imported / 'experiment.json')!r}))"
    )
    line = refusal(capsys, "train", file, "--workdir", tmp_path / "run", "--data-dir", data_dir)
    assert mentions("data empty init_from").search(line)
    assert sorted(path.name for path in imported.iterdir()) == before


def test_weights_of_another_shape_are_named(fine_tuned):
    wider = dataclasses.replace(fine_tuned, model=dataclasses.replace(fine_tuned.model, labels=3))
    with pytest.raises(UserError, match=mentions("init_from model.label_embedding (11, 48) (4, 48)")):
        initial_state(resolve(wider))


def _evil(path: Path, marker: Path) -> Path:
    program = pickle.dumps({"model": {"a": CallOnLoad(os.system, f"touch {marker}")}}, 2)
    return write_entries(path, {"data.pkl": program, "byteorder": b"little"})


def _with_a_false_length(path: Path) -> Path:
    whole = SAFETENSORS.read_bytes()
    path.write_bytes((1 << 63).to_bytes(8, "little") + whole[8:])
    return path


def _cut(path: Path) -> Path:
    path.write_bytes(PT.read_bytes()[:1000])
    return path


def _nan(path: Path) -> Path:
    weights = load_file(SAFETENSORS)
    weights["x_embedder.proj.bias"][0] = np.nan
    save_file(weights, path)
    return path


@pytest.mark.parametrize(
    "name, make, words",
    [
        ("none.pt", lambda path: path, "file"),
        ("folder.pt", lambda path: path.mkdir() or path, "file"),
        ("cut.pt", _cut, "damaged"),
        ("evil.pt", lambda path: _evil(path, path.with_name("ran")), "posix.system"),
        ("lie.safetensors", _with_a_false_length, "damaged"),
        ("nan.safetensors", _nan, "x_embedder.proj.bias NaN"),
        ("part.pt", lambda path: write_entries(path, entries() | {"data/0": b"ab"}), "module.pos_embed 3072 2"),
        ("weights.npz", lambda path: path.write_bytes(b"") or path, ".safetensors .pt .bin"),
    ],
)
def test_a_file_that_is_no_sit_leaves_nothing(capsys, tmp_path, name, make, words):
    file = make(tmp_path / name)
    line = refusal(capsys, "import", file, "--out", tmp_path / "runs" / "sit")
    assert mentions(tmp_path / name, words).search(line)
    assert not list((tmp_path / "runs").iterdir()) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--num-heads", "5"], "num_heads 5 width 48"),
        (["--num-heads", "4", "--patch-size", "3"], "patch_size 3"),
        (["--num-heads", "x"], "--num-heads int"),
        (["--num-heads", "0"], "num_heads 0 width 48"),
        ([], "--num-heads width 48"),
    ],
)
def test_flags_that_do_not_fit(capsys, tmp_path, flags, words):
    code, out, err = run(capsys, "import", PT, "--out", tmp_path / "sit", *flags)
    assert code == 2 and mentions(words).search(out + err) and not list(tmp_path.iterdir())


def test_what_exists_at_the_destination_stays(capsys, tmp_path, imported):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    for out in (mine, mine / "notes.txt", imported):
        line = refusal(capsys, "import", PT, "--out", out, "--num-heads", HEADS)
        assert mentions("--out", out).search(line)
    assert [path.name for path in mine.iterdir()] == ["notes.txt"] and not list(tmp_path.glob("*.partial"))
    (mine / "notes.txt").unlink()
    called(capsys, "import", PT, "--out", mine, "--num-heads", HEADS)  # an empty folder is taken
    assert open_run(mine).last_step() == 0


@pytest.mark.resilience
def test_a_killed_import_leaves_no_run(capsys, tmp_path):
    code = (
        "import os, signal, sys; from selfflow.run.folder import Checkpoints\n"
        "Checkpoints.wait = lambda self: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"sys.argv = ['selfflow', 'import', {str(PT)!r}, '--out', 'sit', '--num-heads', '4']\n"
        "import selfflow.cli; selfflow.cli.main()"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True).returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == ["sit.partial"]
    with pytest.raises(UserError, match=mentions("sit.partial experiment.json")):
        open_run(tmp_path / "sit.partial")
    line = refusal(capsys, "import", PT, "--out", tmp_path / "sit", "--num-heads", HEADS)
    assert mentions("sit.partial").search(line)


def test_an_error_half_way_leaves_nothing(tmp_path, monkeypatch):
    from selfflow.cli.importing import main

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("selfflow.run.folder.save_experiment", full)
    with pytest.raises(OSError, match="No space left"):
        main([str(PT), "--out", str(tmp_path / "sit"), "--num-heads", str(HEADS)])
    assert list(tmp_path.iterdir()) == []


def test_an_import_keeps_its_provenance_in_what_is_trained_from_it(imported, fine_tuned, tmp_path):
    from selfflow.run.folder import check_run, create_or_resume

    experiment = check_run(tmp_path / "run", fine_tuned).experiment
    (tmp_path / "run").mkdir()
    create_or_resume(tmp_path / "run", experiment, "0", {}, {})
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["started_from"] == f"{imported}:0"
    (ancestor,) = provenance["ancestors"]
    assert ancestor["run"] == f"{imported}:0" and ancestor["imported"]["file"] == str(PT)
