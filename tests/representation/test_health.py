"""Health by block and level: against training's diagnostics, against whole features, and what depends on what."""

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.modality import Modality, to_tokens
from selfflow.models.joint_config import JointConfig
from selfflow.noise import Corruption, UniformTimestep, draw_eps
from selfflow.objectives.alignment import NoAlignment, SelfFlow
from selfflow.objectives.diagnostics import effective_rank
from selfflow.objectives.self_flow import SelfFlowObjective
from selfflow.representation import health as module
from selfflow.representation.features.arrays import Arrays
from selfflow.representation.health import _grown, health

SEED = 3
WITHOUT = 3  # the label that stands for none


def rank(x):
    s = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    p = s / s.sum()
    return np.exp(-(p * np.log(p)).sum())


def test_effective_rank_counts_directions():
    random = np.random.default_rng(0)
    q, _ = np.linalg.qr(random.standard_normal((200, 16)))
    assert effective_rank(jnp.asarray(q)) == pytest.approx(16, rel=1e-3)
    assert effective_rank(jnp.ones((50, 8))) == pytest.approx(1, abs=0.05)
    x = random.standard_normal((100, 6)) * [10, 5, 2, 1, 1, 0.1]
    assert effective_rank(jnp.asarray(x)) == pytest.approx(rank(x), rel=1e-3)


@dataclass(frozen=True)
class OneTau:
    """A schedule that draws the same level for all."""

    tau: float

    def sample(self, keys_B, layout):
        levels = {m: jnp.full((len(keys_B), 1), self.tau) for m in layout}
        return Corruption(levels, {m: jnp.zeros((len(keys_B), n), jnp.int32) for m, n in layout.items()}, {})

    def with_context(self, corruption, keys_B, modalities):
        return corruption


@pytest.fixture(scope="module")
def objective() -> SelfFlowObjective:
    """As small as it goes: every test compiles it."""
    return SelfFlowObjective(
        JointConfig(
            width=16, heads=2, double_blocks=1, single_blocks=1, mlp_ratio=2.0, rotary=(2, 2, 2, 2), labels=WITHOUT
        ),
        {"video": Modality((2, 4, 4, 3), (1, 2, 2), period=8.0), "audio": Modality((10, 6), (2,), period=4.0)},
        UniformTimestep(),
        SelfFlow(student_layer=1, teacher_layer=2),
        modality_weight={},
        condition_drop=0.5,
    )


def weights(objective, seed):
    """Parameters of the right shapes; drawn by NumPy, which needs no compiling."""
    random = np.random.default_rng(seed)
    draw = lambda x: 0.3 * random.standard_normal(x.shape).astype(np.float32)
    return jax.tree.map(draw, jax.eval_shape(objective.init, jax.random.key(0)))


@pytest.fixture(scope="module")
def params(objective):
    return weights(objective, 0)


@pytest.fixture(scope="module")
def ema(objective):
    return weights(objective, 1)["model"]


@pytest.fixture(scope="module")
def latents(objective):
    random = np.random.default_rng(1)
    return {m: random.standard_normal((6, *x.latent)).astype(np.float32) for m, x in objective.modalities.items()}


def batches(latents, sizes):
    start = np.cumsum([0, *sizes])
    return [{m: x[a:b] for m, x in latents.items()} for a, b in zip(start, start[1:])]


def row(rows, **wanted):
    (found,) = [r for r in rows if all(getattr(r, name) == value for name, value in wanted.items())]
    return found


def test_one_batch_is_what_training_would_show(objective, params, ema, latents):
    """At a single level for all, with the noise of the same keys, the diagnostics of the aligned pair are these."""
    tau = 0.4
    (batch,) = batches(latents, [3])
    found = health(objective, params, {"ema": ema}, [batch], (0.9, tau), seed=SEED)
    keys_B = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(SEED), i))(jnp.arange(3))
    as_trained = {"latents": batch, "label": np.full(3, -1), "weight": np.ones(3, np.float32)}
    at_tau = dataclasses.replace(objective, schedule=OneTau(tau))
    told = jax.jit(lambda *a: at_tau.diagnose(*a))(params, {"ema": ema}, as_trained, keys_B)
    told = {name: float(value) for name, value in told.items()}
    for m in latents:
        pair = row(found.pairs, modality=m, tau=tau, student_layer=1, teacher_layer=2)
        assert pair.direct == pytest.approx(told[f"cosine/direct/{m}"], abs=1e-5)
        assert pair.projected == pytest.approx(told[f"cosine/projected/{m}"], abs=1e-5)
        assert pair.projected_centred == pytest.approx(told[f"cosine/centred/{m}"], abs=1e-5)
        assert pair.projected_other_sample == pytest.approx(told[f"cosine/other_sample/{m}"], abs=1e-5)
        student, teacher = (row(found.layers, modality=m, tau=tau, layer=layer) for layer in (1, 2))
        assert student.student_norm == pytest.approx(told[f"norm/student/{m}"], rel=1e-4)
        assert student.student_rank == pytest.approx(told[f"rank/student/{m}"], rel=1e-3)
        assert teacher.teacher_norm == pytest.approx(told[f"norm/teacher/{m}"], rel=1e-4)
        assert teacher.teacher_rank == pytest.approx(told[f"rank/teacher/{m}"], rel=1e-3)


