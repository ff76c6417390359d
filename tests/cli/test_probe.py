"""`selfflow probe` on several runs: the tables printed, the comparisons with a baseline, and the files of rows."""

import json
import shutil
from types import SimpleNamespace

import pytest

from selfflow.cli.probe import Options, check_components, default_path, match_baseline, probe
from selfflow.cli.probe_tables import print_rows
from selfflow.errors import UserError
from selfflow.representation.comparison import read_rows
from tests.conftest import mentions
from tests.representation.test_probing import ROW

NAN = float("nan")


def rows_of(method: str, *cells: tuple[int, float, float], **more) -> list:
    """Rows of two seeds: (layer, validation, test) each."""
    return [
        ROW._replace(run=f"{method}_{seed}", method=method, seed=seed, layer=layer, validation=v, test=t, **more)
        for seed in range(2)
        for layer, v, t in cells
    ]


def test_a_run_of_fewer_blocks_has_a_dash_in_the_table(capsys):
    print_rows(rows_of("deep", (1, 0.2, 0.31), (2, 0.4, 0.52)) + rows_of("flat", (1, 0.2, 0.25)), "")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2:] for line in lines if line.startswith(("  flat    0.1", "  deep    0.1"))] == 2 * [
        ["0.310", "0.520"]
    ] + 2 * [["0.250", "-"]]


def test_a_probe_that_the_baseline_lacks_is_printed_without_differences(capsys):
    both = rows_of("a", (1, 0.2, 0.3)) + rows_of("b", (1, 0.2, 0.6))
    print_rows([*both, *rows_of("a", (1, 0.2, 0.4), source="audio")], "b")
    video, audio = capsys.readouterr().out.split("material from audio")
    assert mentions("difference -0.300").search(video)
    assert mentions("a 0.400 b").search(audio) and not mentions("difference").search(audio)


@pytest.mark.parametrize("layers", [(1,), (1, 2)])
def test_probes_without_validation_are_printed_for_many_runs(capsys, layers):
    rows = sum((rows_of(m, *((layer, NAN, 0.5) for layer in layers), probe="few-shot") for m in "abcd"), [])
    print_rows(rows, "c")
    out = capsys.readouterr().out
    one = len(layers) == 1  # one layer needs no choice
    assert sum(line.startswith("  a ") and "0.500" in line for line in out.splitlines()) == 2 + one
    assert bool(mentions("difference +0.000").search(out)) == one and "validation" not in out


def test_a_baseline_is_a_label_or_the_method_that_has_one_alone():
    labels = ["shuffled, ema", "shuffled, untrained", "matched, ema"]
    assert match_baseline("", labels) == "" and match_baseline("shuffled, ema", labels) == "shuffled, ema"
    assert match_baseline("matched", labels) == "matched, ema"
    for name in ("shuffled", "match", "delayed"):
        with pytest.raises(UserError, match=mentions("--baseline", name, *labels)):
            match_baseline(name, labels)


def test_runs_whose_first_components_differ_need_the_name_of_one_that_all_have():
    def run(name, *modalities):
        mixture = {"own": SimpleNamespace(modalities=modalities)} if modalities else {}
        return SimpleNamespace(source=name, experiment=SimpleNamespace(mixture=mixture))

    check_components([run("a", "video", "audio"), run("b", "audio", "video")])
    with pytest.raises(UserError, match=mentions("own a own b --component --sources")):
        check_components([run("a", "video", "audio"), run("b", "image")])
    with pytest.raises(UserError, match=mentions("own a imported --component --sources")):
        check_components([run("a", "image"), run("imported")])


def test_every_choice_of_probes_has_a_file_of_its_own():
    def place(paths=("runs/a",), **options):
        return default_path(list(paths), Options(**options))

    assert str(place()) == "runs/a/probes/labels_logistic.csv" and place(baseline="b") == place()
    options = [
        {"targets": "material,count"}, {"tau": "0.5"}, {"layers": "1,2"}, {"weights": "student"}, {"step": 9},
        {"component": "x"}, {"sources": "video+audio"}, {"split": "shifted"}, {"probe": "knn"}, {"clips": 9},
    ]  # fmt: skip
    assert len({place(), *(place(**one) for one in options)}) == 1 + len(options)
    assert place(component="a/b", targets="material,count").name == "material_count_logistic_component=a-b.csv"
    assert place(("runs/a", "runs/b"), tau="0.1,0.3").parts[-3:] == (
        "runs",
        "probes",
        "labels_logistic_tau=0.1,0.3.csv",
    )


@pytest.mark.filterwarnings("ignore:.*shows no sample of class")
def test_seeds_of_a_method_are_summarised_in_one_line(tiny_run, tmp_path, capsys):
    for seed in range(2):
        run = tmp_path / f"arm_{seed}"
        shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("features"))
        experiment = json.loads((run / "experiment.json").read_text())
        experiment["seed"]["init"] = seed
        (run / "experiment.json").write_text(json.dumps(experiment))
    runs = [str(tmp_path / f"arm_{seed}") for seed in range(2)]
    options = {"targets": "count", "sources": "video", "probe": "knn", "layers": "2"}
    with pytest.raises(UserError, match=mentions("--baseline else arm")):
        probe(runs, Options(**options, baseline="else"))
    assert not (tmp_path / "probes").exists()
    rows = probe(runs, Options(**options, baseline="arm"))
    out = capsys.readouterr().out
    assert [(row.run, row.method, row.seed) for row in rows] == [("arm_0", "arm", 0), ("arm_1", "arm", 1)]
    file = tmp_path / "probes" / "count_knn_layers=2_sources=video.csv"
    assert mentions("count video knn validation", file).search(out)
    (summary,) = [line for line in out.splitlines() if "n = 2" in line]
    assert summary.split()[0] == "arm"
    assert [row.run for row in read_rows(file)] == ["arm_0", "arm_1"] and file.with_suffix(".png").exists()
