"""Components of tokens, and attention from contacts to bodies, on clips with a known answer."""

import jax
import numpy as np
import pytest

from selfflow.data.collisions.targets import CollisionsTargets
from selfflow.errors import UserError
from selfflow.representation import maps
from selfflow.representation.features.extract import features
from selfflow.representation.figures.maps import shares_figure, shares_table
from selfflow.representation.maps import (
    ClipLayout,
    ContactAttention,
    attention_of_clips,
    attention_on_bodies,
    contacts_as_tokens,
    principal_colours,
)
from selfflow.run.run import open_run
from tests.conftest import mentions

LAYOUT = ClipLayout(grid=(4, 2, 2), audio_tokens=10, seconds=2.0, truth=CollisionsTargets(2.0, 64.0, 12.5))


@pytest.fixture(scope="module")
def run(tiny_run):
    return open_run(tiny_run)


def test_components_are_those_of_all_clips_without_their_positions():
    random = np.random.default_rng(0)
    direction, position = np.eye(6)[:2], 50 * random.standard_normal((1, 8, 6))
    signal = random.standard_normal((5, 8, 2)) * [3.0, 1.0]
    x = (position + signal @ direction + 1e-3 * random.standard_normal((5, 8, 6))).astype(np.float32)
    colours, shares = principal_colours(x, components=2)
    assert colours.shape == (5, 8, 2) and colours.min() == 0 and colours.max() == 1
    left = signal - signal.mean(axis=0)
    for i in range(2):
        inside = (colours[..., i] > 0) & (colours[..., i] < 1)
        assert abs(np.corrcoef(colours[..., i][inside], left[..., i][inside])[0, 1]) > 0.98
    assert shares[0] > 0.6 and shares.sum() == pytest.approx(1, abs=1e-4)
    with pytest.raises(UserError, match=mentions("principal_colours 1 2")):
        principal_colours(x[:1])
    with pytest.raises(UserError, match=mentions("principal_colours all tokens")):
        principal_colours(np.ones((2, 3, 4)))


def record(**changes):
    """4 frames of 64 x 64 units; body 0 moves from left to right along the top, body 1 rests at the bottom right."""
    positions = np.zeros((4, 4, 2), np.float32)
    positions[:, 0] = [[8, 8], [20, 8], [40, 8], [56, 8]]
    positions[:, 1] = [48, 48]
    contacts = {"time": np.array([0.6]), "bodies": np.array([[0, -1]]), "impulse": np.ones(1)}
    fields = {"positions": positions, "velocities": positions * 0, "count": 2, "contacts": contacts}
    return fields | changes


def test_a_contact_is_told_by_its_tokens():
    (wall,) = contacts_as_tokens(record(), LAYOUT)
    assert (wall.bodies, wall.audio_token, wall.frames) == ((0,), 3, (1, 2))
    # Tokens of a frame are top left, top right, bottom left, bottom right.
    np.testing.assert_array_equal(wall.tokens, np.arange(4, 12))
    np.testing.assert_array_equal(wall.tokens[wall.holds], [4, 9])
    np.testing.assert_array_equal(wall.quiet, [0, 1, 4, 5, 6, 7, 8, 9])  # centres at 0.1, 0.3, ... seconds
    two = {"time": np.array([0.1, 1.9]), "bodies": np.array([[0, 1], [1, -1]]), "impulse": np.ones(2)}
    (pair,) = contacts_as_tokens(record(contacts=two), LAYOUT)  # nothing after the last frame
    assert pair.bodies == (0, 1) and set(pair.tokens[pair.holds]) == {0, 3, 4, 7}
    none = {"time": np.zeros(0), "bodies": np.zeros((0, 2), int), "impulse": np.zeros(0)}
    assert contacts_as_tokens(record(contacts=none), LAYOUT) == []


def test_bodies_in_one_token_both_count():
    positions = record()["positions"].copy()
    positions[:, 0], positions[:, 1] = [50, 50], [48, 48]
    pair = {"time": np.array([0.6]), "bodies": np.array([[0, 1]]), "impulse": np.ones(1)}
    (found,) = contacts_as_tokens(record(positions=positions, contacts=pair), LAYOUT)
    assert set(found.tokens[found.holds]) == {7, 11}


def test_attention_is_that_of_the_block_on_the_noise_of_features(run):
    clips = run.data("test")
    found = attention_of_clips(run, clips, [3, 5], (2, 3), 0.25)
    counts = {"text": 1} | {m: stream.tokens for m, stream in clips.modalities.items()}
    for layer in (2, 3):
        rows = sum(x.sum(-1) for x in found[layer]["audio"].values())
        assert rows.shape == (2, 2, counts["audio"])
        np.testing.assert_allclose(rows, 1, rtol=1e-5)
    # The velocity of another clip beside it, and the one alone: a clip's weights are its own.
    alone = attention_of_clips(run, clips, [5], (3,), 0.25)
    np.testing.assert_allclose(alone[3]["audio"]["video"][0], found[3]["audio"]["video"][1], atol=1e-5)
    other = attention_of_clips(run, clips, [5], (3,), 0.25, seed=1)
    assert np.abs(other[3]["audio"]["video"] - alone[3]["audio"]["video"]).max() > 1e-6


