"""Commands on an experiment file, as they are typed."""

import re

import pytest

from tests.cli.test_errors import run
from tests.conftest import TINY


def called(capsys, *arguments) -> tuple[str, str]:
    """Output and errors of a command that ends well."""
    import sys

    from selfflow.cli import main

    old, sys.argv = sys.argv, ["selfflow", *map(str, arguments)]
    try:
        main()
    finally:
        sys.argv = old
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_encode_tells_what_it_made_and_finds_it_again(capsys, tmp_path):
    first, progress = called(capsys, "encode", TINY, "--data-dir", tmp_path)
    assert "collisions: train 24, validation 12, test 12, shifted 2 records" in first
    assert re.search(r"video: patch_pca-\w+, psnr_db [\d.]+, std of a channel [\d.]+ to [\d.]+", first)
    assert "encode collisions: 50/50 record" in progress and "record/s" in progress
    again, progress = called(capsys, "encode", TINY, "--data-dir", tmp_path, "--processes", "2")
    assert again == first and "encode collisions" not in progress
    looked, _ = called(capsys, "encode", TINY, "--data-dir", tmp_path, "--inspect", "--out", tmp_path / "looked")
    assert re.search(
        r"collisions audio +[\d.]+ to [\d.]+ +[\d.]+ +[\d.]+ +SNR -?[\d.]+ dB, log-mel distance [\d.]+", looked
    )
    assert re.search(r"collisions video .* PSNR [\d.]+ dB", looked)
    files = {f"collisions_{m}{end}" for m in ("image", "video", "audio") for end in (".csv", ".png", "_channels.png")}
    assert {path.name for path in (tmp_path / "looked").iterdir() if path.stat().st_size} == files
    rows = (tmp_path / "looked" / "collisions_video.csv").read_text().splitlines()
    assert rows[0] == "channel,mean,std,largest,kurtosis" and len(rows) == 33
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "encode", TINY, "--data-dir", tmp_path, "--inspect", "--out", tmp_path / "file" / "x")
    assert code == 2 and "cannot be written" in err


def test_hosts_share_the_work(capsys, tmp_path):
    part, _ = called(capsys, "encode", TINY, "--data-dir", tmp_path, "--host", "0", "--hosts", "2")
    assert "this host's part is done; the latents are ready when the other hosts have done theirs" in part
    whole, _ = called(capsys, "encode", TINY, "--data-dir", tmp_path, "--host", "1", "--hosts", "2")
    assert "train 24" in whole
    code, _, err = run(capsys, "encode", TINY, "--host", "3", "--hosts", "2")
    assert code == 2 and "host is 3 of 2 hosts" in err


@pytest.mark.slow
def test_benchmark_of_the_input(capsys, data_dir, tiny_run):
    flags = ["--seconds", "0.2", "--timed-steps", "3"]
    out, _ = called(capsys, "benchmark", TINY, "--data-dir", data_dir, "--only", "input", *flags)
    rates = [float(n.replace(",", "")) for n in re.findall(r"(?:no worker|process(?:es)?) +([\d,]+)", out)]
    assert len(rates) == 3 and min(rates) > 0
    assert re.search(r"3 steps with loader.workers 0: [\d.]+ s a step, [\d.]+% of it spent waiting for data", out)
    assert re.search(r"Generating collisions: [\d,]+ frames/s", out)


def test_every_command_shows_an_example(capsys):
    for command in ("train", "sweep", "encode", "plan", "benchmark"):
        out, _ = called(capsys, command, "--help")
        assert f"example: selfflow {command} experiments/" in out
        code, _, err = run(capsys, command, "--steps")
        assert code == 2 and "name an experiment file first" in err
    out, _ = called(capsys, "probe")
    assert "example: selfflow probe runs/" in out
    code, _, err = run(capsys, "probe", "--tau")
    assert code == 2 and "tau" in err
