"""Checkpoints: what is damaged is never taken for whole, and other devices read what some wrote."""

import gc
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selfflow.errors import UserError
from selfflow.training.checkpoints import Checkpoints, checksums
from selfflow.training.state import State
from tests.conftest import TINY, mentions


def made(step: int) -> State:
    random = np.random.default_rng(step)
    params = {"model": {name: jnp.asarray(random.standard_normal((16, 24)), jnp.float32) for name in "ab"}}
    optimizer = optax.scale_by_adam()
    moments = optimizer.init(params)
    moments = moments._replace(count=jnp.int32(step), mu=jax.tree.map(lambda x: 0.1 * x, params))
    return State(jnp.int32(step), params, {"ema": params["model"]}, moments)


def abstract() -> State:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), made(0))


@pytest.fixture
def saved(tmp_path):
    """A run folder with checkpoints of steps 1 and 2."""
    checkpoints = Checkpoints(tmp_path / "run")
    for step in (1, 2):
        checkpoints.save(made(step), step)
    checkpoints.close()
    return tmp_path / "run"


def restored(folder) -> State:
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore_newest(abstract())
    finally:
        checkpoints.close()


def assert_is(state: State, step: int) -> None:
    jax.tree.map(np.testing.assert_array_equal, state, made(step))


def files_of(folder, step: int) -> list:
    return sorted(p for p in (folder / "checkpoints" / str(step)).rglob("*") if p.is_file() and p.stat().st_size)


@pytest.mark.resilience
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_ten_damages_never_give_wrong_weights(saved, damage, capsys):
    """At random places of all the files' bytes; either the state is right to the bit, or the one before is taken."""
    random, outcomes = np.random.default_rng(0), []
    files = files_of(saved, 2)
    sizes = np.array([f.stat().st_size for f in files])
    for _ in range(10):
        copy = saved.with_name("copy")
        shutil.copytree(saved, copy)
        place = int(random.integers(sizes.sum()))
        file = files[int(np.searchsorted(np.cumsum(sizes), place, side="right"))]
        file = copy / file.relative_to(saved)
        data = bytearray(file.read_bytes())
        place = int(random.integers(len(data)))
        if damage == "cut":
            data = data[:place]
        else:
            data[place] ^= 1 << int(random.integers(8))
        file.write_bytes(data)
        state = restored(copy)
        step = int(state.step)
        assert_is(state, step)
        outcomes.append(step)
        warning = mentions(copy / "checkpoints" / "2", "damaged-2 step 1")
        assert bool(warning.search(capsys.readouterr().out)) == (step == 1)
        assert (copy / "checkpoints" / "damaged-2").exists() == (step == 1)
        shutil.rmtree(copy)
        gc.collect()  # warnings of TensorStore about it belong to this test
    assert outcomes.count(1) >= 3  # the damage is detected, not ignored


@pytest.mark.parametrize("word", range(0, 16 * 24 * 4, 190))
def test_any_flipped_bit_changes_the_sum(word):
    array = np.random.default_rng(0).standard_normal((16, 24)).astype(np.float32)
    other = array.copy()
    other.view(np.uint8).reshape(-1)[word] ^= 1 << word % 8
    for dtype in (np.float32, jnp.bfloat16):
        a, b = (jax.jit(checksums)(jnp.asarray(x.view(dtype))) for x in (array, other))
        assert a != b
    assert int(jax.jit(checksums)(jnp.asarray(array))) == int(array.view(np.uint32).sum(dtype=np.uint32))


def test_where_all_are_damaged_the_newest_is_named_and_nothing_moved(saved):
    for step in (1, 2):
        (saved / "checkpoints" / str(step) / "data" / "metadata").write_text("{}")
    with pytest.raises(UserError, match=mentions(saved / "checkpoints" / "2", "position")):
        restored(saved)
    assert sorted(p.name for p in (saved / "checkpoints").iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    "error", [PermissionError(13, "not now"), OSError(5, "I/O error"), ValueError("RESOURCE_EXHAUSTED: no memory")]
)
def test_errors_that_are_not_of_the_checkpoint_put_none_aside(saved, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(Checkpoints, "_read_files", fail)
    with pytest.raises(type(error)):
        restored(saved)
    assert sorted(p.name for p in (saved / "checkpoints").iterdir()) == ["1", "2"]


def test_a_run_resumes_and_saves_the_damaged_step_again(saved):
    """Twice, so that two damaged checkpoints remain beside it."""
    for time in range(2):
        (saved / "checkpoints" / "2" / "data" / "metadata").unlink()
        checkpoints = Checkpoints(saved)
        assert_is(checkpoints.restore_newest(abstract()), 1)
        assert checkpoints.latest() == 1
        checkpoints.save(made(2), 2)
        checkpoints.close()
        assert_is(restored(saved), 2)
    names = sorted(p.name for p in (saved / "checkpoints").iterdir())
    assert names == ["1", "2", "damaged-2", "damaged-2-1"]


def test_the_last_checkpoints_are_kept_and_some_forever(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_every=4)
    for step in range(1, 12):
        checkpoints.save(made(step), step)
    checkpoints.wait()
    assert checkpoints.steps() == [4, 8, 10, 11]
    checkpoints.close()


@pytest.mark.resilience
def test_a_state_saved_on_eight_devices_restores_on_eight_four_and_one(tmp_path):
    command = [sys.executable, "-m", "tests.training.restored", str(tmp_path)]
    done = subprocess.run(command, cwd=TINY.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_types_of_another_jax_enable_x64_are_named_and_nothing_is_set_aside(saved):
    with jax.enable_x64(True):
        wider = abstract()._replace(params=jax.tree.map(_as_float64, abstract().params))
        checkpoints = Checkpoints(saved)
        try:
            with pytest.raises(UserError, match=mentions("JAX_ENABLE_X64", False, "params.model.a", "float32 float64")):
                checkpoints.restore_newest(wider)
        finally:
            checkpoints.close()
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == ["1", "2"]
    assert_is(restored(saved), 2)


def _as_float64(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, jnp.float64, sharding=x.sharding)