def test_batches_add_up_to_all_samples(objective, params, ema, latents):
    """Sums and ranks over batches are those of the features of all samples, taken whole, in float64."""
    tau, cleaner, layers = 0.6, 0.2, (1, 2)
    found = health(objective, params, {"ema": ema}, batches(latents, [3, 3]), (tau,), teacher_tau=cleaner, seed=SEED)
    assert len(found.pairs) == 2 * 4 and len(found.layers) == 2 * 2

    @jax.jit
    def taps(weights, tau):
        keys_B = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(SEED), i))(jnp.arange(6))
        x = to_tokens(objective.modalities, latents)
        noisy = jax.tree.map(lambda a, e: (1 - tau) * a + tau * e, x, draw_eps(keys_B, x))
        level = {m: jnp.full((6, 1), tau) for m in x}
        own = {m: jnp.zeros(x[m].shape[:2], jnp.int32) for m in x}
        return objective.apply(weights, noisy, level, jnp.full(6, WITHOUT), own, taps=layers, stop_at=2).taps

    student, teacher = jax.device_get((taps(params["model"], tau), taps(ema, cleaner)))
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    cosine = lambda a, b: float(np.mean(np.sum(unit(a) * unit(b), axis=-1)))
    centre = lambda x: np.concatenate([part - part.mean(axis=0) for part in np.split(x, 2)])
    for m in latents:
        for layer in layers:
            size = row(found.layers, modality=m, layer=layer)
            assert (size.tau, size.teacher_tau) == (tau, cleaner)
            for who, x in (("student", student[layer][m]), ("teacher", teacher[layer][m])):
                assert getattr(size, f"{who}_norm") == pytest.approx(np.linalg.norm(x, axis=-1).mean(), rel=1e-4)
                assert getattr(size, f"{who}_rank") == pytest.approx(rank(x.reshape(-1, 16)), rel=1e-3)
            for other in layers:
                pair = row(found.pairs, modality=m, student_layer=layer, teacher_layer=other)
                a, b = (x.astype(np.float64) for x in (student[layer][m], teacher[other][m]))
                assert pair.direct == pytest.approx(cosine(a, b), abs=1e-5)
                assert pair.direct_centred == pytest.approx(cosine(centre(a), centre(b)), abs=1e-5)
                assert pair.direct_other_sample == pytest.approx(cosine(a, b[[2, 0, 1, 5, 3, 4]]), abs=1e-5)


def test_equal_networks_are_their_own_teachers(objective, params, latents):
    """Equal weights and level: cosine 1 on the diagonal. Samples that are all alike have nothing once centred."""
    same = {"ema": params["model"]}
    found = health(objective, params, same, batches(latents, [3, 3]), (0.0, 0.5))
    for pair in found.pairs:
        assert (pair.direct == pytest.approx(1, abs=1e-5)) == (pair.student_layer == pair.teacher_layer)
        assert (pair.direct_centred == pytest.approx(1, abs=1e-4)) == (pair.student_layer == pair.teacher_layer)
        assert (pair.projected is None) == (pair.student_layer != objective.alignment.student_layer)
    alike = {m: np.repeat(x[:1], 3, axis=0) for m, x in latents.items()}
    for pair in health(objective, params, same, [alike], (0.0,)).pairs:
        if pair.student_layer == pair.teacher_layer:
            assert pair.direct_other_sample == pytest.approx(1, abs=1e-5)
            assert pair.direct_centred == 0  # and not the cosine of what rounding left


