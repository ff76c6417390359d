"""Updates that are not finite: skipped, counted, recorded, and never saved over a good checkpoint."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selfflow.errors import UserError
from selfflow.training.loop import Limits
from selfflow.training.metrics import TIMINGS, MetricsLog, read_metrics
from selfflow.training.state import init_state
from selfflow.training.step import make_step
from tests.conftest import mentions
from tests.training.small import OPTIMIZER, Line, batch, fresh, run


def arrays(state):
    return [np.asarray(x) for x in jax.tree.leaves(state) if x.ndim]


def counts(state):
    return {int(x) for x in jax.tree.leaves(state) if not x.ndim}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counts(accumulate, bad):
    step = jax.jit(make_step(Line(), OPTIMIZER, 0.9, 0, accumulate))
    one, metrics = step(fresh(), batch(0))
    assert metrics["skipped"] == 0 and counts(one) == {1}
    two, metrics = step(one, batch(1, bad))
    assert metrics["skipped"] == 1 and counts(two) == {2}
    assert np.isfinite(metrics["loss"]) == (bad == "gradient") and not np.isfinite(metrics["gradient_norm"])
    for a, b in zip(arrays(one), arrays(two), strict=True):
        np.testing.assert_array_equal(a, b)
    three, metrics = step(two, batch(2))
    assert metrics["skipped"] == 0 and counts(three) == {3}
    for a, b in zip(arrays(two), arrays(three), strict=True):
        assert np.isfinite(b).all() and (a != b).any()


def test_a_rate_that_is_too_large_for_a_number_leaves_it_finite():
    """Loss and gradient are finite, and the update is not; from then on everything is skipped."""
    optimizer = optax.adamw(3.4e38, weight_decay=3.0)
    state = init_state(Line(), optimizer, jax.random.key(0))
    gradient = jax.grad(lambda p: Line().loss(p, None, batch(0), None, None)[0])(state.params)
    update = optimizer.update(gradient, state.optimizer, state.params)[0]["model"]["w"]
    assert np.isinf(update).any()
    step = jax.jit(make_step(Line(), optimizer, 0.9, 0))
    one, metrics = step(state, batch(0))
    assert np.isfinite(metrics["loss"]) and metrics["skipped"] == 0
    stayed = np.asarray(one.params["model"]["w"]) == np.asarray(state.params["model"]["w"])
    np.testing.assert_array_equal(stayed, np.isinf(update))
    assert all(np.isfinite(x).all() for x in arrays(one))
    two, metrics = step(one, batch(1))
    assert metrics["skipped"] == 1 and all(np.isfinite(x).all() for x in arrays(two))


def test_a_good_step_is_that_of_the_optimizer_alone():
    """The selected update is exactly that of the optimizer."""
    state, objective = fresh(), Line()
    end, _ = jax.jit(make_step(objective, OPTIMIZER, 0.9, 0))(state, batch(0))
    gradient = jax.grad(lambda p: objective.loss(p, None, batch(0), None, None)[0])(state.params)
    updates, _ = OPTIMIZER.update(gradient, state.optimizer, state.params)
    expected = optax.apply_updates(state.params, updates)["model"]["w"]
    np.testing.assert_allclose(end.params["model"]["w"], expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
        end.frozen["ema"]["w"], 0.9 * state.params["model"]["w"] + jnp.asarray(0.1) * expected, rtol=1e-5, atol=1e-7
    )


def skipped(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def test_skipped_steps_are_recorded_with_their_samples(tmp_path, capsys):
    run(tmp_path, 12, bad=(2, 7, 8))
    no_constant = lambda name: pytest.fail(f"{name} is no JSON")
    rows = [json.loads(x, parse_constant=no_constant) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["skipped"]] == [2, 7, 8] and len(rows) == 12
    assert rows[1]["loss"] is None and rows[1]["gradient_norm"] is None and rows[2]["loss"] > 0
    ids = lambda step: [f"{step - 1}-{i}" for i in range(4)]
    assert skipped(tmp_path) == [{"step": step, "component": "line", "ids": ids(step)} for step in (2, 7, 8)]
    assert "3 skipped" in capsys.readouterr().err


def test_a_run_that_resumes_from_before_a_skipped_step_counts_it_once(tmp_path):
    def fail(step):
        if step == 9:
            raise OSError("the machine fails")

    with pytest.raises(OSError):
        run(tmp_path / "run", 12, bad=(2, 7, 8), before=fail)
    assert [row["step"] for row in skipped(tmp_path / "run")] == [2, 7]  # metrics of the last step were not fetched yet
    end = run(tmp_path / "run", 12, bad=(2, 7, 8))
    whole = run(tmp_path / "whole", 12, bad=(2, 7, 8))
    assert skipped(tmp_path / "run") == skipped(tmp_path / "whole")
    same = lambda folder: [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_metrics(folder)]
    assert same(tmp_path / "run") == same(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, end, whole)


def test_too_many_in_a_row_stop_the_run_and_name_the_last_good_checkpoint(tmp_path):
    bad = (2, *range(5, 20))
    with pytest.raises(UserError, match=mentions("limits.max_skipped_steps 4 step 8 checkpoint 3 skipped.jsonl")):
        run(tmp_path, 20, bad=bad, limits=Limits(max_skipped_steps=4))
    assert [row["step"] for row in skipped(tmp_path)] == [2, 5, 6, 7, 8]
    assert read_metrics(tmp_path)[-1]["step"] == 8
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [3]


def test_a_checkpoint_waits_for_a_step_that_was_not_skipped_and_the_last_does_not(tmp_path):
    run(tmp_path, 10, bad=(3, 4, 9, 10))
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [6, 10]
    run(tmp_path / "two", 5, bad=(3, 4))
    assert sorted(int(p.name) for p in (tmp_path / "two" / "checkpoints").iterdir()) == [5]


def test_older_metrics_that_hold_nan_are_read_and_made_json(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1.0}\n')
    MetricsLog(tmp_path, 1).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'


@pytest.mark.parametrize(
    "field, value", [("max_skipped_steps", 0), ("hang_timeout", 0.0), ("hang_timeout", float("inf"))]
)
def test_impossible_limits_are_named(field, value):
    with pytest.raises(UserError, match=mentions(f"limits.{field}", value)):
        Limits(**{field: value})
