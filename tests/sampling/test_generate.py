import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfflow.context import modality_context, prefix_context
from selfflow.errors import UserError
from selfflow.modality import to_tokens
from selfflow.models.joint import Output
from selfflow.sampling.generate import Condition, Generator, Sampler, sample_noise
from tests.conftest import mentions

NONE = np.full(8, 3)


@pytest.fixture
def pair(modalities):
    return {m: modalities[m] for m in ("video", "audio")}


@pytest.fixture
def generator(objective, pair):
    return lambda start=1.0, mesh=None, **options: Generator(
        objective.apply, pair, Sampler(**{"steps": 3} | options), 3, start, mesh
    )


@pytest.mark.parametrize("solver", ["euler", "heun", "euler_maruyama"])
def test_a_sample_depends_on_seed_and_number_alone(generator, params, solver):
    draw = generator(solver=solver)
    whole = draw(params["model"], Condition(NONE[:5]), seed=0)
    part = draw(params["model"], Condition(NONE[:2]), seed=0, numbers=np.arange(3, 5))
    other = draw(params["model"], Condition(NONE[:2]), seed=1, numbers=np.arange(3, 5))
    for m in whole:
        np.testing.assert_allclose(whole[m][3:], part[m], atol=1e-4)
        assert np.abs(part[m] - other[m]).mean() > 0.1


def test_noise_is_the_same_to_the_bit_whatever_the_batch():
    shape = (7, 5)
    whole = sample_noise(5, np.arange(9), "video", shape)
    for first, count in ((0, 1), (2, 3), (8, 1)):
        part = sample_noise(5, np.arange(first, first + count), "video", shape)
        np.testing.assert_array_equal(part, whole[first : first + count])
    assert not np.array_equal(whole, sample_noise(5, np.arange(9), "audio", shape))
    assert np.std(sample_noise(0, np.arange(40), "video", (50, 20))) == pytest.approx(1, abs=0.02)


_ON_DEVICES = """
import sys
import jax, numpy as np
from jax.sharding import AxisType
from selfflow.modality import Modality
from selfflow.models.joint import Output
from selfflow.sampling.generate import Condition, Generator, Sampler, sample_noise
latent = Modality((4, 4, 3), (2, 2))
def apply(params, x, levels, label, assignment):
    return Output({"image": x["image"] * levels["image"][..., None] + params}, {})
sampler = Sampler(solver="euler_maruyama", steps=4)
mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
made = [Generator(apply, {"image": latent}, sampler, 0, mesh=m)(0.1, Condition(np.zeros(6, int)), 3)["image"]
        for m in (None, mesh)]
assert made[1].shape == (6, 4, 4, 3)
np.testing.assert_allclose(*made, atol=1e-4)
np.savez(sys.argv[1], noise=sample_noise(5, np.arange(3), "video", (7, 5)), made=made[0])
"""


