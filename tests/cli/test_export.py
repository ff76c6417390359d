"""`selfflow export`: what it says, and what it refuses."""

import gc
import shutil

import pytest

from selfflow.interop import load_exported
from tests.cli.test_commands import called
from tests.cli.test_errors import refusal, run
from tests.conftest import mentions


def test_it_writes_a_folder_and_prints_how_to_load_it(capsys, tiny_run, tmp_path):
    folder = tmp_path / "deep" / "out"
    out, _ = called(capsys, "export", tiny_run, "--out", folder, "--step", "9", "--weights", "student")
    files = ["README.md", "SHA256SUMS", "config.json", "experiment.json", "model.safetensors"]
    assert mentions("student", tiny_run, "step 9", f"load_exported('{folder}')", *files).search(out)
    assert sorted(path.name for path in folder.iterdir()) == files
    assert not list(tmp_path.glob("**/*.partial"))
    assert load_exported(folder).description.step == 9


def test_what_cannot_be_exported_is_named_and_leaves_nothing(capsys, tiny_run, tmp_path):
    bare, half = tmp_path / "bare", tmp_path / "half"
    shutil.copytree(tiny_run, bare, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(tiny_run, half)
    for commit in (half / "checkpoints").glob("*"):
        commit.rename(commit.with_name(f"{commit.name}.orbax-checkpoint-tmp"))  # as a kill in the middle leaves them
    for arguments, words in (
        ([tmp_path / "nowhere"], f"{tmp_path}/nowhere experiment.json"),
        ([tmp_path], f"{tmp_path} experiment.json"),
        ([tiny_run, "--step", "5"], f"{tiny_run} checkpoint 5 9 12"),
        ([bare], f"{bare} checkpoint"),
        ([half], f"{half} checkpoint"),
    ):
        assert mentions(words).search(refusal(capsys, "export", *arguments, "--out", tmp_path / "out"))
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    assert not (bare / "checkpoints").exists()
    code, _, err = run(capsys, "export", tiny_run, "--out", tiny_run)
    assert code == 2 and f"--out {tiny_run} exists" in err
    code, out, err = run(capsys, "export", tiny_run, "--out", tmp_path / "out", "--weights", "teacher")
    assert code == 2 and mentions("--weights teacher").search(out + err)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_named(capsys, tiny_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    # Every one: which of them holds the EMA differs from run to run, and what is not read may well be damaged.
    for file in (folder / "checkpoints" / "12" / "state").glob("ocdbt.process_0/d/*"):
        file.write_bytes(file.read_bytes()[:100])
    assert mentions(folder / "checkpoints" / "12").search(refusal(capsys, "export", folder, "--out", tmp_path / "out"))
    gc.collect()  # warnings of TensorStore about it belong to this test
    assert not (tmp_path / "out").exists()
    called(capsys, "export", folder, "--out", tmp_path / "out", "--step", "9")


def test_an_experiment_that_was_changed_by_hand_is_named(capsys, tiny_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    text = (folder / "experiment.json").read_text()
    (folder / "experiment.json").write_text(text.replace('"single_blocks": 2', '"single_blocks": 3'))
    line = refusal(capsys, "export", folder, "--out", tmp_path / "out")
    assert mentions(folder / "checkpoints" / "12", "frozen.ema.single.inputs.kernel (2, 32, (3, shape").search(line)
    (folder / "experiment.json").write_text(text.replace('"kind": "self_flow"', '"kind": "none"'))
    line = refusal(capsys, "export", folder, "--out", tmp_path / "out")
    assert mentions(folder / "experiment.json", "alignment.weight").search(line)
