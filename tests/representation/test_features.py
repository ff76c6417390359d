"""Features of a run: the values, their dependencies, and the files on disk."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.modality import to_tokens
from selfflow.noise import Corruption, corrupt, draw_eps
from selfflow.representation.features import extract as module
from selfflow.representation.features.arrays import Arrays
from selfflow.representation.features.extract import features
from selfflow.run.run import open_run
from tests.conftest import mentions

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A copy of the tiny run, in which features may be stored, opened once."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(tiny_run, folder)
    return open_run(folder)


@pytest.fixture(scope="module")
def clips(run, data_dir):
    return run.data("test", data_dir=data_dir)


@pytest.fixture(scope="module")
def all_layers(run, clips):
    """The features that most tests compare with, stored in the run."""
    return features(run, clips, batch_size=4)


def arrays_of(clips, numbers):
    latents = [clips.latents(i) for i in numbers]
    together = {m: np.stack([x[m] for x in latents]) for m in latents[0]}
    return Arrays(together, [clips.ids[i] for i in numbers], {"count": clips.labels["count"][list(numbers)]})


@pytest.fixture
def few(clips):
    return arrays_of(clips, range(4))


def seeds_of(ids):
    return jnp.array([int.from_bytes(sha256(i.encode()).digest()[:4], "big") for i in ids], jnp.uint32)


def expected(run, latents, ids, tau, context=(), seed=0, frames=None):
    """The taps of all blocks, token by token, said once more."""
    model = run.model("ema")
    streams = {m: model.modalities[m] for m in latents}
    x = to_tokens(streams, latents)
    keys_B = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(seeds_of(ids))
    eps, count = draw_eps(keys_B, x), len(ids)
    levels = {m: jnp.full((count, 1), tau[m]) for m in x}
    assignment = {m: jnp.zeros((count, x[m].shape[1]), int) for m in x}
    for m in context:
        levels[m], assignment[m] = jnp.array([[tau[m], 0.0]] * count), assignment[m] + 1
    noisy = {m: x[m] if m in context else (1 - tau[m]) * x[m] + tau[m] * eps[m] for m in x}
    valid = {m: streams[m].valid_tokens(n) for m, n in (frames or {}).items()}
    apply = jax.jit(partial(run.objective.apply, taps=tuple(range(1, model.depth + 1))))
    held = {m: jnp.ones(assignment[m].shape, bool) for m in context}
    again = corrupt(x, eps, Corruption(levels, assignment, held))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), again, noisy)
    return apply(model.params, noisy, levels, jnp.full(count, model.null_label), assignment, valid=valid).taps


def test_they_are_the_mean_taps_of_noised_latents_whatever_the_batches(run, clips, all_layers):
    taps = expected(run, arrays_of(clips, range(12))._latents, clips.ids, {"video": 0.1, "audio": 0.1})
    assert sorted(all_layers.layers) == [1, 2, 3] == sorted(taps)
    for layer, tap in taps.items():
        for m, x_BND in tap.items():
            found = all_layers.layers[layer][m]
            assert found.shape == (12, 32) and found.dtype == np.float32
            np.testing.assert_allclose(found, x_BND.mean(axis=1), atol=2e-5)
    assert all_layers.ids == clips.ids and all_layers.tau == {"video": 0.1, "audio": 0.1}
    np.testing.assert_array_equal(all_layers.labels["count"], clips.labels["count"])
    assert all_layers.grids == {m: clips.modalities[m].grid for m in ("video", "audio")}
    assert not all_layers.layers[1]["video"].flags.writeable


def test_a_sample_depends_on_its_id_and_not_on_the_limit_the_batch_or_its_place(run, clips, all_layers):
    some = features(run, clips, limit=6, batch_size=4)
    others = features(run, arrays_of(clips, (9, 2, 7, 4)), batch_size=4, cache=False)
    assert len(some.ids) == 6 and others.ids == [clips.ids[i] for i in (9, 2, 7, 4)]
    for layer, tap in all_layers.layers.items():
        for m, x in tap.items():
            np.testing.assert_allclose(some.layers[layer][m], x[:6], atol=1e-5)
            np.testing.assert_allclose(others.layers[layer][m], x[[9, 2, 7, 4]], atol=1e-5)
    other_seed = features(run, clips, limit=4, seed=1)
    assert np.abs(other_seed.layers[1]["video"] - all_layers.layers[1]["video"][:4]).max() > 1e-3


def test_stored_layers_are_not_computed_again_and_the_others_in_one_pass(run, clips, all_layers, monkeypatch):
    passes, extract = [], module.extract
    watched = lambda forward, *rest: passes.append(forward.layers) or extract(forward, *rest)
    monkeypatch.setattr(module, "extract", watched)
    again = features(run, clips, (3, 1), batch_size=7)
    assert passes == [] and list(again.layers) == [1, 3]
    np.testing.assert_array_equal(again.layers[3]["audio"], all_layers.layers[3]["audio"])
    folder = Path(all_layers.layers[2]["audio"].filename).parents[1]
    before = np.array(all_layers.layers[2]["audio"])
    shutil.rmtree(folder / "layer_002")
    shutil.rmtree(folder / "layer_003")
    found = features(run, clips, batch_size=4)
    assert passes == [(2, 3)]
    np.testing.assert_allclose(found.layers[2]["audio"], before, atol=1e-5)
    metadata = json.loads((folder / "layer_002" / "metadata.json").read_text())
    assert metadata["step"] == 12 and metadata["weights"] == "ema" and metadata["ids"] == clips.ids
    assert metadata["key"]["tau"] == {"video": 0.1, "audio": 0.1} and metadata["left_out"] == []


def test_features_of_other_settings_are_stored_apart(run, few, monkeypatch):
    class Computed(Exception):
        pass

    def look(folder, *rest):
        seen.append(folder.name)
        raise Computed

    seen = []
    monkeypatch.setattr(module, "read_layer", look)
    changed = [dict(), dict(tau=0.2), dict(tau={"video": 0.1, "audio": 0.2}), dict(seed=1), dict(pool="tokens")]
    changed += [dict(limit=3), dict(context="video"), dict(modalities="audio"), dict(weights="student"), dict(step=9)]
    changed += [
        dict(weights="untrained"),
        dict(code="0"),
        dict(data=Arrays({m: x + 1 for m, x in few._latents.items()}, few.ids)),
    ]
    alike = [dict(batch_size=2), dict(layers=1), dict(tau={"audio": 0.1, "video": 0.1}), dict(limit=4)]
    alike += [dict(modalities=("audio", "video"))]
    for arguments in changed + alike:
        with pytest.raises(Computed), monkeypatch.context() as patched:
            if code := arguments.pop("code", None):
                patched.setattr(module, "code_hash", lambda: code)
            features(run, arguments.pop("data", few), **arguments)
    assert len({*seen[: len(changed)]}) == len(changed) and {*seen[len(changed) :]} == {seen[0]}


def test_context_modalities_are_held_without_noise_and_all_tokens_are_there(run, few):
    found = features(run, few, tau=0.7, context=("video",), pool="tokens")
    taps = expected(run, few._latents, few.ids, {"video": 0.7, "audio": 0.7}, context=("video",))
    assert found.tau == {"video": 0.0, "audio": 0.7}
    for layer, tap in taps.items():
        for m, x_BND in tap.items():
            assert found.layers[layer][m].shape == x_BND.shape
            np.testing.assert_allclose(found.layers[layer][m], x_BND, atol=2e-5)


def test_of_one_modality_alone_the_network_sees_nothing_else(run, few):
    deaf = Arrays({"video": few._latents["video"], "audio": few._latents["audio"] * 0 + 3}, few.ids)
    both = [features(run, data, 3).layers[3]["video"] for data in (few, deaf)]
    alone = [features(run, data, 3, modalities="video").layers[3] for data in (few, deaf)]
    assert list(alone[0]) == ["video"] and np.abs(both[0] - both[1]).max() > 1e-4
    np.testing.assert_array_equal(alone[0]["video"], alone[1]["video"])
    assert np.abs(alone[0]["video"] - both[0]).max() > 1e-4


class Short(Arrays):
    """Arrays whose second clip ends early."""

    def latents(self, i):
        kept = {"video": 10, "audio": 20} if i == 1 else {}
        return {m: x[: kept.get(m)] for m, x in super().latents(i).items()}


def test_padding_is_in_no_mean_and_masked_out_of_attention(run, few):
    short = Short(few._latents, few.ids)
    latents = {m: np.array(x) for m, x in few._latents.items()}
    latents["video"][1, 10:] = 5.0  # any value
    latents["audio"][1, 20:] = 5.0
    frames = {"video": np.array([25, 10, 25, 25]), "audio": np.array([50, 20, 50, 50])}
    assert latents["video"].shape[1] == 25 and latents["audio"].shape[1] == 50
    taps = expected(run, latents, few.ids, {"video": 0.1, "audio": 0.1}, frames=frames)
    found = features(run, short, cache=False)
    tokens = features(run, short, 3, pool="tokens", cache=False).layers[3]["video"]
    valid = 10 * 4
    for layer in taps:
        x_BND = np.asarray(taps[layer]["video"])
        means = np.stack([x.mean(axis=0) for x in (x_BND[0], x_BND[1, :valid], x_BND[2], x_BND[3])])
        np.testing.assert_allclose(found.layers[layer]["video"], means, atol=2e-5)
    assert not tokens[1, valid:].any() and tokens[1, :valid].any(axis=-1).all()


class Damaged(Arrays):
    """Arrays two clips of which cannot be read."""

    def latents(self, i):
        if i in (1, 3):
            raise BadRecord("test-00000.array_record", f"record {i} is torn")
        return super().latents(i)


def test_unreadable_clips_are_left_out_and_counted_each_time(run, few, all_layers, capsys):
    damaged = Damaged(few._latents, few.ids, few.labels)
    for _ in range(2):  # computed, then read from disk
        found = features(run, damaged, 1, batch_size=3)
        assert found.ids == [few.ids[0], few.ids[2]]
        np.testing.assert_array_equal(found.labels["count"], few.labels["count"][[0, 2]])
        np.testing.assert_allclose(found.layers[1]["video"], all_layers.layers[1]["video"][[0, 2]], atol=1e-5)
        err = capsys.readouterr().err
        assert err.count("warning") == 1 and mentions("2 clips record 1 is torn").search(err)

    class Torn(Damaged):
        def latents(self, i):
            return super().latents(1)

    with pytest.raises(UserError, match=mentions("none 4 clips")):
        features(run, Torn(few._latents), 1, tau=0.4)


def test_features_that_are_not_finite_are_named_and_leave_nothing(run, few):
    latents = {m: np.array(x, np.float32) for m, x in few._latents.items()}
    latents["audio"][2, 0, 0] = np.nan
    broken = Arrays(latents, few.ids)
    before = {*run.path.rglob("layer_*")}
    with pytest.raises(UserError, match=mentions("layer 1 features", few.ids[2], "NaN")):
        features(run, broken)
    assert {*run.path.rglob("layer_*")} == before


def test_an_interrupted_pass_leaves_no_partial_layer(run, few):
    class Interrupting(Arrays):
        def latents(self, i):
            if i == 3 and stop:
                raise KeyboardInterrupt
            return super().latents(i)

    stop = True
    before = {*run.path.rglob("layer_*")}
    arrays = Interrupting(few._latents, few.ids)
    with pytest.raises(KeyboardInterrupt):
        features(run, arrays, 1, tau=0.6, batch_size=2)
    assert {*run.path.rglob("layer_*")} == before
    stop = False
    assert features(run, arrays, 1, tau=0.6, batch_size=2).layers[1]["video"].shape == (4, 32)


def test_a_run_that_cannot_be_written_is_named(tiny_run, few, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("features"))
    (tmp_path / "run" / "features").write_text("no folder")
    with pytest.raises(UserError, match=mentions("Not a directory cache=False")):
        features(open_run(tmp_path / "run"), few)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(layers=(2, 7)), "layers 7 1 to 3"),
        (dict(layers=()), "layers 1 to 3"),
        (dict(layers="last"), "layers last all 1 to 3"),
        (dict(tau=1.5), "tau is 1.5: give a number from 0"),
        (dict(tau=float("nan")), "tau is nan"),
        (dict(tau={"video": 0.1}), "tau has no level for audio"),
        (dict(tau={"video": 0.1, "smell": 0.1}), "tau smell video, audio"),
        (dict(modalities=("video", "image")), "modalities image video, audio"),
        (dict(modalities=()), "modalities video, audio"),
        (dict(context="action"), "context action video, audio"),
        (dict(modalities="video", context="audio"), "context audio video"),
        (dict(pool="max"), "pool is 'max'"),
        (dict(limit=0), "limit is 0"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(weights="teacher"), "weights is 'teacher'"),
        (dict(weights="untrained", step=3), "untrained weights have no step"),
        (dict(step=5), "no checkpoint of step 5"),
    ],
)
def test_arguments_that_do_not_exist_are_refused_with_those_that_do(run, few, arguments, words):
    with pytest.raises(UserError, match=mentions(words)):
        features(run, few, **arguments)


def test_latents_of_another_shape_are_refused(run):
    with pytest.raises(UserError, match=mentions("data video (25, 8, 4, 32) (25, 4, 4, 32)")):
        features(run, Arrays({"video": np.zeros((2, 25, 8, 4, 32), np.float32)}))


def test_an_untrained_network_is_more_than_its_embedding(run, few):
    found = features(run, few, (1, 3), weights="untrained").layers
    assert np.abs(found[1]["video"] - found[3]["video"]).max() > 0.1


@pytest.mark.slow
def test_four_devices_give_what_one_does(run, clips, all_layers, data_dir, tmp_path):
    code = f"""
import numpy as np
from selfflow.representation.features.extract import features
from selfflow.run.run import open_run
from selfflow.training.sharding import Devices
run = open_run({str(run.path)!r})
mesh = Devices(data=2, fsdp=2).mesh()
assert mesh.size == 4 and run.model(mesh=mesh).identity == {run.model().identity!r}
clips = run.data("test", data_dir={str(data_dir)!r})
layers = features(run, clips, batch_size=5, mesh=mesh, cache=False).layers
named = {{f"{{layer}} {{m}}": x for layer, tap in layers.items() for m, x in tap.items()}}
np.savez({str(tmp_path / "found.npz")!r}, **named)
"""
    several = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=several, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        assert len(found.files) == 6
        for name in found.files:
            layer, m = name.split()
            np.testing.assert_allclose(found[name], all_layers.layers[int(layer)][m], atol=1e-5)
