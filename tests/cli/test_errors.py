"""What a user gets wrong: one line that names it, status 2, nothing lost; bugs keep their traceback."""

import subprocess
import sys

import pytest

from selfflow.cli import _of_the_system, main
from tests.conftest import TINY


def run(capsys, *arguments) -> tuple[int, str, str]:
    old, sys.argv = sys.argv, ["selfflow", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stopped:
            main()
    finally:
        sys.argv = old
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err


FLAGS = [
    (["--alignment.student-layer", "7"], "alignment.student_layer is 7, but the model has blocks 1 to 3"),
    (["--alignment.student-layer", "2"], "alignment.student_layer 2 must be below alignment.teacher_layer 2"),
    (["--schedule.mask-ratio.video", "0.6"], "schedule.mask_ratio.video is 0.6"),
    (["--mixture.joint.modalities", "video", "smell"], "mixture.joint.modalities names smell"),
    (["--optimizer.learning-rate", "-1"], "optimizer.learning_rate is -1.0"),
    (["--optimizer.accumulate", "3"], "not a multiple of optimizer.accumulate 3"),
    (["--patch.image", "3", "3"], "patch (3, 3) does not divide"),
    (["--steps", "0"], "steps is 0"),
    (["--label", "material"], "label and model.labels go together"),
    (["--init-from", "nowhere"], "nowhere is not a run folder"),
    (["--autoencoders.audio.temporal_stride", "333"], "hop 333"),
    (["--model.heads", "0"], "model.heads is 0"),
    (["--seed.data", "-1"], "seed.data is -1"),
    (["--final_evaluation.samples", "0"], "final_evaluation.samples is 0"),
    (["--label", "material", "--model.labels", "2"], "model.labels must be at least 4"),
]


@pytest.mark.parametrize("flags, message", FLAGS)
def test_flags_that_cannot_be(capsys, tmp_path, data_dir, flags, message):
    code, _, err = run(capsys, "train", TINY, "--workdir", tmp_path / "run", "--data-dir", data_dir, *flags)
    assert code == 2 and message in err
    assert "Traceback" not in err and message in err.strip().splitlines()[-1]
    assert not (tmp_path / "run" / "experiment.json").exists()


@pytest.mark.parametrize(
    "flags, message",
    [(["--alignment.wieght", "1"], "--alignment.weight"), (["--steps", "many"], "invalid literal for int")],
)
def test_flags_that_are_not_there_get_a_box_with_a_hint(capsys, tmp_path, flags, message):
    code, out, err = run(capsys, "train", TINY, "--workdir", tmp_path, *flags)
    assert code == 2 and message in out + err


@pytest.mark.parametrize(
    "text, message",
    [
        ("def experiment():\n    return 3", "returned int, not an Experiment"),
        ("x = 1", "defines no function experiment()"),
        ("def experiment(:\n", "line 1"),
        ("from selfflow.training.optimizer import AdamW\nAdamW(learning_rat=1)", "did you mean 'learning_rate'"),
        (
            "import dataclasses\nfrom selfflow.experiments import quickstart\n"
            "def experiment():\n    return dataclasses.replace(quickstart.experiment(), steps='many')",
            "steps is 'many', expected int",
        ),
        (
            "import dataclasses\nfrom selfflow.experiments import quickstart\nfrom selfflow.noise import UniformTau\n"
            "def experiment():\n    return dataclasses.replace(quickstart.experiment(), schedule=UniformTau())",
            "unknown field schedule.shift",
        ),
    ],
)
def test_experiment_files_that_cannot_be(capsys, tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    code, _, err = run(capsys, "train", file)
    assert code == 2 and message in err and str(file) in err and "Traceback" not in err


def test_a_missing_file_and_a_mistyped_command_get_a_suggestion(capsys):
    code, _, err = run(capsys, "train", TINY.with_name("tniy.py"))
    assert code == 2 and "did you mean" in err and "tiny.py" in err
    code, _, err = run(capsys, "trian")
    assert code == 2 and "did you mean train" in err


def test_a_modality_that_the_data_does_not_have(capsys, tmp_path, data_dir):
    """A folder of pictures alone cannot train a component of video and audio."""
    import numpy as np
    from PIL import Image

    source = tmp_path / "pictures"
    source.mkdir()
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40, 3)).astype("uint8")).save(
            source / f"{i}.png"
        )
    file = tmp_path / "mine.py"
    file.write_text("from selfflow.experiments.media import experiment\n")
    code, _, err = run(
        capsys,
        "train",
        file,
        "--data.media.source",
        source,
        "--workdir",
        tmp_path / "run",
        "--data-dir",
        tmp_path / "data",
    )
    assert code == 2 and "no record of the training split" in err and ("video" in err or "audio" in err)
    assert not (tmp_path / "run" / "experiment.json").exists()


def test_a_folder_that_is_no_run_is_left_alone(capsys, tmp_path, data_dir):
    (tmp_path / "metrics.jsonl").write_text("mine")
    code, _, err = run(capsys, "train", TINY, "--workdir", tmp_path, "--data-dir", data_dir)
    assert code == 2 and "holds metrics.jsonl" in err
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    code, _, err = run(capsys, "train", TINY, "--workdir", tmp_path / "metrics.jsonl" / "run", "--data-dir", data_dir)
    assert code == 2 and "cannot be" in err


def test_a_full_disk_is_said_however_it_is_wrapped():
    import errno

    wrapped = ValueError("in a thread")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device", "runs/x/metrics.jsonl")
    assert "disk is full (runs/x/metrics.jsonl)" in _of_the_system(wrapped)
    assert "disk is full" in _of_the_system(RuntimeError("RESOURCE_EXHAUSTED: write failed: No space left on device"))
    assert "/x cannot be" in _of_the_system(PermissionError(errno.EACCES, "Permission denied", "/x"))
    assert _of_the_system(ValueError("a bug")) is None


def test_help_is_fast_and_light():
    code = "import sys; sys.argv = ['selfflow', '--help']\nimport selfflow.cli\ntry:\n    selfflow.cli.main()\n"
    code += "finally:\n    print([m for m in ('jax', 'flax', 'numpy', 'tyro') if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "example" in done.stdout and done.stderr.strip() == "[]"
    code = code.replace("'--help'", f"'train', {str(TINY)!r}, '--help'").replace(
        "('jax', 'flax', 'numpy', 'tyro')", "('orbax', 'grain', 'tensorflow_datasets', 'librosa', 'sklearn', 'av')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--alignment.weight" in done.stdout and done.stderr.strip().endswith("[]")
