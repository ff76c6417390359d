"""Probes of a run: targets, features, and rows of results."""

import dataclasses

import numpy as np
import pytest

from selfflow.cli.probe import Options, probe
from selfflow.errors import UserError
from selfflow.representation.comparison import compare_methods, interaction, read_rows, write_rows
from selfflow.representation.features.extract import features
from selfflow.representation.figures.comparison import comparison_figure
from selfflow.representation.probes.fit import fit_probe
from selfflow.representation.probes.probe_run import Probing, Row, best, probe_run
from selfflow.representation.probes.split import Split
from selfflow.representation.probes.targets import ProbeLabels, Target, dataset_of, select_targets, targets_of
from selfflow.run.arms import arms_of
from selfflow.run.run import open_run
from tests.conftest import mentions

ROW = Row("a_0", "a", 0, 9, "ema", "material", "video", 0.1, 2, "logistic", "balanced_accuracy", 0.01, 0.4, 0.5,
          0.3, 0.7, 0.25, "test", 24, 12)  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_run):
    return open_run(tiny_run)


@pytest.fixture(scope="module")
def clips(run):
    return run.data("test")


def test_targets_of_the_data(run, clips):
    known = targets_of(run, clips)
    assert {"material", "count", "shape", "contacts", "contact", "position", "velocity"} <= set(known)
    with pytest.raises(UserError, match=mentions("target taste", *known)):
        select_targets(run, clips, ("material", "taste"))


def test_targets_of_tokens_are_those_of_their_bodies(run, clips):
    found = features(run, clips, 1, 0.1, modalities=("video",), pool="tokens", limit=3)
    (split,) = ProbeLabels(clips, dataset_of(run, clips)).of(Target("velocity", "token"), found, 1, ("video",))
    truth = run.experiment.data["collisions"].ground_truth
    expected = [truth.of_tokens(clips.record(i), found.grids["video"]) for i in range(3)]
    np.testing.assert_array_equal(split.y, np.concatenate([b.values["velocity"] for b in expected]))
    np.testing.assert_array_equal(
        split.x, np.concatenate([found.layers[1]["video"][i][b.tokens] for i, b in enumerate(expected)])
    )
    assert split.ids.tolist() == sum(([name] * len(b.tokens) for name, b in zip(found.ids, expected)), [])


def test_targets_of_time_steps_are_those_of_their_contacts(run, clips):
    found = features(run, clips, 1, 0.1, modalities=("audio",), pool="tokens", limit=2)
    (split,) = ProbeLabels(clips, dataset_of(run, clips)).of(Target("contact", "time_step"), found, 1, ("audio",))
    rows = found.grids["audio"][0]
    truth = run.experiment.data["collisions"].ground_truth
    expected = truth.of_time_steps(clips.record(0), np.arange(rows + 1) * truth.seconds / rows)
    np.testing.assert_array_equal(split.y[:rows, 0], expected["contact"])
    np.testing.assert_array_equal(split.x[:rows], found.layers[1]["audio"][0])


def test_features_of_classes_are_means_side_by_side(run, clips):
    found = features(run, clips, 2, 0.1)
    (split,) = ProbeLabels(clips, dataset_of(run, clips)).of(Target("material", "class"), found, 2, ("video", "audio"))
    np.testing.assert_array_equal(split.x[:, :32], found.layers[2]["video"])
    np.testing.assert_array_equal(split.x[:, 32:], found.layers[2]["audio"])
    assert split.y.tolist() == [clips.record(i)["material"] for i in range(len(clips))]
    shapes = ProbeLabels(clips, dataset_of(run, clips)).of(Target("shape", "class"), found, 2, ("video",))
    assert len(shapes) == 3 and set(shapes[0].y) <= {0, 1}


def test_tokens_of_two_modalities_are_one_sequence(run, clips):
    found = features(run, clips, 1, 0.1, pool="tokens", limit=4)
    (split,) = ProbeLabels(clips, dataset_of(run, clips)).of(Target("count", "class"), found, 1, ("video", "audio"))
    video, audio = (found.layers[1][m] for m in ("video", "audio"))
    assert video.shape[1] != audio.shape[1]
    np.testing.assert_array_equal(split.x[:, : video.shape[1]], video)
    np.testing.assert_array_equal(split.x[:, video.shape[1] :], audio)


