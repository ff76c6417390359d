"""Attention weights of requested blocks, and that requesting them changes no other result."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfflow.modality import to_tokens
from selfflow.models.attention import attention, attention_weights
from selfflow.models.separation import Groups
from selfflow.noise import DualTimestep
from selfflow.objectives.self_flow import SelfFlowObjective

LABEL_B = jnp.array([0, 1, 2, 3])


@pytest.fixture
def call(objective, params, batch, keys_B):
    """The model on a batch at mixed noise: (changes of the tokens, arguments) -> `Output`."""
    tokens = to_tokens(objective.modalities, batch["latents"])
    ratios = {"video": 0.3, "audio": 0.5}
    c = DualTimestep(mask_ratio=ratios).sample(keys_B, {m: x.shape[1] for m, x in tokens.items()})

    def call(more=None, apply=objective.apply, **options):
        return apply(params["model"], tokens | (more or {}), c.levels, LABEL_B, c.assignment, **options)

    call.eager = partial(SelfFlowObjective.apply, objective)
    call.tokens, call.groups = tokens, Groups(c.assignment, 8, 1)
    return call


@pytest.mark.parametrize("seen", [None, [[1, 1, 0, 1, 1], [0, 1, 0, 0, 0]]])
def test_weights_times_values_are_what_attention_gives(seen):
    q, k, v = (np.random.default_rng(i).standard_normal((2, n, 3, 4)) for i, n in enumerate((6, 5, 5)))
    seen = None if seen is None else jnp.array(seen, bool)
    weight_BANM = attention_weights(q, k, seen)
    assert weight_BANM.shape == (2, 3, 6, 5) and (np.asarray(weight_BANM) >= 0).all()
    np.testing.assert_allclose(weight_BANM.sum(-1), 1, rtol=1e-6)
    attended = np.einsum("banm,bmah->bnah", weight_BANM, v).reshape(2, 6, 12)
    np.testing.assert_allclose(attended, attention(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), seen), atol=1e-5)
    if seen is not None:
        np.testing.assert_array_equal(np.asarray(weight_BANM).transpose(0, 3, 1, 2)[~np.asarray(seen)], 0)


def test_asking_changes_nothing_and_rows_sum_to_one(call):
    plain, with_weights = call(taps=(2,)), call(taps=(2,), attention_of=(1, 2, 3, 5))
    assert plain.attention == {} and sorted(with_weights.attention) == [1, 2, 3, 5]
    for m in plain.velocity:
        np.testing.assert_allclose(with_weights.velocity[m], plain.velocity[m], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(with_weights.taps[2][m], plain.taps[2][m], rtol=1e-4, atol=1e-5)
    counts = {"text": 1} | {m: x.shape[1] for m, x in call.tokens.items()}
    for by_query in with_weights.attention.values():
        assert set(by_query) == set(counts)
        for m, by_key in by_query.items():
            assert {key: x.shape for key, x in by_key.items()} == {k: (4, 2, counts[m], counts[k]) for k in counts}
            np.testing.assert_allclose(sum(x.sum(-1) for x in by_key.values()), 1, rtol=1e-5)


@pytest.mark.parametrize("block", [1, 3])  # a double-stream block, and a single-stream one
def test_weights_are_those_that_the_block_attends_with(call, monkeypatch, block):
    """What goes into the block's own attention, kept by the way, gives the same weights and the same result."""
    import selfflow.models.joint as joint

    calls = []

    def recording(q, k, v, **more):
        out = attention(q, k, v, **more)
        calls.append((q, k, v, out))
        return out

    monkeypatch.setattr(joint, "attention", recording)
    # A block that is run apart is not traced, so that its arrays are numbers.
    weights = call(apply=call.eager, attention_of=(block,), stop_at=block).attention[block]
    q, k, v, out = next(entry for entry in reversed(calls) if not isinstance(entry[0], jax.core.Tracer))
    names = ("text", "audio", "video")
    weight_BANN = np.concatenate([np.concatenate([weights[a][b] for b in names], axis=-1) for a in names], axis=-2)
    np.testing.assert_allclose(weight_BANN, attention_weights(q, k), rtol=1e-5, atol=1e-6)
    attended = np.einsum("banm,bmah->bnah", weight_BANN, v).reshape(out.shape)
    np.testing.assert_allclose(attended, out, rtol=1e-4, atol=1e-5)


def test_weights_depend_on_whose_they_are(call):
    """In the first block the weights between audio tokens know no video but by the sum that they share."""

    def ratio(video):
        weight = call({"video": video}, attention_of=(1,), stop_at=1).attention[1]["audio"]
        return weight["audio"][0, 0, 2, 1] / weight["audio"][0, 0, 2, 0], weight["video"][0, 0, 2, 0]

    (own, other), back = jax.vjp(ratio, call.tokens["video"])
    (of_ratio,), (of_weight,) = back((1.0, 0.0)), back((0.0, 1.0))
    assert np.isfinite(own) and 0 < other < 1
    assert float(jnp.abs(of_ratio).max()) < 1e-5 * float(abs(own)) + 1e-6
    assert float(jnp.abs(of_weight[0]).max()) > 1e-6 and not jnp.abs(of_weight[1:]).any()  # of its own clip alone


@pytest.mark.parametrize(
    "options, message", [({"attention_of": (6,)}, "blocks 1 to 5"), ({"attention_of": (0,)}, "blocks")]
)
def test_blocks_outside_the_model_are_named(call, options, message):
    with pytest.raises(ValueError, match=message):
        call(**options)
    with pytest.raises(ValueError, match="stop_at 2"):
        call(attention_of=(3,), stop_at=2)


def test_groups_have_no_weights(call):
    with pytest.raises(ValueError, match="groups"):
        call(attention_of=(1,), groups=call.groups)
