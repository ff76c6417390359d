"""The report of runs: numbers that can be checked by hand, and no run in a mean before it is done."""

import base64
import csv
import dataclasses
import html.parser
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from selfflow.config.experiment import Experiment
from selfflow.config.setup import setup_of
from selfflow.errors import UserError
from selfflow.planning.model_flops import model_flops
from selfflow.report.curves import TRAINING_TASK_FIELDS
from selfflow.report.probes import END_OF_RUN
from selfflow.report.settings import TASK_FIELDS, other_tasks
from selfflow.report.study import open_study
from selfflow.report.write import write_report
from selfflow.representation.comparison import write_rows
from selfflow.representation.probes.probe_run import Row
from tests.report.folders import STEPS, add_samples, experiment, make_run, make_sweep

_PACKAGES = json.dumps(
    {
        "datasets": {"collisions": {"dataset": "collisions", "fingerprint": "f00d"}},
        "sessions": [{"packages": ["x"]}],
    }
)
PLAIN, BETTER = [0.50, 0.52, 0.49, 0.51, 0.53], [0.44, 0.47, 0.42, 0.46, 0.45]


def report(path: Path, out: Path, baseline: str = "", **more) -> tuple[str, dict[str, list[dict[str, str]]]]:
    """The page, and its tables by name."""
    written = write_report(open_study([str(path)], baseline), out, **more)
    tables = {file.stem: list(csv.DictReader(file.open(newline=""))) for file in written.files}
    return written.path.read_text(), tables


def text_of(page: str) -> str:
    """The text of a page, in one line."""
    return html.parser.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.partition("<body>")[2])))