@pytest.mark.resilience
def test_on_eight_devices_the_noise_is_the_same_to_the_bit_and_samples_agree(tmp_path):
    flags = {"XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    file = tmp_path / "made.npz"
    subprocess.run([sys.executable, "-c", _ON_DEVICES, str(file)], env=os.environ | flags, check=True)
    with np.load(file) as there:
        np.testing.assert_array_equal(there["noise"], sample_noise(5, np.arange(3), "video", (7, 5)))


def test_context_tokens_come_back_untouched_and_steer_the_others(generator, params, pair, batch):
    clean = {m: x[:2] for m, x in batch["latents"].items()}
    masks = {m: np.tile(mask, (2, 1)) for m, mask in modality_context(pair, ("video",)).items()}
    draw = generator(solver="euler_maruyama")
    made = draw(params["model"], Condition(NONE[:2], clean=clean, context=masks), seed=0)
    np.testing.assert_array_equal(made["video"], clean["video"])
    other = draw(params["model"], Condition(NONE[:2], clean={m: -x for m, x in clean.items()}, context=masks), seed=0)
    assert np.abs(made["audio"] - other["audio"]).max() > 1e-3


def test_tokens_outside_the_context_cannot_be_seen(generator, params, pair, batch):
    """The clean latents of tokens that are to be generated must not leak into the samples."""
    clean = {m: x[:2] for m, x in batch["latents"].items()}
    masks = {m: np.tile(mask, (2, 1)) for m, mask in prefix_context(pair, 16.0).items()}
    hidden = {m: np.tile(np.arange(x.shape[1]) * pair[m].period >= 16, (2, 1)) for m, x in clean.items()}
    changed = {m: np.where(hidden[m].reshape(2, -1, *[1] * (x.ndim - 2)), 9.0, x) for m, x in clean.items()}
    draw = generator()
    first = draw(params["model"], Condition(NONE[:2], clean=clean, context=masks), seed=0)
    second = draw(params["model"], Condition(NONE[:2], clean=changed, context=masks), seed=0)
    for m in first:
        np.testing.assert_array_equal(first[m], second[m])
        np.testing.assert_array_equal(
            first[m][:, : 16 // int(pair[m].period)], clean[m][:, : 16 // int(pair[m].period)]
        )


def test_starting_below_1_begins_from_the_noised_latents(pair, batch):
    """With the exact velocity of another datum the first x tells where sampling began."""
    seen = {}

    def apply(params, x, levels, label, assignment):
        jax.debug.callback(
            lambda tau, video: seen.setdefault(float(tau), np.array(video)), levels["video"][0, 0], x["video"]
        )
        return Output(jax.tree.map(jnp.zeros_like, x), {})

    clean = {m: x[:2] for m, x in batch["latents"].items()}
    draw = Generator(apply, pair, Sampler(steps=4), 3, start=0.6)
    draw(None, Condition(NONE[:2], clean=clean), seed=2)
    jax.effects_barrier()
    eps = sample_noise(2, np.arange(2), "video", (pair["video"].tokens, pair["video"].token_size))
    begun = max(seen)
    assert begun == pytest.approx(0.6)
    np.testing.assert_allclose(seen[begun], 0.4 * to_tokens(pair, clean)["video"] + 0.6 * eps, atol=1e-5)


def test_guidance_drops_the_label_and_keeps_the_context(pair, batch):
    """Evaluations inside the interval are pairs, one of them with the null label; context tokens are clean in both."""
    calls = []

    def apply(params, x, levels, label, assignment):
        jax.debug.callback(lambda *call: calls.append([np.array(c) for c in call]), levels["video"], label, x["audio"])
        return Output(jax.tree.map(jnp.zeros_like, x), {})

    clean = {m: x[:2] for m, x in batch["latents"].items()}
    masks = {m: np.tile(mask, (2, 1)) for m, mask in modality_context(pair, ("audio",)).items()}
    sampler = Sampler(steps=10, guidance=3.0, guidance_low=0.25, guidance_high=0.75)
    Generator(apply, pair, sampler, 3)(None, Condition(np.array([1, 1]), clean=clean, context=masks), seed=0)
    jax.effects_barrier()
    assert len(calls) == 10 + 5
    null = [levels for levels, label, _ in calls if label[0] == 3]
    assert len(null) == 5 and all(0.25 <= levels[0, 0] <= 0.75 for levels in null)
    assert all(levels[0].tolist()[1:] == [0] for levels, _, _ in calls)
    for *_, audio in calls:
        np.testing.assert_allclose(audio, to_tokens(pair, clean)["audio"], rtol=1e-6)


def test_no_sample_is_no_error(generator, params, pair):
    made = generator()(params["model"], Condition(NONE[:0]), seed=0)
    assert {m: x.shape for m, x in made.items()} == {m: (0, *pair[m].latent) for m in pair}


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"steps": 0}, "sampler.steps 0 euler 1"),
        ({"steps": 1, "solver": "euler_maruyama"}, "sampler.steps 1 euler_maruyama 2"),
        ({"shift": 0.0}, "sampler.shift 0.0"),
        ({"guidance": -1.0}, "sampler.guidance -1.0"),
        ({"guidance_low": 0.8, "guidance_high": 0.2}, "sampler.guidance_low 0.8 guidance_high 0.2"),
    ],
)
def test_samplers_that_cannot_be(fields, words):
    with pytest.raises(UserError, match=mentions(words)):
        Sampler(**fields)
