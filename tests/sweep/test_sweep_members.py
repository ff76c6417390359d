"""Sweeps: the runs of one file, and how long each is trained."""

import dataclasses
from pathlib import Path

import pytest

from selfflow.config.files import load_experiment
from selfflow.config.resolve import resolve
from selfflow.errors import UserError
from selfflow.input.mixture import MixturePlan, Stage
from selfflow.objectives.alignment import NoAlignment, SelfFlow
from selfflow.planning.model_flops import flops_of, mean_flops, model_flops, steps_within
from selfflow.sweep.load import budget_of, load_sweep, with_overrides
from selfflow.sweep.members import Budget, Member, axis, chain, product, seeds, zipped
from tests.conftest import TINY, mentions

SIGHT_AND_SOUND = Path(__file__).parents[2] / "experiments" / "sight_and_sound.py"

MEMBERS = """
from selfflow.experiments.quickstart import experiment  # noqa
from selfflow.objectives.alignment import NoAlignment
from selfflow.sweep.members import Member

def sweep():
    for seed in range(2):
        yield Member(f"selfflow_{seed}", {"seed.init": seed, "mixture.joint.batch_size": 8})
        yield Member(f"none_{seed}", {"seed.init": seed, "alignment": NoAlignment()})
"""


def written(path: Path, body: str) -> Path:
    path.write_text(body, encoding="utf-8")
    return path


def test_runs_differ_from_the_file_in_their_overrides(tmp_path):
    file = written(tmp_path / "x.py", MEMBERS)
    base = load_experiment(file)
    loaded = load_sweep(file, base)
    found = {name: planned.experiment for name, planned in loaded.runs.items()}
    assert list(found) == ["selfflow_0", "none_0", "selfflow_1", "none_1"]
    assert loaded.question == "" and loaded.base == base and not loaded.budget
    assert found["none_1"].alignment == NoAlignment() and found["none_1"].seed.init == 1
    assert found["selfflow_1"].mixture["joint"].batch_size == 8
    assert with_overrides(found["none_1"], {"alignment": base.alignment, "seed.init": base.seed.init}, "x") == base


@pytest.mark.parametrize(
    "member, words",
    [
        ('Member("a", {"seed.int": 1})', "sweep member a: unknown field seed.int; did you mean init?"),
        ('Member("a", {"sede.init": 1})', "unknown field sede in sede.init"),
        ('Member("a", {"steps": "many"})', "steps is 'many', expected int"),
        ('Member("a", {"alignment.student_layer": 9})', "sweep member a: alignment.student_layer is 9"),
        ('Member("a/b", {})', "leave / and a leading . out"),
        ('Member("lock", {})', "'lock' has the name of a file"),
        ('Member("report", {})', "'report' has the name of a file"),
        ('Member("a", {"alignment.weight": 0.1, "alignment": NoAlignment()})', "a sets alignment.weight and alignment"),
        ('("a", {})', "not a selfflow.sweep.members.Member"),
    ],
)
def test_mistakes_in_a_run_are_named(tmp_path, member, words):
    file = written(tmp_path / "x.py", MEMBERS.split("def")[0] + f"def sweep():\n    yield {member}\n")
    with pytest.raises(UserError, match=mentions(file, words)):
        load_sweep(file, load_experiment(file))


def test_a_file_without_runs_is_refused(tmp_path):
    twice = MEMBERS + '    yield Member("none_1", {})\n'
    for body, words in (
        ("x = 1", "function sweep()"),
        ("def sweep(): return []", "sweep() no"),
        (twice, "none_1 two {'seed.init': 1, {}"),
    ):
        file = written(tmp_path / "x.py", body)
        with pytest.raises(UserError, match=mentions(file, words)):
            load_sweep(file, load_experiment(TINY))


def test_an_axis_has_a_run_for_each_value():
    assert axis("alignment.weight", (0.2, 1e-5)) == [
        Member("0.2", {"alignment.weight": 0.2}),
        Member("1e-05", {"alignment.weight": 1e-5}),
    ]
    assert [m.name for m in axis("label", ("x", True, None, 3))] == ["x", "True", "None", "3"]
    assert axis("alignment", {"none": NoAlignment()}) == [Member("none", {"alignment": NoAlignment()})]
    with pytest.raises(UserError, match=mentions("axis alignment", SelfFlow())):
        axis("alignment", [SelfFlow()])


