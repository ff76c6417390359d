"""What a user gets wrong: one line that names it, status 2, nothing lost; bugs keep their traceback."""

import os
import subprocess
import sys

import pytest

from selfflow.cli import main
from selfflow.errors import system_error_message
from tests.conftest import TINY, mentions


def run(capsys, *arguments) -> tuple[int, str, str]:
    old, sys.argv = sys.argv, ["selfflow", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stopped:
            main()
    finally:
        sys.argv = old
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err


def refusal(capsys, *arguments) -> str:
    """The one line with which a command refuses its arguments, after lines of progress, if any."""
    code, _, err = run(capsys, *arguments)
    line = err.splitlines()[-1]
    assert code == 2 and line.startswith("selfflow: ") and "Traceback" not in err
    return line


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--alignment.student-layer", "7"], "alignment.student_layer 7 3"),
        (["--alignment.student-layer", "2"], "alignment.student_layer 2 alignment.teacher_layer"),
        (["--schedule.mask-ratio.video", "0.6"], "schedule.mask_ratio.video 0.6 0.5"),
        (["--mixture.joint.modalities", "video", "smell"], "mixture.joint.modalities smell autoencoders.smell"),
        (["--optimizer.learning-rate", "-1"], "optimizer.learning_rate -1.0"),
        (["--optimizer.accumulate", "3"], "mixture.joint.batch_size 2 optimizer.accumulate 3"),
        (["--patch.image", "3", "3"], "patch (3, 3) (4, 4, 32)"),
        (["--steps", "0"], "steps 0"),
        (["--label", "material"], "label model.labels"),
        (["--init-from", "nowhere"], "nowhere experiment.json"),
        (["--autoencoders.audio.temporal_stride", "333"], "temporal_stride 333"),
        (["--model.heads", "0"], "model.heads 0"),
        (["--seed.data", "-1"], "seed.data -1"),
        (["--final_evaluation.samples", "0"], "final_evaluation.samples 0"),
        (["--label", "material", "--model.labels", "2"], "label material 3 model.labels 4"),
    ],
)
def test_flags_that_cannot_be(capsys, tmp_path, data_dir, flags, words):
    arguments = ["train", TINY, "--workdir", tmp_path / "run", "--data-dir", data_dir, *flags]
    assert mentions(words).search(refusal(capsys, *arguments))
    assert not (tmp_path / "run" / "experiment.json").exists()


@pytest.mark.parametrize(
    "flags, words",
    [(["--alignment.wieght", "1"], "--alignment.wieght --alignment.weight"), (["--steps", "many"], "--steps many int")],
)
def test_flags_that_do_not_exist_get_a_box_with_a_hint(capsys, tmp_path, flags, words):
    code, out, err = run(capsys, "train", TINY, "--workdir", tmp_path, *flags)
    assert code == 2 and mentions(words).search(out + err)


@pytest.mark.parametrize(
    "text, words",
    [
        ("def experiment():\n    return 3", "int Experiment"),
        ("x = 1", "function experiment()"),
        ("def experiment(:\n", "line 1"),
        ("from selfflow.training.optimizer import AdamW\nAdamW(learning_rat=1)", "AdamW learning_rat learning_rate"),
        (
            "import dataclasses\nfrom selfflow.experiments import quickstart\n"
            "def experiment():\n    return dataclasses.replace(quickstart.experiment(), steps='many')",
            "steps many int",
        ),
        (
            "import dataclasses\nfrom selfflow.experiments import quickstart\nfrom selfflow.noise import UniformTau\n"
            "def experiment():\n    return dataclasses.replace(quickstart.experiment(), schedule=UniformTau())",
            "schedule.shift",
        ),
    ],
)
def test_experiment_files_that_cannot_be(capsys, tmp_path, text, words):
    file = tmp_path / "mine.py"
    file.write_text(text)
    assert mentions(file, words).search(refusal(capsys, "train", file))


def test_a_missing_file_and_a_mistyped_command_get_a_suggestion(capsys):
    missing = TINY.with_name("tniy.py")
    assert mentions(missing, TINY).search(refusal(capsys, "train", missing))
    assert mentions("trian train").search(refusal(capsys, "trian"))


def test_a_modality_that_the_data_does_not_have(capsys, tmp_path, data_dir):
    """A folder of images alone cannot train a component of video and audio."""
    import numpy as np
    from PIL import Image

    source = tmp_path / "images"
    source.mkdir()
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40, 3)).astype("uint8")).save(
            source / f"{i}.png"
        )
    file = tmp_path / "mine.py"
    file.write_text("from selfflow.experiments.media import experiment\n")
    folders = ["--workdir", tmp_path / "run", "--data-dir", tmp_path / "data"]
    line = refusal(capsys, "train", file, "--data.media.source", source, *folders)
    assert mentions("autoencoders.video record training split").search(line)
    assert not (tmp_path / "run" / "experiment.json").exists()


def test_a_folder_that_is_no_run_is_left_alone(capsys, tmp_path, data_dir):
    file = tmp_path / "metrics.jsonl"
    file.write_text("mine")
    line = refusal(capsys, "train", TINY, "--workdir", tmp_path, "--data-dir", data_dir)
    assert mentions(tmp_path, "experiment.json metrics.jsonl --workdir").search(line)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    line = refusal(capsys, "train", TINY, "--workdir", file / "run", "--data-dir", data_dir)
    assert mentions("--workdir", file / "run").search(line)


def test_a_full_disk_is_named_however_the_error_is_wrapped():
    import errno

    wrapped = ValueError("in a thread")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device", "runs/x/metrics.jsonl")
    assert mentions("disk full runs/x/metrics.jsonl").search(system_error_message(wrapped))
    exhausted = RuntimeError("RESOURCE_EXHAUSTED: write failed: No space left on device")
    assert mentions("disk full").search(system_error_message(exhausted))
    assert mentions("/x Permission denied").search(
        system_error_message(PermissionError(errno.EACCES, "Permission denied", "/x"))
    )
    ended = RuntimeError("Worker process was terminated unexpectedly with exit code -7. Search the logs above")
    assert mentions("/dev/shm", "loader.workers").search(system_error_message(ended))
    assert system_error_message(RuntimeError("Worker process was terminated with exit code -77")) is None
    assert system_error_message(ValueError("a bug")) is None


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


@pytest.mark.resilience
@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_jax_does_not_have(tmp_path, platform):
    environment = os.environ | {"JAX_PLATFORMS": platform}
    command = [sys.executable, "-m", "selfflow", "benchmark", TINY, "--only", "step"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert mentions(f"JAX_PLATFORMS {platform}").search(process.stderr.splitlines()[-1])


@pytest.mark.resilience
def test_a_workdir_that_the_locale_cannot_write(tmp_path):
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "selfflow", "train", TINY, "--workdir", os.fsencode(tmp_path / "läuft")]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 2
    assert mentions("--workdir PYTHONUTF8").search(process.stderr.splitlines()[-1])
