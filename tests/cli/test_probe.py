"""`selfflow probe` on several runs: what is printed, what is held against what, and where rows go."""

import json
import shutil
from types import SimpleNamespace

import pytest

from selfflow.cli.probe import Options, check_components, default_path, match_baseline, probe
from selfflow.cli.probe_tables import print_rows
from selfflow.errors import UserError
from selfflow.representation.comparison import read_rows
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
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[2:] for line in told if line.startswith(("  flat    0.1", "  deep    0.1"))] == 2 * [
        ["0.310", "0.520"]
    ] + 2 * [["0.250", "-"]]


def test_a_question_that_the_baseline_was_not_asked_is_compared_without_it(capsys):
    both = rows_of("a", (1, 0.2, 0.3)) + rows_of("b", (1, 0.2, 0.6))
    print_rows([*both, *rows_of("a", (1, 0.2, 0.4), source="audio")], "b")
    first, second = capsys.readouterr().out.split("material from audio")
    assert "differences from b" in first and "difference -0.3" in first
    assert "a  " in second and "0.400" in second and "difference " not in second and "b has no such rows" in second


@pytest.mark.parametrize("layers", [(1,), (1, 2)])
def test_what_validation_does_not_choose_is_printed_for_many_runs(capsys, layers):
    rows = sum((rows_of(m, *((layer, NAN, 0.5) for layer in layers), probe="few-shot") for m in "abcd"), [])
    print_rows(rows, "c")
    told = capsys.readouterr().out
    assert sum(line.startswith("  a ") and "0.500" in line for line in told.splitlines()) == 2 + (len(layers) == 1)
    assert ("differences from c" in told) == (len(layers) == 1) and "chosen on validation" not in told


def test_a_baseline_is_a_label_or_the_method_that_has_one_alone():
    labels = ["shuffled, ema", "shuffled, untrained", "matched, ema"]
    assert match_baseline("", labels) == "" and match_baseline("shuffled, ema", labels) == "shuffled, ema"
    assert match_baseline("matched", labels) == "matched, ema"
    for name in ("shuffled", "match", "delayed"):
        with pytest.raises(UserError, match=f"--baseline '{name}': there are 'shuffled, ema', 'shuffled, untrained', "):
            match_baseline(name, labels)


def test_runs_whose_first_sets_differ_are_asked_for_one_that_all_have():
    run = lambda name, *first: SimpleNamespace(
        source=name, experiment=SimpleNamespace(mixture={"own": SimpleNamespace(modalities=first)} if first else {})
    )
    check_components([run("a", "video", "audio"), run("b", "audio", "video")])
    with pytest.raises(UserError, match=r"\(own of a and own of b\): name a --component or --sources"):
        check_components([run("a", "video", "audio"), run("b", "image")])
    with pytest.raises(UserError, match="none of imported"):
        check_components([run("a", "image"), run("imported")])


def test_another_question_has_a_file_of_its_own():
    place = lambda paths=("runs/a",), **asked: default_path(list(paths), Options(**asked))
    assert str(place()) == "runs/a/probes/labels_logistic.csv" and place(baseline="b") == place()
    asked = [
        {"targets": "material,count"}, {"tau": "0.5"}, {"layers": "1,2"}, {"weights": "student"}, {"step": 9},
        {"component": "x"}, {"sources": "video+audio"}, {"split": "shifted"}, {"probe": "knn"}, {"clips": 9},
    ]  # fmt: skip
    assert len({place(), *(place(**one) for one in asked)}) == 1 + len(asked)
    assert place(component="a/b", targets="material,count").name == "material_count_logistic_component=a-b.csv"
    assert place(("runs/a", "runs/b"), tau="0.1,0.3").parts[-3:] == (
        "runs",
        "probes",
        "labels_logistic_tau=0.1,0.3.csv",
    )


@pytest.mark.filterwarnings("ignore:.*shows no sample of class")
def test_seeds_of_a_method_are_told_as_one(tiny_run, tmp_path, capsys):
    for seed in range(2):
        run = tmp_path / f"arm_{seed}"
        shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("features"))
        told = json.loads((run / "experiment.json").read_text())
        told["seed"]["init"] = seed
        (run / "experiment.json").write_text(json.dumps(told))
    runs = [str(tmp_path / f"arm_{seed}") for seed in range(2)]
    asked = {"targets": "count", "sources": "video", "probe": "knn", "layers": "2"}
    with pytest.raises(UserError, match="--baseline 'else': there are 'arm'; name one"):
        probe(runs, Options(**asked, baseline="else"))
    assert not (tmp_path / "probes").exists()
    rows = probe(runs, Options(**asked, baseline="arm"))
    told = capsys.readouterr().out
    assert [(row.run, row.method, row.seed) for row in rows] == [("arm_0", "arm", 0), ("arm_1", "arm", 1)]
    assert "with the layer and the tau chosen on validation" in told and "differences from arm" in told
    file = tmp_path / "probes" / "count_knn_layers=2_sources=video.csv"
    assert [row.run for row in read_rows(file)] == ["arm_0", "arm_1"] and file.with_suffix(".png").exists()