def test_products_and_zips_join_overrides():
    a, b = axis("steps", (1, 2)), axis("label", ("x", "y"))
    assert [(m.name, m.overrides) for m in product(a, b)] == [
        (f"{step}_{label}", {"steps": step, "label": label}) for step in (1, 2) for label in ("x", "y")
    ]
    assert [(m.name, m.overrides) for m in zipped(a, iter(b))] == [
        ("1_x", {"steps": 1, "label": "x"}),
        ("2_y", {"steps": 2, "label": "y"}),
    ]
    with pytest.raises(UserError, match=mentions("zipped() 2 (1, 2) 1 (x)")):
        zipped(a, b[:1])
    assert list(chain(a, b)) == a + b


def test_seeds_are_paired_and_keep_their_arm():
    arms = chain([Member("none", {"alignment": NoAlignment()})], axis("alignment.weight", (0.2,)))
    paired = seeds(arms, (4, 7))
    assert [(m.name, m.arm) for m in paired] == [
        ("none_4", "none"),
        ("0.2_4", "0.2"),
        ("none_7", "none"),
        ("0.2_7", "0.2"),
    ]
    assert paired[3].overrides == {"alignment.weight": 0.2, "seed.init": 7, "seed.data": 7, "seed.noise": 7}
    # Seeds may come before other factors: the arm is the name without them.
    crossed = product(seeds([Member("a", {})], (1, 2)), axis("steps", (3,)))
    assert [(m.name, m.arm) for m in crossed] == [("a_1_3", "a_3"), ("a_2_3", "a_3")]


@pytest.mark.parametrize("fields", [("label", "label"), ("alignment", "alignment.weight"), ("seed.init", "seed")])
def test_two_factors_must_not_set_the_same(fields, tmp_path):
    one, other = Member("one", {fields[0]: 1, "steps": 2}), Member("other", {fields[1]: 1})
    for join in (product, zipped):
        with pytest.raises(UserError, match=mentions("one", fields[0], "other", fields[1])):
            join([one], [other])
    product([one], [Member("other", {f"{fields[0]}_of_another_kind": 1})])
    with pytest.raises(UserError, match=mentions("one 3 seed.data")):
        seeds([Member("one", {"seed.data": 1})], [3])
    file = written(
        tmp_path / "x.py", "from selfflow.sweep.members import *\ndef sweep(): return product(*2 * [axis('a', 'x')])"
    )
    with pytest.raises(UserError, match=mentions(file, "x a")):
        load_sweep(file, load_experiment(TINY))


def test_runs_of_an_arm_differ_in_seeds_alone(tmp_path):
    yielding = (
        MEMBERS.split("def")[0] + "def sweep(): return [Member('x', {'seed.data': 1}, 'a'), Member('y', {%s}, 'a')]"
    )
    fine = written(tmp_path / "fine.py", yielding % "'seed.init': 3")
    assert len(load_sweep(fine, load_experiment(fine)).runs) == 2
    file = written(tmp_path / "x.py", yielding % "'seed.init': 3, 'condition_drop': 0.5")
    with pytest.raises(UserError, match=mentions(file, "y arm a x condition_drop")):
        load_sweep(file, load_experiment(file))


def test_sight_and_sound_has_the_runs_that_were_trained():
    audio = {"mixture.clips.shuffled": ("audio",)}
    arms = {
        "shuffled": (audio, 5),
        "matched": ({}, 5),
        "delayed": ({"mixture.clips.delayed": {"audio": 0.5}}, 3),
        "video": ({"mixture.clips.modalities": ("video",)}, 3),
        "matched_unaligned": ({"alignment.weight": 0.0}, 3),
        "shuffled_unaligned": (audio | {"alignment.weight": 0.0}, 3),
    }
    base = load_experiment(SIGHT_AND_SOUND)
    found = load_sweep(SIGHT_AND_SOUND, base).runs
    assert list(dict.fromkeys(planned.member.arm for planned in found.values())) == list(arms)
    wanted = {}
    for arm, (changes, last) in arms.items():
        for seed in range(1, last + 1):
            paired = {"seed.init": seed, "seed.data": seed, "seed.noise": seed}
            wanted[f"{arm}_{seed}"] = with_overrides(base, changes | paired, "x")
    assert {name: planned.experiment for name, planned in found.items()} == wanted


BUDGETED = """
from tests.tiny import experiment  # noqa
from selfflow.objectives.alignment import NoAlignment
from selfflow.sweep.members import *

BUDGET = Budget({})

def sweep():
    return chain([Member("none", {{"alignment": NoAlignment()}})], [Member("aligned", {{{}}})])
"""