@pytest.mark.filterwarnings("ignore:.*shows no sample of class")
def test_rows_hold_the_settings_of_their_probes(run):
    asked = Probing(("count", "contacts", "contact"), (1, 3), (0.1, 0.5), ("video", "video+audio"), token_clips=4)
    rows = probe_run(run, asked, method="tiny")
    # Targets of time steps are of one modality.
    assert len(rows) == 2 * 2 * (3 + 2)
    assert {(r.target, r.source) for r in rows if r.probe == "logistic"} == {
        ("count", "video"),
        ("count", "video+audio"),
    }
    assert {r.train_n for r in rows} == {24, 4 * 25} and {r.chance for r in rows if r.metric == "r2"} == {0}
    assert all(r.step == 12 and r.method == "tiny" and r.seed == run.experiment.seed.init for r in rows)
    again = probe_run(run, dataclasses.replace(asked, targets=("count",), layers=(3,), tau=(0.5,), sources=("video",)))
    (same,) = [r for r in rows if (r.target, r.source, r.layer, r.tau) == ("count", "video", 3, 0.5)]
    assert again[0].test == same.test and again[0].validation == same.validation
    assert all(row.low <= row.test <= row.high if row.metric != "r2" else np.isnan(row.low) for row in rows)
    chosen = best(rows)
    assert len(chosen) == 5
    for row in chosen:
        alike = [r.validation for r in rows if (r.target, r.source) == (row.target, row.source)]
        assert row.validation == max(alike)


@pytest.mark.filterwarnings("ignore:.*shows no sample of class")
def test_the_command_prints_and_writes(tiny_run, tmp_path, capsys):
    file = tmp_path / "rows.csv"
    options = Options(targets="count", layers="2", weights="ema,untrained", sources="video", csv=file, probe="knn")
    rows = probe([str(tiny_run)], options)
    assert mentions("count video knn test tiny, untrained", file).search(capsys.readouterr().out)
    assert read_rows(file) == [row._replace(**_rounded(row)) for row in rows]
    assert (tmp_path / "rows.png").read_bytes()[:4] == b"\x89PNG"


def _rounded(row):
    return {name: float(f"{value:.6g}") for name, value in row._asdict().items() if isinstance(value, float)}


def test_the_mean_of_several_probes_has_no_setting():
    random = np.random.default_rng(0)
    split = lambda: Split(random.standard_normal((12, 3)), np.arange(12) % 2)
    three = [[split(), split()] for _ in range(3)]
    assert np.isnan(fit_probe(Target("shape", "class"), "knn", three).setting)
    assert fit_probe(Target("count", "class"), "knn", [s[:1] for s in three]).setting > 0


@pytest.mark.parametrize(
    "options, words",
    [
        ({"targets": "taste"}, "target taste material"),
        ({"layers": "1,99"}, "layers 99 3"),
        ({"layers": "one"}, "--layers one"),
        ({"tau": "2"}, "--tau (2.0,) 0 1"),
        ({"sources": "video+smell"}, "--sources video+smell smell video, audio"),
        ({"sources": "audio", "targets": "position"}, "target position tokens audio"),
        ({"split": "train"}, "--split train test"),
        ({"split": "rest"}, "split rest validation"),
        ({"component": "none"}, "component none joint, image"),
        ({"weights": "teacher"}, "--weights teacher ema student untrained"),
        ({"clips": 1}, "--clips 1 2"),
        ({"step": 7}, "checkpoint 7 9 12"),
    ],
)
def test_options_that_do_not_exist_are_refused_by_name(tiny_run, options, words):
    with pytest.raises(UserError, match=mentions(words)):
        probe([str(tiny_run)], Options(**options))


def test_methods_are_compared_seed_by_seed():
    rows = [ROW._replace(method=m, seed=s, test=t) for m, s, t in (("a", 0, 0.4), ("a", 1, 0.5), ("b", 0, 0.5),
            ("b", 1, 0.7), ("c", 0, 0.4))]  # fmt: skip
    a, b, c = compare_methods(rows)
    assert a.difference is None and (c.difference.n, c.difference.low) == (1, None)  # over the seeds of both
    assert compare_methods([rows[0], rows[3]])[1].difference is None
    assert b.difference.difference == pytest.approx(0.15) and b.difference.n == 2
    assert b.difference.high == pytest.approx(0.15 + 12.706 * 0.05, abs=1e-3)
    assert compare_methods(rows[:4], "b")[0].difference.difference == pytest.approx(-0.15)
    with pytest.raises(UserError, match=mentions("a two seed.init 0")):
        compare_methods(rows + rows[:1])
    with pytest.raises(UserError, match=mentions("baseline d a, b, c")):
        compare_methods(rows, "d")