def test_differences_are_those_of_scipy_paired_by_seed(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", {"plain": PLAIN, "better": BETTER, "same": [0.52, 0.49, 0.51, None, None]})
    page, tables = report(sweep, tmp_path / "out")
    plain, better, same = (row for row in tables["table"] if not row["arm"].startswith("("))
    values = [float(better[name]) for name in ("mean", "low", "high", "difference", "difference_low", "p")]
    test = stats.ttest_rel(BETTER, PLAIN)
    interval = stats.t.interval(0.95, 4, np.mean(BETTER), stats.sem(BETTER))
    difference = np.mean(BETTER) - np.mean(PLAIN)
    expected = [np.mean(BETTER), *interval, difference, test.confidence_interval(0.95).low, test.pvalue]
    assert values == pytest.approx(expected, rel=1e-6)
    assert better["verdict"] == "lower (better)" and plain["difference"] == "" and better["baseline"] == "plain"
    assert (same["n"], same["paired_n"], same["verdict"]) == ("3", "3", "no difference shown")
    text = text_of(page)
    assert "2 differences to plain were compared, paired by seed. The 95 % interval of 1 excludes 0" in text
    assert "for the other 1 no difference is shown. better, flow loss, joint/video: −0.0620" in text
    assert "No correction" in text and "about 0.1 of 2 intervals" in text and "Is it so?" in text
    assert "same exploratory 3 seeds" in text and "better 5 seeds" in text
    assert "15 runs of 3 arms, 13 done; baseline plain" in text
    scores = {(row["arm"], row["seed"]): float(row["score"]) for row in tables["scores"]}
    assert scores["better", "3"] == 0.42 and len(scores) == 13


def test_a_null_result_is_named(tmp_path):
    text = text_of(report(make_sweep(tmp_path / "s", {"a": PLAIN, "b": PLAIN[::-1]}), tmp_path / "out")[0])
    assert "A null result. 1 difference to a was compared" in text and "no difference is shown" in text
    assert "to a: no difference shown" in text


def test_a_score_that_is_not_finite_is_noted_and_in_no_mean(tmp_path):
    sweep = make_sweep(tmp_path / "s", {"a": [0.5, 0.6], "b": [0.4, float("nan")]})
    page, tables = report(sweep, tmp_path / "out")
    assert "b_2: flow loss, joint/video is nan" in page
    assert [row["n"] for row in tables["table"][:2]] == ["2", "1"]


def test_one_seed_has_no_interval_and_says_so(tmp_path):
    page, tables = report(make_sweep(tmp_path / "s", {"a": [0.5], "b": [0.4]}), tmp_path / "out", "b")
    a = next(row for row in tables["table"] if row["arm"] == "a")
    assert (a["low"], a["difference_low"], a["baseline"]) == ("", "", "b") and float(a["difference"]) == pytest.approx(
        0.1
    )
    text = text_of(page)
    assert "No difference can be shown yet: 1 difference to b, and none of two seeds" in text
    assert "n = 1: no interval" in text and "to b: one seed: no interval" in text


def test_runs_that_are_not_done_are_listed_and_in_no_mean(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", {"a": PLAIN[:3], "b": [0.4, 0.4, None]})
    (sweep / "b_2" / "summary.json").unlink()
    lines = (sweep / "b_2" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (sweep / "b_2" / "metrics.jsonl").write_text("".join(lines[:17]) + '{"step": 18, "fl')
    make_run(sweep / "stranger", experiment(9), 0.1)
    page, tables = report(sweep, tmp_path / "out")
    assert [(row["arm"], row["n"]) for row in tables["table"][:2]] == [("a", "3"), ("b", "1")]
    text = text_of(page)
    for note in ("b_2: not done: at step 17 of 40", "b_3: not started", "stranger: not a run of this sweep", "4 done"):
        assert note in text
    assert {row["arm"] for row in tables["learning"]} == {"a", "b", "b_2, not done"}
    made = json.loads((sweep / "sweep.json").read_text())
    longer = [member | {"steps": 80 if member["name"] == "a_1" else STEPS} for member in made["members"]]
    (sweep / "sweep.json").write_text(json.dumps(made | {"members": longer}))
    page, tables = report(sweep, tmp_path / "longer")
    assert tables["table"][0]["n"] == "2" and "a_1: ended at step 40 of 80" in page
    for run in sweep.glob("*_?"):
        (run / "summary.json").unlink(missing_ok=True)
    assert "No run is finished" in text_of(report(sweep, tmp_path / "again")[0])


def test_curves_are_means_over_steps_and_then_over_seeds(tmp_path):
    for seed, offset in ((1, 0.0), (2, 0.4)):
        made = experiment(seed)
        make_run(tmp_path / "runs" / f"arm_{seed}", made, 0.5, lambda step, offset=offset: 1 + offset + step / 100)
    _, tables = report(tmp_path / "runs", tmp_path / "out")
    by_step, by_flops = ([row for row in tables["learning"] if row["axis"] == axis] for axis in ("step", "FLOPs"))
    assert len(by_step) == 5  # 40 steps in bins of 8
    first = by_step[0]
    assert (first["panel"], first["arm"], first["n"]) == ("joint/video", "arm", "2")
    assert float(first["x"]) == 4.5 and float(first["mean"]) == pytest.approx(1.2 + 0.045)
    interval = stats.t.interval(0.95, 1, 1.245, 0.2)
    assert [float(first["low"]), float(first["high"])] == pytest.approx(interval)
    setup = setup_of(made)
    flops = 0.5 * model_flops(setup, "joint") + 0.5 * model_flops(setup, "image")
    assert float(by_flops[0]["x"]) == pytest.approx(4.5 * flops)
    health = {(row["panel"], row["kind"]) for row in tables["alignment"]}
    assert ("norm of features", "teacher") in health and ("cosine, projected", "") in health


def test_a_bin_of_steps_in_which_a_seed_has_no_value_is_in_no_mean(tmp_path):
    for seed, bad in ((1, range(0)), (2, range(9, 17))):
        make_run(tmp_path / "runs" / f"arm_{seed}", experiment(seed), 0.5, lambda s, bad=bad: None if s in bad else 1.0)
    _, tables = report(tmp_path / "runs", tmp_path / "out")
    assert [row["x"] for row in tables["learning"] if row["axis"] == "step"] == ["4.5", "20.5", "28.5", "36.5"]


def row(run: str, layer: int, validation: float, test: float, step: int = STEPS, weights: str = "ema") -> Row:
    whose = (run, "other name", 7, step, weights, "material", "video", 0.1, layer)
    return Row(*whose, "logistic", "balanced_accuracy", 1.0, validation, test, 0.0, 1.0, 0.25, "test", 64, 32)


def test_probes_are_of_the_layer_that_validation_chose(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", {"a": [0.5, 0.5], "b": [0.4, 0.4]})
    rows = [row(f"{arm}_{s}", layer, layer / 10, 0.9 - layer / 10) for arm in "ab" for s in (1, 2) for layer in (1, 2)]
    old = [row("a_1", 3, 0.9, 0.9, step=20), row("else_1", 1, 0.9, 0.9)]
    write_rows(sweep / "probes" / "material.csv", [*rows, *old, row("a_1", 1, 0.3, 0.3, 0, "untrained")])
    (sweep / "notes.csv").write_text("a,b\n1,2\n")
    page, tables = report(sweep, tmp_path / "out")
    probes = {r["arm"]: r["mean"] for r in tables["table"] if r["group"] == "Probes"}
    assert probes == {"a": "0.7", "b": "0.7", "(chance)": "0.25", "(untrained network)": "0.3"}
    curve = {(r["arm"], r["kind"], r["x"]): r["mean"] for r in tables["probes"]}
    assert curve["b", "", "1"] == "0.8" and curve["a", "untrained", "1"] == "0.3" and len(curve) == 5
    assert "rows of a_1 at step 20, not the last step" in page and "rows of else_1" in page
    outside = tmp_path / "more.csv"
    write_rows(outside, [r._replace(target="shape") for r in rows])
    assert "shape from video" in report(sweep, tmp_path / "out", probes=[outside])[0]
    with pytest.raises(UserError, match="notes.csv has no rows of `selfflow probe`"):
        report(sweep, tmp_path / "out", probes=[sweep / "notes.csv"])


def test_the_probes_and_the_evaluations_of_a_run_are_in_the_report(tmp_path):
    run = make_run(tmp_path / "alone", experiment(3), 0.5)
    summary = json.loads((run / "summary.json").read_text())
    table = {"chance": 0.25, "trained, block 1": 0.6, "trained, block 2": 0.5, "raw latents": 0.3}
    score = lambda x: {"material/both": {"validation": x, "test": x - 0.1}}
    (run / "summary.json").write_text(json.dumps(summary | {"probes": {k: score(v) for k, v in table.items()}}))
    result = {
        "step": STEPS,
        "component": "joint",
        "samples": 8,
        "modality": "audio",
        "context": ["video"],
        "weights": "ema",
    }
    rows = {"samples": {"kid/FD-LogMel audio": 0.04, "kid/FD-layer2 audio": 3.0, "physics/time": 0.9}}
    rows["noise"] = {"kid/FD-LogMel audio": 0.2}
    (run / "evaluations").mkdir()
    (run / "evaluations" / "a.json").write_text(
        json.dumps(result | {"rows": rows, "counts": {"samples": {"physics/time": 5}}})
    )
    (run / "evaluations" / "b.json").write_text(json.dumps(result | {"rows": rows, "step": 20}))
    page, tables = report(run, tmp_path / "out")
    means = {(r["measure"], r["arm"]): float(r["mean"]) for r in tables["table"]}
    assert means["material from video + audio", "alone"] == 0.5
    assert means["material from video + audio", "(raw latents)"] == pytest.approx(0.2)
    assert means["KID LogMel audio", "alone"] == 0.04 and means["KID LogMel audio", "(noise)"] == 0.2
    assert not any("layer2" in name for name, _ in means) and "not comparable between runs" in page
    assert "applies to 5" in page and "b.json: of step 20" in page and END_OF_RUN in page
    assert "nothing to compare it to" in text_of(page) and "selfflow train gone.py --note 'a b'" in text_of(page)
    assert "c0ffee with uncommitted changes" in page


def test_an_evaluation_with_other_features_adds_its_numbers(tmp_path):
    run = make_run(tmp_path / "alone", experiment(3), 0.5)
    (run / "evaluations").mkdir()
    result = {"step": STEPS, "component": "joint", "samples": 8, "modality": "audio", "weights": "ema"}
    for name, rows in (("1", {"kid/FD-LogMel audio": 0.1, "physics/time": 0.9}), ("2", {"kid/FD-BirdNET audio": 0.2})):
        (run / "evaluations" / f"{name}.json").write_text(json.dumps(result | {"rows": {"samples": rows}}))
    os.utime(run / "evaluations" / "1.json", (1, 1))
    _, tables = report(run, tmp_path / "out")
    means = {row["measure"]: float(row["mean"]) for row in tables["table"]}
    assert means.items() >= {("KID LogMel audio", 0.1), ("KID BirdNET audio", 0.2), ("physics: time", 0.9)}


def test_equal_differences_are_no_interval(tmp_path):
    page, tables = report(
        make_sweep(tmp_path / "s", {"a": [0.5, 0.5], "b": [0.25, 0.25], "c": [0.5, 0.5]}), tmp_path / "o"
    )
    assert [row["verdict"] for row in tables["table"][1:3]] == [
        "equal in every seed: no interval",
        "no difference shown",
    ]
    assert "A null result" in text_of(page)


def test_few_scores_of_many_runs_are_exploratory(tmp_path):
    sweep = make_sweep(tmp_path / "s", {"a": PLAIN, "b": BETTER})
    for name in ("a_1", "a_2", "b_1", "b_2"):
        (sweep / name / "evaluations").mkdir()
        result = {"step": STEPS, "component": "joint", "samples": 8, "weights": "ema"}
        rows = {"rows": {"samples": {"kid/FD-LogMel audio": 0.1 + int(name[-1]) / 100}}}
        (sweep / name / "evaluations" / "a.json").write_text(json.dumps(result | rows))
    page, tables = report(sweep, tmp_path / "o")
    assert [(r["measure"], r["exploratory"]) for r in tables["table"] if r["arm"] == "b"] == [
        ("joint/video", "False"),
        ("KID LogMel audio", "True"),
    ]
    assert "n = 2, exploratory" in text_of(page) and "n = 5, exploratory" not in text_of(page)


def test_losses_under_different_noise_are_marked_as_not_comparable(tmp_path):
    for seed in (1, 2):
        make_run(tmp_path / "runs" / f"dual_{seed}", experiment(seed), 0.5)
        make_run(tmp_path / "runs" / f"sorted_{seed}", experiment(seed, schedule__sorted=True), 0.5)
    assert "each arm with its own noise, attention or data" in text_of(report(tmp_path / "runs", tmp_path / "out")[0])
    sweep = make_sweep(tmp_path / "s", {"a": [0.5, 0.5], "b": [0.4, 0.4]})
    assert "its own noise" not in text_of(report(sweep, tmp_path / "again")[0])


def test_settings_that_differ_are_listed_and_seeds_are_not(tmp_path):
    page, tables = report(make_sweep(tmp_path / "s", {"a": [0.5, 0.5], "b": [0.4, 0.4]}), tmp_path / "out")
    assert tables["settings"] == [{"field": "alignment.weight", "a": "0.8", "b": "0.1"}]
    assert "selfflow sweep some.py --index 3" in page


def test_a_lower_loss_of_an_easier_task_is_not_better(tmp_path):
    for seed in (1, 2, 3):
        make_run(tmp_path / "runs" / f"now_{seed}", experiment(seed), 0.5 + seed / 100)
        late = experiment(seed, mixture__joint__delayed={"audio": 0.2}, mixture__joint__weight=0.5)
        make_run(tmp_path / "runs" / f"late_{seed}", late, 0.4 + seed / 90)
    page, tables = report(tmp_path / "runs", tmp_path / "out", "now")
    late = next(row for row in tables["table"] if row["arm"] == "late")
    assert (late["verdict"], late["better"]) == ("lower", "")
    assert "they differ in mixture.joint.delayed.audio" in late["detail"] and "of each arm's own task" in page
    assert [row["field"] for row in tables["settings"]] == ["mixture.joint.delayed.audio"]
    assert other_tasks(["mixture.joint.weight", "mixture.image.delayed.audio", "alignment.weight"], "joint") == []
    assert other_tasks(["schedule.tau.video.shift", "exclude"], "joint") == ["schedule.tau.video.shift", "exclude"]


def test_fields_that_make_a_task_exist():
    """A renamed field would be missing from the remark that losses are not comparable."""
    fields = {field.name for field in dataclasses.fields(Experiment)}
    assert {name.split(".")[0] for name in (*TASK_FIELDS, *TRAINING_TASK_FIELDS)} <= fields


def test_equal_studies_give_equal_pages(tmp_path):
    sweep = make_sweep(tmp_path / "s", {"a": PLAIN, "b": BETTER})
    add_samples(sweep / "a_1")
    assert report(sweep, tmp_path / "one") == report(sweep, tmp_path / "two")


class Tags(html.parser.HTMLParser):
    """The tags of a page and their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_names_and_docstrings_are_escaped_and_nothing_is_loaded(tmp_path):
    evil = '"><img src=x onerror=alert(1)><script>alert(2)<'
    question = "</p><script>fetch('http://x')</script>\n\n  <b onclick=alert(3)>indented</b>"
    sweep = make_sweep(tmp_path / evil, {"a": PLAIN, evil: BETTER}, question=question)
    add_samples(sweep / f"{evil}_1")
    page, _ = report(sweep, tmp_path / "out")
    tags = Tags(page).tags
    assert not {tag for tag, _ in tags} & {"script", "iframe", "object", "base", "embed"}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    links = [value for _, a in tags for name, value in a.items() if name in ("src", "href", "poster", "xlink:href")]
    assert links and all(value.startswith(("data:", "#")) for value in links)
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    policy = next(a["content"] for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script-src" not in policy
    assert "fetch('http://x')" in html.parser.unescape(page) and evil in html.parser.unescape(page)


def test_samples_are_embedded_up_to_the_limit(tmp_path):
    sweep = make_sweep(tmp_path / "s", {"a": [0.5], "b": [0.4]})
    files = {arm: add_samples(sweep / f"{arm}_1") for arm in "ab"}
    page, _ = report(sweep, tmp_path / "out")
    sources = [a["src"] for tag, a in Tags(page).tags if tag == "video"]
    assert [base64.b64decode(src.split(",")[1]) for src in sources] == [
        (files[arm] / f"joint_0{i}.mp4").read_bytes() for arm in "ab" for i in (0, 1)
    ]
    assert all(a["preload"] == "none" and "controls" in a for tag, a in Tags(page).tags if tag == "video")
    whole = len(page)
    clip = 4 * max(f.stat().st_size for folder in files.values() for f in folder.glob("*.mp4")) / 3 / 1e6
    page, _ = report(sweep, tmp_path / "out", megabytes=2.2 * clip)
    shown = [tag for tag, _ in Tags(page).tags if tag in ("video", "img")]
    assert shown.count("video") == 2 and "4 of 6 samples are left out" in page
    assert len(page) < whole - 1.5e6 * clip
    assert "6 of 6 samples are left out" in report(sweep, tmp_path / "out", megabytes=0)[0]
    (files["a"] / "joint_00.mp4").write_bytes(b"not a video")
    shutil.rmtree(files["b"])
    page, _ = report(sweep, tmp_path / "out")
    assert "joint_00.mp4 cannot be read" in page and "b: no samples of its last step" in page


@pytest.mark.parametrize(
    "file, text, error",
    [
        ("a_1/summary.json", "{", "a_1/summary.json is missing or damaged"),
        ("a_1/summary.json", "[]", "a_1/summary.json holds no JSON object"),
        ("a_1/summary.json", '{"steps": "40"}', "a_1/summary.json is damaged: steps is '40'"),
        ("a_1/summary.json", '{"steps": 40, "flow_loss": 3}', "a_1/summary.json is damaged: flow_loss is not a table"),
        (
            "a_1/summary.json",
            '{"steps": 40, "flow_loss": {"x": {"normalised_loss": "y"}}}',
            "flow_loss.x.normalised_loss is 'y'",
        ),
        ("a_1/metrics.jsonl", '{"step": 1}\n{"st', "a_1/metrics.jsonl is damaged after step 1 of 40"),
        ("a_1/metrics.jsonl", '{"step": 1}\n3\n', r"a_1/metrics.jsonl is damaged \(line 2 has no step\)"),
        ("a_1/provenance.json", "", "a_1/provenance.json is missing or damaged"),
        ("a_1/provenance.json", '{"datasets": []}', "a_1/provenance.json is damaged: datasets"),
        (
            "a_1/provenance.json",
            _PACKAGES,
            "a_1/provenance.json is damaged: packages of a session",
        ),
        ("a_1/experiment.json", "{", "a_1/experiment.json is not valid JSON"),
        ("a_1/evaluations/x.json", '{"step": 40, "rows": 3}', "a_1/evaluations/x.json is damaged"),
        ("a_1/probes/x.csv", ",".join(Row._fields) + "\n1,2\n", "a_1/probes/x.csv .* no rows of `selfflow probe`"),
        ("a_1/evaluations/x.json", '{"step": 40, "rows": {"samples": {}}, "counts": {"a": 3}}', "x.json is damaged"),
        ("sweep.json", "[", "sweep.json is damaged"),
        ("sweep.json", '{"file": "", "question": "", "command": []}', r"sweep.json is damaged \(no members\)"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, file, text, error):
    sweep = make_sweep(tmp_path / "s", {"a": [0.5], "b": [0.4]})
    (sweep / file).parent.mkdir(exist_ok=True)
    (sweep / file).write_text(text)
    with pytest.raises(UserError, match=error):
        report(sweep, tmp_path / "out")


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    sweep = make_sweep(tmp_path / "s", {"a": [0.5, 0.5]})
    content = json.loads((sweep / "sweep.json").read_text())
    outside = content["members"][0] | {"name": "../a_1"}
    (sweep / "sweep.json").write_text(json.dumps(content | {"members": [outside]}))
    with pytest.raises(UserError, match="sweep.json .* name '../a_1'"):
        open_study([str(sweep)])
    (sweep / "sweep.json").write_text(json.dumps(content))
    shutil.rmtree(sweep / "a_2")
    make_run(sweep / "a_2", experiment(2, alignment__weight=0.3), 0.5)
    with pytest.raises(UserError, match="a_1 and a_2 .* arm a .* alignment.weight"):
        open_study([str(sweep)])
    shutil.rmtree(sweep / "a_2")
    make_run(sweep / "a_2", dataclasses.replace(experiment(2), steps=2 * STEPS), 0.5, until=2 * STEPS)
    with pytest.raises(UserError, match="a_1 and a_2 .* arm a .* steps"):
        open_study([str(sweep)])
    shutil.rmtree(sweep / "a_2")
    other = make_run(sweep / "a_2", experiment(2), 0.5) / "provenance.json"
    other.write_text(other.read_text().replace("f00d", "c0de"))
    with pytest.raises(UserError, match="a_2 .* collisions .*a_1 on collisions"):
        open_study([str(sweep)])
    shutil.rmtree(sweep / "a_2")
    make_run(sweep / "a_2", experiment(1), 0.5)
    with pytest.raises(UserError, match="a_1 and a_2 .* arm a with seed.init 1"):
        open_study([str(sweep)])
