"""Commands on an experiment file, as they are typed."""

import re

import pytest

from tests.cli.test_errors import refusal, run
from tests.conftest import TINY, mentions


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


def test_encode_prints_records_and_quality_of_its_latents_and_finds_them_again(capsys, tmp_path):
    first, progress = called(capsys, "encode", TINY, "--data-dir", tmp_path)
    assert mentions("collisions train 24 validation 12 test 12 shifted 2").search(first)
    assert re.search(r"video\W+patch_pca-\w+\W+psnr_db\W+[\d.]+", first)
    assert mentions("encode collisions 50/50 record/s").search(progress)
    again, progress = called(capsys, "encode", TINY, "--data-dir", tmp_path, "--processes", "2")
    assert again == first and "encode" not in progress
    table, _ = called(capsys, "encode", TINY, "--data-dir", tmp_path, "--inspect", "--out", tmp_path / "inspected")
    assert re.search(r"collisions audio .*snr_db\W+[\d.]+.*log_mel_distance\W+[\d.]+", table)
    assert re.search(r"collisions video .*psnr_db\W+[\d.]+", table)
    files = {f"collisions_{m}{end}" for m in ("image", "video", "audio") for end in (".csv", ".png", "_channels.png")}
    assert {path.name for path in (tmp_path / "inspected").iterdir() if path.stat().st_size} == files
    rows = (tmp_path / "inspected" / "collisions_video.csv").read_text().splitlines()
    assert rows[0] == "channel,mean,std,largest,kurtosis" and len(rows) == 33
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "x"
    line = refusal(capsys, "encode", TINY, "--data-dir", tmp_path, "--inspect", "--out", out)
    assert mentions("--out", out).search(line)


def test_hosts_share_the_work(capsys, tmp_path):
    part, _ = called(capsys, "encode", TINY, "--data-dir", tmp_path, "--host", "0", "--hosts", "2")
    assert mentions("host latents").search(part) and "train" not in part
    whole, _ = called(capsys, "encode", TINY, "--data-dir", tmp_path, "--host", "1", "--hosts", "2")
    assert mentions("train 24").search(whole)
    assert mentions("host 3 2").search(refusal(capsys, "encode", TINY, "--host", "3", "--hosts", "2"))


@pytest.mark.slow
def test_benchmark_of_the_input(capsys, data_dir, tiny_run):
    flags = ["--seconds", "0.2", "--timed-steps", "3"]
    out, _ = called(capsys, "benchmark", TINY, "--data-dir", data_dir, "--only", "input", *flags)
    rates = [float(n.replace(",", "")) for n in re.findall(r"(?:no worker|process(?:es)?) +([\d,]+)", out)]
    assert len(rates) == 3 and min(rates) > 0
    assert re.search(r"\b3 steps .*reading\.workers 0\b.* [\d.]+ s\b.* [\d.]+%", out)
    assert re.search(r"collisions: [\d,]+ frames/s", out)


def test_every_command_shows_an_example(capsys):
    for command in ("train", "sweep", "encode", "plan", "benchmark"):
        out, _ = called(capsys, command, "--help")
        assert f"example: selfflow {command} experiments/" in out
        assert mentions("experiment file selfflow", command).search(refusal(capsys, command, "--steps"))
    out, _ = called(capsys, "probe")
    assert "example: selfflow probe runs/" in out
    code, _, err = run(capsys, "probe", "--tau")
    assert code == 2 and mentions("--tau").search(err)
