"""Metrics as objects: a class and an entry in `METRICS` are all that a new metric takes."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from selfflow.cli.evaluation_tables import print_report
from selfflow.config.files import load_experiment
from selfflow.errors import UserError
from selfflow.evaluation import metrics
from selfflow.evaluation.compare import Comparison, SampleMetrics, sample_metrics
from selfflow.evaluation.config import Evaluation
from selfflow.evaluation.metrics.metric import Value
from selfflow.evaluation.samples import EvaluationSetup, SampleAccumulator
from selfflow.run.run import open_run
from selfflow.tasks.evaluate_samples import SAMPLES, SampleReport
from tests.conftest import TINY, mentions


class Brightness:
    """Mean brightness of the first frame of a video."""

    name = "brightness"
    title = "brightness"
    better = "lower"
    needs = "media"
    unit = "mean of the first frame, 0 to 255"

    def per_clip(self, media, rates):
        return media["video"][:, 0].mean(axis=(1, 2, 3)) if "video" in media else None


class MeanDistance:
    """Distance of the means of two sets of features."""

    name = "mean_distance"
    title = "distance of means"
    better = "lower"
    needs = "features"
    unit = "of features"

    def compute(self, pair):
        return Value(float(np.linalg.norm(pair.real.first.mean - pair.generated.first.mean)))


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, MeanDistance(), Brightness()))


def test_every_metric_has_its_own_name_and_says_what_it_is():
    names = [metric.name for metric in metrics.METRICS]
    assert len(set(names)) == len(names)
    for metric in metrics.METRICS:
        assert metric.better in ("lower", "higher") and metric.needs in ("features", "media", "clips")
        assert metric.title and metric.unit


@pytest.mark.parametrize(
    "key, name",
    [
        ("kid/LogMel/audio", "kid"),
        ("physics/bodies", "physics"),
        ("physics/audio_match_auc", "physics/audio_match_auc"),
        ("av_sync", "av_sync"),
        ("kid_error/LogMel/audio", None),
        ("kidney/LogMel", None),
    ],
)
def test_a_key_belongs_to_the_metric_that_it_is_named_after(key, name):
    metric = metrics.metric_of(key)
    assert (metric and metric.name) == name


def test_metrics_of_media_are_means_over_the_clips_to_which_they_apply(toys):
    accumulated = SampleAccumulator(EvaluationSetup({"video": 12.5}, max_clips=3), n=2)
    videos = np.full((4, 5, 8, 8, 3), 7, np.uint8)
    videos[1, 0] = 10
    accumulated.add({"video": np.zeros((4, 2))}, {"video": videos})
    result = sample_metrics({}, accumulated)
    # The mean of 7, 10 and 7: the fourth clip is beyond `max_clips`. Without audio there is no synchrony.
    assert result.values == {"brightness": Value(8.0, count=3)} and result.numbers() == {"brightness": 8.0}
    silent = np.zeros((1, 16_000), np.int16)
    accumulated = SampleAccumulator(EvaluationSetup({"video": 12.5, "audio": 8000}), n=2)
    accumulated.add({"video": np.zeros((1, 2))}, {"video": videos[:1], "audio": silent})
    result = sample_metrics({}, accumulated)
    assert result.counts() == {"av_sync": 0, "brightness": 1} and "av_sync" not in result.numbers()


def test_numbers_hold_errors_and_no_nan():
    values = {"kid/A/image": Value(0.5, error=0.1), "physics/time": Value(float("nan"), count=0)}
    result = SampleMetrics(values, {})
    assert result.numbers() == {"kid/A/image": 0.5, "kid_error/A/image": 0.1}
    assert result.counts() == {"physics/time": 0}


def test_the_error_of_a_metric_without_parts():
    assert SampleMetrics({"sharpness": Value(2.0, error=0.5)}, {}).numbers() == {
        "sharpness": 2.0,
        "sharpness_error": 0.5,
    }


@pytest.mark.parametrize(
    "value, cell",
    [
        (Value(2.0), "2.00"),
        (Value(2.0, error=0.25), "2.00 +- 0.25"),
        (Value(2.0, count=3), "2.00 (3)"),
        (Value(2.0, error=0.25, count=3), "2.00 +- 0.25 (3)"),
        (Value(float("nan"), count=0), "-"),
    ],
)
def test_cells_of_metrics_with_and_without_a_count(value, cell, capsys, monkeypatch):
    monkeypatch.setattr(metrics, "METRICS", (Brightness(),))
    row = SampleMetrics({"brightness": value}, {})
    print_report(SampleReport({SAMPLES: row}, "", (0, ""), True, None))
    assert capsys.readouterr().out.splitlines()[-1].split(maxsplit=1) == ["brightness", cell]


def test_a_metric_with_an_unknown_need_is_refused(monkeypatch):
    metric = Brightness()
    metric.needs = "text"
    monkeypatch.setattr(metrics, "METRICS", (metric,))
    with pytest.raises(UserError, match=mentions("brightness needs text clips")):
        sample_metrics({}, SampleAccumulator(EvaluationSetup({}), n=2))


def test_facts_of_a_comparison_are_json_data():
    comparison = Comparison("FD-A", "A-1", 3, 4, (3, 4), 2, {"kid": Value(1.0)}, None, "kid")
    facts = json.loads(json.dumps(comparison.to_json()))
    assert "values" not in facts and (facts["identity"], facts["compared"]) == ("A-1", [3, 4])


def test_a_new_metric_is_in_console_json_training_and_report(tiny_run, data_dir, tmp_path, toys, capsys):
    from selfflow.cli.evaluate import main
    from selfflow.report.study import open_study
    from selfflow.report.write import write_report
    from selfflow.tasks.train import train

    out = tiny_run / "evaluations" / "toys.json"
    flags = ["--samples", "4", "--features", "logmel", "--out", str(out), "--data-dir", str(data_dir)]
    main([str(tiny_run), *flags])
    try:
        # Console: a column in the table of features, and a table with a line of its own.
        printed = capsys.readouterr().out
        assert "distance of means (lower)" in printed and "brightness" in printed
        # JSON.
        rows = json.loads(out.read_text())["rows"]
        for numbers in rows.values():
            assert numbers["mean_distance/LogMel/audio"] >= 0 and 0 <= numbers["brightness"] <= 255
        # Report: label and direction.
        written = write_report(open_study([str(tiny_run)], ""), tmp_path / "report")
        (table,) = [file for file in written.files if file.stem == "table"]
        directions = {row["measure"]: row["better"] for row in csv.DictReader(table.open(newline=""))}
        assert directions["distance of means LogMel audio"] == "lower" and directions["brightness"] == "lower"
        assert directions["KID LogMel audio"] == "lower" and directions["physics: bodies"] == "higher"
    finally:
        out.unlink()

    # Training.
    experiment = load_experiment(TINY)
    experiment = dataclasses.replace(
        experiment,
        steps=2,
        cadence=dataclasses.replace(experiment.cadence, evaluate_every=2),
        evaluation=Evaluation(samples=4, shown=0, features=("logmel",)),
        final_evaluation=dataclasses.replace(experiment.final_evaluation, samples=1, probe_clips=0),
    )
    train(experiment, tmp_path / "run", data_dir)
    last = open_run(tmp_path / "run").metrics()[-1]
    assert last["samples/joint/mean_distance/LogMel/audio"] >= 0 and last["samples/joint/brightness"] > 0