def test_an_interaction_is_a_difference_of_paired_differences():
    scores = {"a": (0.5, 0.6, 0.9), "b": (0.4, 0.4, 0.1), "c": (0.5, 0.4), "d": (0.45, 0.5)}
    methods = compare_methods(
        [ROW._replace(method=m, seed=s, test=t) for m, own in scores.items() for s, t in enumerate(own)]
    )
    found = interaction(methods, ("a", "b"), ("c", "d"))  # of seeds 0 and 1: (.1 - .05, .2 + .1)
    assert (found.difference, found.n) == (pytest.approx(0.175), 2)
    assert found.high == pytest.approx(0.175 + 12.706 * 0.125, abs=1e-3)
    with pytest.raises(UserError, match=mentions("interaction e a, b, c, d")):
        interaction(methods, ("a", "e"), ("c", "d"))
    alone = compare_methods([ROW._replace(method=m, seed=i, test=0.5) for i, m in enumerate("abcd")])
    with pytest.raises(UserError, match=mentions("interaction a, b, c, d no seed")):
        interaction(alone, ("a", "b"), ("c", "d"))


def test_a_figure_of_methods_shows_every_run_and_every_interval():
    methods = compare_methods([ROW._replace(method=m, seed=s, test=0.4 + s / 10) for m in "abc" for s in range(3)], "b")
    figure = comparison_figure({"material": methods, "count": methods[:2]})
    scores, other, differences, _ = figure.axes
    seeds = [line for line in scores.lines if line.get_label().startswith("seed")]
    assert [len(line.get_xdata()) for line in seeds] == [3, 3, 3] and len(scores.containers) == 3
    assert len(differences.containers) == 2 and len(other.containers) == 2
    low, high = scores.containers[0].lines[2][0].get_segments()[0][:, 1]  # 0.5 with t(2) 0.1 / sqrt(3) to both sides
    assert (low, high) == pytest.approx((0.5 - 0.2484, 0.5 + 0.2484), abs=1e-3)


def test_runs_that_differ_in_seeds_alone_are_one_method(run, tiny_run):
    class Named:
        def __init__(self, source, experiment):
            self.source, self.experiment, self.provenance = source, experiment, run.provenance
            self.name = source.rpartition("/")[2]

    seeds = [dataclasses.replace(run.experiment, seed=dataclasses.replace(run.experiment.seed, init=i)) for i in (1, 2)]
    other = dataclasses.replace(run.experiment, ema_decay=0.5)
    one, two = Named("runs/arm_1", seeds[0]), Named("runs/arm_2", seeds[1])
    assert arms_of([one, two, Named("runs/else_1", other)]) == ["arm", "arm", "else_1"]
    assert arms_of([one, Named("runs/arm_2", other)]) == ["arm_1", "arm_2"]
    with pytest.raises(UserError, match=mentions("runs/arm_1 runs/arm_9 arm seed.init 1")):
        arms_of([Named("runs/arm_9", seeds[0]), one])
    seldom = dataclasses.replace(seeds[1], cadence=dataclasses.replace(seeds[1].cadence, checkpoint_every=7))
    assert arms_of([one, Named("runs/arm_2", seldom)]) == ["arm", "arm"]  # nothing else is computed
    longer = dataclasses.replace(seeds[1], steps=seeds[1].steps + 1)
    assert arms_of([one, Named("runs/arm_2", longer)]) == ["arm_1", "arm_2"]
    with pytest.raises(UserError, match=mentions("runs/arm_1 else/arm_1 name")):
        arms_of([one, Named("else/arm_1", seeds[1])])
    two.provenance = lambda: {"datasets": {"collisions": {"dataset": "collisions/other", "fingerprint": "0"}}}
    with pytest.raises(UserError, match=mentions("runs/arm_2 collisions/other runs/arm_1")):
        arms_of([one, two])


def test_files_that_hold_no_rows_are_refused(tmp_path):
    write_rows(tmp_path / "a.csv", [ROW])
    assert read_rows(tmp_path / "a.csv") == [ROW]
    (tmp_path / "b.csv").write_text("run,method\na,b\n")
    for name, words in (("b.csv", "'seed' probe --csv"), ("none.csv", "no file probe --csv")):
        with pytest.raises(UserError, match=mentions(tmp_path / name, words)):
            read_rows(tmp_path / name)