def test_blocks_and_modalities_may_be_few_and_the_projector_missing(objective, params, ema, latents):
    plain = dataclasses.replace(objective, alignment=NoAlignment())
    audio_alone = {"audio": latents["audio"][:2]}
    found = health(plain, {"model": params["model"]}, {"ema": ema}, [audio_alone], (0.5, 0.25), layers=(1,))
    assert [(r.modality, r.tau, r.layer) for r in found.layers] == [("audio", 0.5, 1), ("audio", 0.25, 1)]
    assert {(r.projected, r.projected_centred, r.projected_other_sample) for r in found.pairs} == {(None,) * 3}


def test_the_rank_of_many_batches_is_exact():
    """R carried over a hundred batches in float32 knows small directions, which a sum of squares would lose."""
    random = np.random.default_rng(0)
    turn, _ = np.linalg.qr(random.standard_normal((12, 12)))
    x = ((random.standard_normal((100, 20, 12)) * np.logspace(0, -4, 12)) @ turn).astype(np.float32)
    r = jnp.zeros((12, 12))
    for part in x:
        r = _grown(r, part)
    exact = np.linalg.svd(x.reshape(-1, 12).astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(r, compute_uv=False), exact, rtol=1e-2)
    gram = np.sqrt(np.abs(np.linalg.eigvalsh(np.einsum("bmi,bmj->ij", x, x)))[::-1])
    assert np.abs(gram / exact - 1).max() > 0.1


class Torn(Arrays):
    """Of which the first cannot be read, and reads are counted."""

    def latents(self, i):
        self.read = i + 1
        if i == 0:
            raise BadRecord("test-00000.array_record", "torn")
        return super().latents(i)


def test_batches_of_a_run_are_read_one_by_one_and_without_torn_clips(monkeypatch, capsys):
    run = SimpleNamespace(weights=lambda step: SimpleNamespace(params=None, frozen=None), objective=None)
    monkeypatch.setattr(module, "health", lambda objective, params, frozen, latents, taus: latents)
    clips = Torn({"audio": np.arange(24, dtype=np.float32).reshape(12, 2, 1)})
    batches = module.health_of_run(run, clips, (0.5,), limit=11, batch_size=4)
    np.testing.assert_array_equal(next(batches)["audio"], clips._latents["audio"][1:5])
    assert clips.read == 5  # no more than the batch needs
    (second,) = batches  # the two that are left make no whole one
    assert len(second["audio"]) == 4 and "1 clips cannot be read" in capsys.readouterr().err
    (alone,) = module.health_of_run(run, clips, (0.5,), limit=64, batch_size=16)
    assert len(alone["audio"]) == 11  # fewer clips than a batch
    with pytest.raises(UserError, match="none of 1 clips can be read"):
        list(module.health_of_run(run, Torn({"audio": np.ones((1, 2, 1))}), (0.5,)))
    clips.shapes = {"audio": (3, 1)}
    with pytest.raises(UserError, match="is shorter than the component has them"):
        list(module.health_of_run(run, clips, (0.5,)))
    for wrong in ({"limit": 1}, {"batch_size": 0}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is .: it must be at least 2"):
            module.health_of_run(run, clips, (0.5,), **wrong)


def test_what_cannot_be_measured_is_refused(objective, params, ema, latents):
    def call(data=None, taus=(0.5,), params=params, **more):
        data = batches(latents, [3]) if data is None else data
        return health(objective, params, {"ema": ema}, data, taus, **more)

    for told, wrong in (
        ("blocks 1 to 2", {"layers": (3,)}),
        ("blocks 1 to 2", {"layers": ()}),
        ("blocks 1 to 2", {"layers": (2, 2)}),
        ("from 0 to 1", {"taus": (0.5, 1.2)}),
        ("from 0 to 1", {"taus": ()}),
        ("from 0 to 1", {"taus": (float("nan"),)}),
        ("teacher_tau is 0.6: give a level from 0 to 0.5", {"teacher_tau": 0.6}),
        ("no samples", {"data": []}),
        ("a batch of 1 sample", {"data": batches(latents, [1, 3])}),
        ("give one component", {"data": [*batches(latents, [3]), {"video": latents["video"]}]}),
        ("a batch holds text", {"data": [{"text": np.zeros((3, 2, 2))}]}),
        ("audio at tau 0.5 are not finite", {"data": batches(latents | {"audio": latents["audio"] * np.nan}, [3])}),
    ):
        with pytest.raises(UserError, match=told):
            call(**wrong)