def test_tokens_are_those_that_features_sees(run, monkeypatch):
    """The noise is that of `features`: the model gets the same tokens at the same levels."""
    clips, kept = run.data("test"), []
    real = run.model()
    out = real.apply

    def recording(params, tokens, levels, label_B, assignment, **more):
        jax.debug.callback(lambda x: kept.append(np.asarray(x)), tokens["video"])
        return out(params, tokens, levels, label_B, assignment, **more)

    object.__setattr__(real, "apply", recording)
    try:
        features(run, clips, 1, 0.25, limit=1, cache=False)
        attention_of_clips(run, clips, [0], (1,), 0.25)
        jax.effects_barrier()
    finally:
        object.__setattr__(real, "apply", out)
    assert len(kept) == 2
    np.testing.assert_array_equal(kept[0], kept[1])


@pytest.mark.parametrize("looks", ["evenly", "at the bodies"])
def test_shares_are_those_of_attention_that_is_known(run, monkeypatch, looks):
    """Attention that is even has the bodies' share of the tokens; one that looks at them from the contact, all."""
    clips = run.data("test")
    layout = maps.layout_of(run, clips)

    def known(run, clips, numbers, layers, tau, **more):
        weight = np.full(
            (len(numbers), 2, layout.audio_tokens, np.prod(layout.grid)), 1.0 / (np.prod(layout.grid) + 10)
        )
        if looks == "at the bodies":
            for i, number in enumerate(numbers):
                for contact in contacts_as_tokens(clips.record(number), layout):
                    weight[i, :, contact.audio_token] = 0
                for contact in contacts_as_tokens(clips.record(number), layout):
                    weight[i][:, contact.audio_token, contact.tokens[contact.holds]] = 0.1
        return {layer: {"audio": {"video": weight}} for layer in layers}

    monkeypatch.setattr(maps, "attention_of_clips", known)
    found = attention_on_bodies(run, clips, range(6), (1, 3), batch_size=4)
    assert found.on_bodies.shape == (len(found.clip), 2, 2) and set(found.clip) <= set(range(6))
    spread = lambda values: np.broadcast_to(values[:, None, None], found.on_bodies.shape)
    quiet = np.isfinite(found.elsewhere)
    np.testing.assert_allclose(found.elsewhere[quiet], spread(found.tokens)[quiet], rtol=1e-6)
    assert found.moment == pytest.approx(2 / layout.grid[0])
    if looks == "evenly":
        np.testing.assert_allclose(found.on_bodies, spread(found.tokens), rtol=1e-6)
        np.testing.assert_allclose(found.on_moment, found.moment, rtol=1e-6)
    else:
        alone = [i for i, clip in enumerate(found.clip) if (found.clip == clip).sum() == 1]
        assert (found.on_bodies >= spread(found.tokens)).all() and found.on_bodies.mean() > 0.9
        assert np.allclose(found.on_bodies[alone], 1) and np.allclose(found.on_moment[alone], 1)


def test_lines_heads_and_even_shares_are_means_over_the_same_clips():
    """Clip 0 has two contacts and counts once; clip 2 has no time without contacts, and is not counted."""
    clip, share = np.array([0, 0, 1, 2]), np.array([0.2, 0.4, 0.7, 0.9])
    on_bodies = share[:, None, None] * np.array([[1.0, 1.0], [0.5, 1.5]])  # [C, L, A]
    elsewhere = np.where(clip == 2, np.nan, share / 2)[:, None, None] * np.ones((1, 2, 2))
    tokens, on_moment = np.array([0.1, 0.3, 0.4, 0.9]), on_bodies / 2
    found = ContactAttention(clip, (1, 3), on_bodies, elsewhere, tokens, on_moment, 0.25)
    left, middle, right, _ = shares_figure(found, found).axes
    bodies, quiet, untrained, even = (np.asarray(line.get_ydata()) for line in left.lines)
    for line in (bodies, untrained, 2 * quiet, 2 * middle.lines[0].get_ydata()):
        np.testing.assert_allclose(line, 0.5)
    np.testing.assert_allclose(even, 0.3)
    np.testing.assert_allclose(right.images[0].get_array(), np.array([[1.0, 0.5], [1.0, 1.5]]) * 0.5 / 0.3)
    table = shares_table(found)
    assert mentions("3 contacts 2 clips bodies 0.300").search(table)
    assert [line.split()[0:2] for line in table.splitlines()[3:]] == [["1", "0.500"], ["3", "0.500"]]


def test_without_times_without_contacts_all_clips_count():
    ones = np.ones((2, 1, 1))
    found = ContactAttention(np.arange(2), (1,), 0.5 * ones, np.nan * ones, np.full(2, 0.1), 0.2 * ones, 0.25)
    assert len(shares_figure(found, found).axes[0].lines) == 3
    assert mentions("2 contacts clips").search(shares_table(found))


def test_layers_clips_and_components_that_do_not_exist_are_named(run):
    clips = run.data("test")
    with pytest.raises(UserError, match=mentions("layers (4,) 3")):
        attention_of_clips(run, clips, [0], (4,))
    with pytest.raises(UserError, match=mentions("clip 12 test 0 11")):
        attention_of_clips(run, clips, [12], (1,))
    with pytest.raises(UserError, match=mentions("component image video audio")):
        attention_on_bodies(run, run.data("test", "image"), [0], (1,))
