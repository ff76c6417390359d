"""`selfflow export`: what it says, and what it refuses."""

import gc
import shutil

import pytest

from selfflow.interop import load_exported
from tests.cli.test_commands import called
from tests.cli.test_errors import run


def test_it_writes_a_folder_and_says_how_to_load_it(capsys, tiny_run, tmp_path):
    out, _ = called(
        capsys, "export", tiny_run, "--out", tmp_path / "deep" / "out", "--step", "9", "--weights", "student"
    )
    assert f"the student of {tiny_run} at step 9" in out and f"load_exported('{tmp_path}/deep/out').model" in out
    files = ["README.md", "SHA256SUMS", "config.json", "experiment.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "deep" / "out").iterdir()) == files
    assert all(name in out for name in files) and not list(tmp_path.glob("**/*.partial"))
    assert load_exported(tmp_path / "deep" / "out").description.step == 9


def test_what_cannot_be_exported_is_named_and_leaves_nothing(capsys, tiny_run, tmp_path):
    bare, half = tmp_path / "bare", tmp_path / "half"
    shutil.copytree(tiny_run, bare, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(tiny_run, half)
    for commit in (half / "checkpoints").glob("*"):
        commit.rename(commit.with_name(f"{commit.name}.orbax-checkpoint-tmp"))  # as a kill in the middle leaves them
    for arguments, said in (
        ([tmp_path / "nowhere"], "nowhere is not a run folder"),
        ([tmp_path], "is not a run folder"),
        ([tiny_run, "--step", "5"], "has no checkpoint of step 5; it has 9, 12"),
        ([bare], "bare has no checkpoint"),
        ([half], "half has no checkpoint"),
    ):
        code, _, err = run(capsys, "export", *arguments, "--out", tmp_path / "out")
        assert code == 2 and said in err and len(err.splitlines()) == 1
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    assert not (bare / "checkpoints").exists()
    code, _, err = run(capsys, "export", tiny_run, "--out", tiny_run)
    assert code == 2 and f"--out {tiny_run} exists" in err
    code, out, err = run(capsys, "export", tiny_run, "--out", tmp_path / "out", "--weights", "teacher")
    assert code == 2 and "teacher" in out + err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_named(capsys, tiny_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    # Every one: which of them holds the EMA differs from run to run, and what is not read may well be damaged.
    for file in (folder / "checkpoints" / "12" / "state").glob("ocdbt.process_0/d/*"):
        file.write_bytes(file.read_bytes()[:100])
    code, _, err = run(capsys, "export", folder, "--out", tmp_path / "out")
    assert code == 2 and "checkpoints/12 does not fit this experiment or is damaged" in err
    gc.collect()  # what TensorStore still has to say of it belongs to this test
    assert not (tmp_path / "out").exists()
    called(capsys, "export", folder, "--out", tmp_path / "out", "--step", "9")


def test_an_experiment_that_was_changed_by_hand_is_named(capsys, tiny_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    text = (folder / "experiment.json").read_text()
    (folder / "experiment.json").write_text(text.replace('"single_blocks": 2', '"single_blocks": 3'))
    code, _, err = run(capsys, "export", folder, "--out", tmp_path / "out")
    assert code == 2 and "does not fit this experiment" in err and "has shape (2, " in err
    (folder / "experiment.json").write_text(
        text.replace('"kind": "self_flow"', '"kind": "none"').replace(
            '"weight": 0.8,\n  "student_layer": 1,\n  "teacher_layer": 2', '"kind": "none"'
        )
    )
    code, _, err = run(capsys, "export", folder, "--out", tmp_path / "out")
    assert code == 2 and "experiment.json" in err or "params.projector" in err
