"""Video-to-audio retrieval by networks with a known answer and by a real one, and the dependencies of its scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.modality import Modality, to_tokens
from selfflow.models.joint import Output
from selfflow.models.joint_config import JointConfig
from selfflow.noise import UniformTimestep
from selfflow.objectives.alignment import NoAlignment
from selfflow.objectives.self_flow import SelfFlowObjective
from selfflow.representation.retrieval import Retrieval, Retrieved, _candidates, _scorer, retrieve
from tests.conftest import mentions

MODALITIES = {"video": Modality((2, 2, 2, 3), (1, 2, 2), period=8.0), "audio": Modality((4, 3), (2,), period=4.0)}
CLIPS, MATERIALS = 192, 3
FEW = Retrieval(taus=(0.5, 0.9), draws=1)
MATERIAL = np.random.default_rng(1).integers(0, MATERIALS, CLIPS)


def clips():
    """Videos of noise whose first element of each token is the material, and audio that is a map of the video."""
    random = np.random.default_rng(0)
    video = random.standard_normal((CLIPS, *MODALITIES["video"].latent)).astype(np.float32)
    video[..., 0] = MATERIAL[:, None, None, None]
    return {"video": video, "audio": np.asarray(audio_of(video.reshape(CLIPS, -1))).reshape(CLIPS, 4, 3)}


def audio_of(video_BP):
    hidden = np.random.default_rng(2).standard_normal((video_BP.shape[-1], 12)) / 2
    return jnp.tanh(video_BP @ hidden.astype(np.float32))


def tau_of(m, levels, assignment):
    return jnp.take_along_axis(levels[m], assignment[m], axis=1)


def predicting(expected):
    """A network that predicts the latent audio of a video [B, ...], which must be clean."""

    def apply(params, tokens, levels, label_B, assignment):
        video = MODALITIES["video"].from_tokens(tokens["video"])
        audio = to_tokens(MODALITIES, {"audio": expected(video)})["audio"]
        tau_BN1 = tau_of("audio", levels, assignment)[..., None]
        # Any noise of the video would show in the scores.
        scale = 1 + tau_of("video", levels, assignment).sum() + (label_B != 7).sum()
        return Output({"audio": scale * (tokens["audio"] - audio) / tau_BN1, "video": None}, {})

    return apply


def run(apply, latents=None, settings=FEW, queries=None, material=MATERIAL):
    return retrieve(apply, None, MODALITIES, 7, latents or clips(), material, settings, queries)


def within_binomial(share, chance, n=CLIPS):
    return abs(share - chance) < 4 * np.sqrt(chance * (1 - chance) / n)


def test_a_network_of_the_true_map_retrieves_all_audio():
    found = run(predicting(lambda video: audio_of(video.reshape(len(video), -1)).reshape(-1, 4, 3)))
    summary = found.summary()
    assert (summary.queries, summary.top1, summary.reciprocal_rank) == (CLIPS, 1, 1)
    assert (summary.top1_within_material, summary.material) == (1, 1)
    assert (summary.top1_chance, summary.top1_within_material_chance) == (1 / 16, 1 / 8)
    assert summary.reciprocal_rank_chance == pytest.approx(sum(1 / r for r in range(1, 17)) / 16)
    # The error is 0 for the true audio; for other audio it is the difference over tau: a mean over levels, by hand.
    audio, query = clips()["audio"], found.candidates == found.queries[:, None]
    np.testing.assert_allclose(found.scores[query], 0, atol=1e-8)
    differences = np.square(audio[found.candidates] - audio[found.queries][:, None]).mean(axis=(2, 3))
    np.testing.assert_allclose(found.scores, -differences * np.mean([1 / 0.25, 1 / 0.81]), rtol=1e-3, atol=1e-5)


def test_a_network_that_ignores_the_video_is_at_chance():
    blind = lambda params, tokens, levels, label_B, assignment: Output({"audio": jnp.tanh(tokens["audio"])}, {})
    equal = lambda params, tokens, levels, label_B, assignment: Output({"audio": 0 * tokens["audio"]}, {})
    silent = clips() | {"audio": np.zeros((CLIPS, 4, 3), np.float32)}  # all scores are equal
    for summary in (run(blind).summary(), run(equal, silent).summary()):
        assert within_binomial(summary.top1, summary.top1_chance)
        assert within_binomial(summary.top1_within_material, summary.top1_within_material_chance)
        assert within_binomial(summary.material, summary.material_chance)
        assert abs(summary.reciprocal_rank - summary.reciprocal_rank_chance) < 0.07


def test_a_network_of_the_material_alone_retrieves_the_material():
    tone = np.random.default_rng(5).standard_normal((MATERIALS, 4, 3)).astype(np.float32)
    noise = np.random.default_rng(6).standard_normal((CLIPS, 4, 3)).astype(np.float32)
    latents = clips() | {"audio": 3 * tone[MATERIAL] + 0.3 * noise}
    network = predicting(lambda video: 3 * jnp.asarray(tone)[video[:, 0, 0, 0, 0].astype(int)])
    summary = run(network, latents).summary()
    assert summary.material == 1
    assert within_binomial(summary.top1, 1 / 8) and summary.top1 == summary.top1_within_material


def test_candidates_depend_on_seed_and_query_alone():
    for query in (0, 17, 191):
        chosen = _candidates(MATERIAL, query, FEW)
        assert len(set(chosen)) == 16 and query in chosen
        assert np.sum(MATERIAL[chosen] == MATERIAL[query]) == 8
        np.testing.assert_array_equal(chosen, _candidates(MATERIAL, query, FEW))
        assert set(chosen) != set(_candidates(MATERIAL, query, Retrieval(seed=1)))
    places = [list(_candidates(MATERIAL, query, FEW)).index(query) for query in range(CLIPS)]
    assert set(places) == set(range(16))


def test_ranks_are_counted_from_one_and_ties_go_by_order():
    found = Retrieved(
        queries=np.array([5, 6]),
        candidates=np.array([[1, 5, 2, 3], [6, 1, 2, 3]]),
        scores=np.array([[-1.0, -2.0, -0.5, -3.0], [-1.0, -1.0, -1.0, -1.0]]),
        same_material=np.array([[False, True, False, True], [True, False, True, False]]),
    )
    assert found.ranks().tolist() == [3, 1] and found.ranks_within_material().tolist() == [1, 1]
    assert found.summary()._asdict() == {
        "queries": 2,
        "top1": 0.5,
        "top1_chance": 0.25,
        "reciprocal_rank": pytest.approx(2 / 3),
        "reciprocal_rank_chance": pytest.approx(25 / 48),
        "top1_within_material": 1.0,
        "top1_within_material_chance": 0.5,
        "material": 0.5,
        "material_chance": 0.5,
    }


def test_scores_of_a_real_network_depend_on_its_video_and_not_on_the_batch():
    objective = SelfFlowObjective(
        JointConfig(width=16, heads=2, double_blocks=1, single_blocks=1, mlp_ratio=2.0, rotary=(2, 2, 2, 2), labels=7),
        MODALITIES,
        UniformTimestep(),
        NoAlignment(),
        modality_weight={},
        condition_drop=0.5,
    )
    random = np.random.default_rng(3)
    draw = lambda x: 0.3 * random.standard_normal(x.shape).astype(np.float32)
    params = jax.tree.map(draw, jax.eval_shape(objective.init, jax.random.key(0)))["model"]
    score = _scorer(objective.apply, MODALITIES, 7, FEW)
    videos, audio = clips()["video"], clips()["audio"]
    base = score(params, videos[0], audio[[0, 1, 2, 3]])
    np.testing.assert_allclose(score(params, videos[0], audio[[3, 2, 1, 0]])[::-1], base, rtol=1e-5)
    np.testing.assert_allclose(score(params, videos[0], audio[[0, 9, 8, 7]])[0], base[0], rtol=1e-5)
    assert np.ptp(score(params, videos[0], audio[[4, 4, 4, 4]])) < 1e-5  # one noise for all candidates
    assert np.abs(score(params, videos[1], audio[[0, 1, 2, 3]]) - base).min() > 1e-4
    four = Retrieval(candidates=4, taus=FEW.taus, draws=1)
    ask = lambda queries: (
        retrieve(objective.apply, params, MODALITIES, 7, clips(), MATERIAL, four, np.asarray(queries)).scores
    )
    np.testing.assert_array_equal(ask([4, 2]), ask([1, 2, 4])[[2, 1]])


@pytest.mark.parametrize(
    "words, arguments",
    [
        ("3 clips material 9 16 8", {"material": np.r_[MATERIAL[:-3], 9, 9, 9]}),
        ("4 clips materials 0 16 8", {"material": np.r_[np.zeros(CLIPS - 4, int), 1, 1, 1, 1]}),
        ("material label", {"material": np.r_[MATERIAL[:-1], -1]}),
        ("material label", {"material": MATERIAL.astype(float)}),
        ("192 clips video 191 labels", {"material": MATERIAL[:-1]}),
        ("queries 3 192 0 191", {"queries": np.array([3, 192])}),
        ("queries", {"queries": np.array([], int)}),
        ("video audio missing", {"latents": {"video": np.zeros((CLIPS, 2, 2, 2, 3))}}),
        ("clip 2 score", {"latents": clips() | {"video": np.full((CLIPS, 2, 2, 2, 3), np.nan)}}),
    ],
)
def test_clips_that_cannot_be_ranked_are_refused(words, arguments):
    network = predicting(lambda video: audio_of(video.reshape(len(video), -1)).reshape(-1, 4, 3))
    queries = {} if "material" in arguments else {"queries": np.arange(2, 5)}
    with pytest.raises(UserError, match=mentions(words)):
        run(network, **queries | arguments)


@pytest.mark.parametrize(
    "field, value",
    [
        ("candidates", 7),
        ("candidates", 2),
        ("taus", ()),
        ("taus", (0.0, 0.5)),
        ("taus", (1.5,)),
        ("taus", (float("nan"),)),
        ("draws", 0),
        ("seed", -1),
    ],
)
def test_settings_that_cannot_be_are_refused(field, value):
    with pytest.raises(UserError, match=mentions(f"retrieval.{field}", value)):
        Retrieval(**{field: value})