def test_a_budget_of_flops_gives_cheaper_runs_more_steps(tmp_path):
    file = written(tmp_path / "x.py", BUDGETED.format("flops=1e10", ""))
    base = load_experiment(file)
    assert budget_of(file) == Budget(flops=1e10)
    for planned in load_sweep(file, base, budget_of(file)).runs.values():
        setup = resolve(planned.experiment)
        experiment = setup.experiment
        step = sum(component.weight * model_flops(setup, name) for name, component in experiment.mixture.items())
        assert experiment.steps > 20 and planned.flops == pytest.approx(experiment.steps * step)
        assert planned.flops <= 1e10 < planned.flops + step
        assert experiment.ema_decay == pytest.approx(1 - 10 / experiment.steps)  # which follows from the steps
    steps = {name: p.experiment.steps for name, p in load_sweep(file, base, Budget(flops=1e10)).runs.items()}
    assert steps["none"] > steps["aligned"]
    steps = {name: p.experiment.steps for name, p in load_sweep(file, base, Budget(flops=1.0)).runs.items()}
    assert steps == {"none": 1, "aligned": 1}
    steps = {name: p.experiment.steps for name, p in load_sweep(file, base, Budget(steps=31)).runs.items()}
    assert steps == {"none": 31, "aligned": 31}


def test_overrides_derived_from_the_base_follow_the_command_line(tmp_path):
    file = written(
        tmp_path / "x.py",
        """
from selfflow.experiments.quickstart import experiment  # noqa
from selfflow.sweep.members import Member

def sweep(base):
    return [Member("whole", {}), Member("half", {"steps": base.steps // 2})]
""",
    )
    steps = lambda *more: [p.experiment.steps for p in load_sweep(file, *more).runs.values()]
    base = load_experiment(file)
    assert steps(base) == [400, 200]
    assert steps(dataclasses.replace(base, steps=100)) == steps(base, Budget(steps=100)) == [100, 50]


def test_the_main_ablation_separates_equal_steps_and_equal_compute():
    file = SIGHT_AND_SOUND.parent / "ablations" / "self_flow.py"
    members = load_sweep(file, load_experiment(file)).runs
    assert len(members) == 20 and {planned.member.arm for planned in members.values()} == {
        "vanilla",
        "dual",
        "self_flow",
        "self_flow_short",
    }
    vanilla, whole, short = (members[f"{arm}_1"] for arm in ("vanilla", "self_flow", "self_flow_short"))
    assert whole.experiment.steps == vanilla.experiment.steps > short.experiment.steps
    step = whole.flops / whole.experiment.steps
    assert vanilla.flops - step < short.flops <= vanilla.flops < whole.flops


def test_a_budget_and_the_steps_of_a_run_contradict(tmp_path):
    file = written(tmp_path / "x.py", BUDGETED.format("flops=1e10", '"steps": 7'))
    with pytest.raises(UserError, match=mentions(file, "aligned steps FLOPs budget")):
        load_sweep(file, load_experiment(file), budget_of(file))
    for budget in (Budget(), Budget(steps=5)):
        assert load_sweep(file, load_experiment(file), budget).runs["aligned"].experiment.steps == 7
    file = written(tmp_path / "x.py", "BUDGET = 100")
    with pytest.raises(UserError, match=mentions("BUDGET 100 selfflow.sweep.members.Budget")):
        budget_of(file)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"steps": 1, "flops": 2.0}, "budget steps 1 flops 2"),
        ({"steps": 0}, "budget.steps 0"),
        ({"flops": 0.0}, "budget.flops 0.0"),
        ({"flops": float("nan")}, "budget.flops nan"),
        ({"flops": float("inf")}, "budget.flops inf"),
    ],
)
def test_budgets_that_make_no_sense_are_named(fields, words):
    with pytest.raises(UserError, match=mentions(words)):
        Budget(**fields)


def test_flops_follow_the_curriculum(tiny_experiment):
    """Against the sum over the components that a run's steps draw from, which is within a few steps of their shares."""
    stages = (Stage(40, weights={"image": 1.0}), Stage(70, quality={"image": 0.1}), Stage(90, weights={"joint": 1.0}))
    setup = resolve(dataclasses.replace(tiny_experiment, steps=120, curriculum=stages))
    costs, mixture = mean_flops(setup), setup.experiment.mixture
    own = {name: model_flops(setup, name) for name in mixture}
    plan = MixturePlan(mixture, stages, 120, seed=0)
    drawn = [own[plan.pools[plan[step][0]].component] for step in range(120)]
    for steps in (1, 39, 40, 41, 70, 90, 119, 120):
        assert flops_of(costs, steps) == pytest.approx(sum(drawn[:steps]), abs=2 * max(own.values()))
        assert steps_within(costs, flops_of(costs, steps)) == steps
        assert steps_within(costs, flops_of(costs, steps + 1) - 1000) == steps
    assert steps_within(costs, 1.0) == 1
