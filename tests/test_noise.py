import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from selfflow.errors import UserError
from selfflow.noise import (
    DiffusionForcing,
    DualTimestep,
    FullMasking,
    LogitNormalTau,
    UniformTau,
    UniformTimestep,
    corrupt,
    draw_eps,
)

LAYOUT = {"video": 20, "audio": 8}
SAMPLES = 4000
# A suite of tests that each fail by chance once in ten thousand runs; seeds are fixed, so they do not.
SIGNIFICANT = 1e-4


@pytest.fixture(scope="module")
def many():
    return jax.random.split(jax.random.key(3), SAMPLES)


def cdf(tau, x):
    """The exact distribution function, inverting the shift by hand."""
    x = x / (tau.shift - (tau.shift - 1) * x)
    if isinstance(tau, UniformTau):
        return x
    return stats.norm.cdf((stats.logistic.ppf(x) - tau.mean) / tau.std)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.5])
@pytest.mark.parametrize(
    "tau", [UniformTau(), UniformTau(shift=3.0), LogitNormalTau(), LogitNormalTau(-0.4, 1.2, 0.75)]
)
def test_dual_timesteps_keep_the_marginal_of_every_token(many, ratio, tau):
    schedule = DualTimestep(tau={"video": tau}, mask_ratio={"video": ratio, "audio": ratio})
    taus = jax.jit(lambda keys: schedule.sample(keys, LAYOUT).tau())(many)
    for m, distribution in (("video", tau), ("audio", UniformTau())):
        for token in (0, LAYOUT[m] - 1):
            p = stats.kstest(np.asarray(taus[m])[:, token], lambda x: cdf(distribution, x)).pvalue
            assert p > SIGNIFICANT, (m, token, p)


def test_dual_timesteps_are_independent_and_unsorted(many):
    levels = np.asarray(DualTimestep().sample(many, LAYOUT).levels["video"])
    t, s = levels.T
    assert abs(np.mean(t < s) - 0.5) < 4 * 0.5 / np.sqrt(SAMPLES)
    assert stats.spearmanr(t, s).pvalue > SIGNIFICANT


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.25, 0.5])
def test_masks_have_an_exact_count_and_favour_no_token(many, ratio):
    mask = np.asarray(DualTimestep(mask_ratio={"video": ratio}).sample(many, {"video": 20}).assignment["video"])
    assert (mask.sum(axis=1) == round(ratio * 20)).all()
    if ratio:
        counts = mask.sum(axis=0)
        # Tokens of one sample exclude each other: scale the chi-square of multinomial counts accordingly.
        chi2 = np.sum((counts - SAMPLES * ratio) ** 2) / (SAMPLES * ratio * (1 - ratio)) * 19 / 20
        assert stats.chi2.sf(chi2, 19) > SIGNIFICANT


def test_masks_of_modalities_are_independent(many):
    masks = DualTimestep(mask_ratio={"video": 0.5, "audio": 0.5}).sample(many, LAYOUT).assignment
    a, b = np.asarray(masks["video"])[:, 0], np.asarray(masks["audio"])[:, 0]
    assert stats.chi2_contingency(np.histogram2d(a, b, bins=2)[0]).pvalue > SIGNIFICANT


@pytest.mark.parametrize("make", [UniformTimestep, DualTimestep])
def test_shared_draws_keep_their_order_across_modalities_and_own_draws_are_independent(many, make):
    shift = {"video": UniformTau(shift=4.0)}
    shared = make(tau=shift).sample(many, LAYOUT).levels
    assert stats.spearmanr(shared["video"][:, 0], shared["audio"][:, 0]).statistic == pytest.approx(1.0)
    assert np.mean(shared["video"] >= shared["audio"]) == 1.0
    own = make(tau=shift, draw="per_modality").sample(many, LAYOUT).levels
    assert stats.spearmanr(own["video"][:, 0], own["audio"][:, 0]).pvalue > SIGNIFICANT


def test_rivals(many):
    masked = FullMasking(mask_ratio={"video": 0.25}).sample(many, {"video": 20})
    tau = np.asarray(masked.tau()["video"])
    assert ((tau == 1).sum(axis=1) == 5).all()
    assert (np.asarray(masked.at_min_level().tau()["video"]) == tau.min(axis=1, keepdims=True)).all()
    forced = np.asarray(DiffusionForcing().sample(many, {"video": 20}).tau()["video"])
    assert stats.spearmanr(forced[:, 0], forced[:, 1]).pvalue > SIGNIFICANT
    assert stats.kstest(forced.ravel()[::7], "uniform").pvalue > SIGNIFICANT
    single = np.asarray(UniformTimestep().sample(many, {"video": 20}).tau()["video"])
    assert (single == single[:, :1]).all()


@pytest.mark.parametrize("schedule", [UniformTimestep(), DualTimestep(), FullMasking(), DiffusionForcing()])
def test_the_teacher_is_never_noisier_than_any_student_token_of_its_modality(many, schedule):
    corruption = schedule.sample(many, LAYOUT)
    student, teacher = corruption.tau(), corruption.at_min_level().tau()
    for m in LAYOUT:
        assert (np.asarray(teacher[m]) <= np.asarray(student[m]).min(axis=1, keepdims=True)).all()
        assert (np.asarray(teacher[m]) == np.asarray(corruption.levels[m]).min(axis=1, keepdims=True)).all()


