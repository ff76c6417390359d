"""`selfflow report`: its output and its errors."""

import subprocess
import sys

from tests.cli.test_commands import called
from tests.cli.test_errors import run
from tests.report.folders import experiment, make_run, make_sweep


def test_the_output_names_the_files_and_what_is_left_out(capsys, tmp_path):
    sweep = make_sweep(tmp_path / "sweep", {"a": [0.5, 0.6], "b": [0.6, 0.5], "c": [None]})
    out, _ = called(capsys, "report", sweep)
    assert "sweep: 5 runs of 3 arms, 4 done" in out and "left out: c_1: not started" in out
    assert "1 difference to a with a 95 % interval: each contains 0: a null result" in out
    assert f"{sweep}/report/report.html" in out and "learning.csv" in out
    assert sorted(path.suffix for path in (sweep / "report").iterdir()) == [".csv"] * 6 + [".html"]
    again, _ = called(capsys, "report", sweep, "--baseline", "b")
    assert "1 difference to b" in again


def test_several_runs_and_folders_without_a_sweep_file(capsys, tmp_path):
    for name, seed, weight in (("a_2", 2, 0.8), ("a_10", 10, 0.8), ("b_2", 2, 0.3)):
        make_run(tmp_path / "runs" / name, experiment(seed, alignment__weight=weight), 0.5)
    out, _ = called(capsys, "report", tmp_path / "runs")
    assert "runs: 3 runs of 2 arms, 3 done" in out
    out, _ = called(capsys, "report", *(tmp_path / "runs" / name for name in ("b_2", "a_10")), "--out", tmp_path / "x")
    assert "runs: 2 runs of 2 arms, 2 done" in out and (tmp_path / "x" / "report.html").is_file()
    out, _ = called(capsys, "report", tmp_path / "runs" / "b_2")
    assert "b_2: 1 run of 1 arm" in out and (tmp_path / "runs" / "b_2" / "report" / "report.html").is_file()


def test_errors_name_the_argument(capsys, tmp_path):
    make_run(tmp_path / "runs" / "a_1", experiment(1), 0.5)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for arguments, error in (
        ([tmp_path / "empty"], "empty has no run"),
        ([tmp_path / "nowhere"], "nowhere is not a folder"),
        ([tmp_path / "runs" / "a_1", tmp_path / "empty"], "empty is not a run folder"),
        ([tmp_path / "runs", "--baseline", "b"], "--baseline is b, expected one of a_1"),
        ([tmp_path / "runs", "--out", tmp_path / "file"], "file cannot be created"),
        ([tmp_path / "runs", "--out", "gs://bucket/x"], "--out is gs://bucket/x"),
        (["gs://bucket/run"], "--out is missing"),
        ([tmp_path / "runs", "--probes", tmp_path / "file"], "file has no rows of `selfflow probe`"),
        ([tmp_path / "runs", "--samples", "-1"], "--samples is -1"),
        ([], "name a run or the folder of a sweep"),
    ):
        code, _, err = run(capsys, "report", *arguments)
        assert code == 2 and error in err and len(err.splitlines()) == 1, err


def test_help_shows_an_example_and_imports_no_jax():
    code = (
        "import sys; sys.argv = ['selfflow', 'report', '--help']\n"
        "from selfflow.cli import main\n"
        "try:\n    main()\nfinally:\n    print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "example: selfflow report runs/" in done.stdout and done.stdout.strip().endswith("False"), done.stderr