@pytest.mark.parametrize("schedule", [UniformTimestep(), DualTimestep(), FullMasking(), DiffusionForcing()])
def test_context_tokens_are_clean_for_both_networks_and_lower_nobody_else(many, schedule):
    keys = many[:16]
    context = {"video": jnp.zeros((16, 20), bool).at[:, :5].set(True)}
    free = schedule.sample(keys, LAYOUT)
    held = free.with_context(context)
    x = {m: jnp.ones((16, n, 3)) for m, n in LAYOUT.items()}
    eps = draw_eps(keys, x)
    for corruption in (held, held.at_min_level()):
        np.testing.assert_array_equal(corrupt(x, eps, corruption)["video"][:, :5], x["video"][:, :5])
    np.testing.assert_array_equal(held.tau()["video"][:, 5:], free.tau()["video"][:, 5:])
    np.testing.assert_array_equal(held.tau()["audio"], free.tau()["audio"])
    # The zero of the context is not mistaken for the lowest level of the others.
    np.testing.assert_array_equal(held.at_min_level().tau()["video"][:, 5:], free.at_min_level().tau()["video"][:, 5:])


def test_corruption_goes_from_data_to_noise():
    keys = jax.random.split(jax.random.key(0), 2)
    x = {"video": jnp.full((2, 20, 3), 2.0)}
    eps = draw_eps(keys, x)
    corruption = DualTimestep().sample(keys, {"video": 20})
    for end, expected in ((0.0, x), (1.0, eps)):
        at = corruption._replace(levels={"video": jnp.full((2, 2), end)})
        np.testing.assert_allclose(corrupt(x, eps, at)["video"], expected["video"])
    # d x_tau / d tau is the velocity
    moved = lambda t: corrupt(x, eps, corruption._replace(levels={"video": jnp.full((2, 2), t)}))["video"]
    np.testing.assert_allclose(jax.jacfwd(moved)(0.3), eps["video"] - x["video"], rtol=1e-5)


def test_noise_of_a_sample_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(0), 6)
    x = {"video": jnp.zeros((6, 20, 3)), "audio": jnp.zeros((6, 8, 2))}
    whole = draw_eps(keys, x)
    alone = draw_eps(keys[2:3], {"audio": x["audio"][2:3]})
    np.testing.assert_array_equal(whole["audio"][2], alone["audio"][0])
    sampled = DualTimestep().sample(keys, LAYOUT)
    again = DualTimestep().sample(keys[2:3], {"audio": 8})
    np.testing.assert_array_equal(sampled.tau()["audio"][2], again.tau()["audio"][0])


def test_a_mask_of_bernoulli_has_a_binomial_count():
    keys = jax.random.split(jax.random.key(0), 4000)
    schedule = DualTimestep(mask="bernoulli", mask_ratio={"video": 0.3})
    masked = np.asarray(schedule.sample(keys, {"video": 20}).assignment["video"])
    counts = np.bincount(masked.sum(1), minlength=21)
    expected = 4000 * stats.binom(20, 0.3).pmf(np.arange(21))
    few = expected < 5
    observed, expected = (np.append(x[~few], x[few].sum()) for x in (counts, expected))
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    assert stats.binomtest(int(masked[:, 7].sum()), 4000, 0.3).pvalue > 1e-3


def test_s_may_be_sorted_or_limited_to_a_band():
    keys = jax.random.split(jax.random.key(1), 4000)
    plain, ordered, band = (
        np.asarray(schedule.sample(keys, {"video": 20}).levels["video"])
        for schedule in (DualTimestep(), DualTimestep(sorted=True), DualTimestep(band=0.2))
    )
    np.testing.assert_array_equal(ordered, np.sort(plain, axis=1))
    t, s = band.T
    np.testing.assert_array_equal(t, plain[:, 0])
    deep = t > 0.2  # elsewhere s stops at 0
    assert stats.kstest((t - s)[deep], stats.uniform(0, 0.2).cdf).pvalue > 1e-3
    assert (s >= 0).all() and (s <= t).all() and abs(np.corrcoef(t[deep], (t - s)[deep])[0, 1]) < 0.1


@pytest.mark.parametrize(
    "make",
    [
        lambda: DualTimestep(band=0.0),
        lambda: DualTimestep(band=0.2, sorted=True),
        lambda: DualTimestep(mask_ratio={"video": 0.6}),
        lambda: FullMasking(mask_ratio={"video": -0.1}),
        lambda: UniformTau(shift=0.0),
        lambda: LogitNormalTau(std=0.0),
        lambda: DualTimestep(mask_ratio={}).sample(jax.random.split(jax.random.key(0), 2), LAYOUT),
    ],
)
def test_impossible_settings_are_named(make):
    with pytest.raises(UserError, match="mask_ratio|shift|std|band"):
        make()
