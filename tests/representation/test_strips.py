"""A clip as rows on one time axis: the places of its media and features."""

import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.representation.features.extract import Features
from selfflow.representation.figures.layers import probe_map, similarity_figure
from selfflow.representation.figures.strips import Body, Strips
from selfflow.representation.probes.probe_run import Row
from selfflow.representation.similarity import layer_similarity
from tests.conftest import mentions


@pytest.mark.parametrize(
    "options, shown, end",
    [
        ({}, list(range(0, 24, 2)), 1.92),  # 25 frames of 80 ms: each of twelve columns stands for two
        ({"start": 10, "every": 1, "columns": 10}, list(range(10, 20)), 1.6),
        ({"start": 22, "every": 1}, [22, 23, 24], 2.0),
        ({"columns": 40}, list(range(25)), 2.0),
    ],
)
def test_rows_share_the_time_that_their_columns_cover(options, shown, end):
    strips = Strips(25, 2.0, **options)
    assert strips.shown == shown
    strips.video("clip", np.zeros((25, 8, 8, 3), np.uint8))
    strips.audio("audio", np.zeros(16000, np.int16), 8000)
    strips.audio_tokens("audio", np.arange(50.0))
    axes = strips.figure("title", moment=1.5).axes[::2]
    for axis in axes:
        assert axis.get_xlim() == pytest.approx((shown[0] * 0.08, end))
    assert [axis.get_ylabel() for axis in axes] == ["clip", "audio", "audio"]


def test_each_frame_shows_its_own_tokens_and_circles():
    strips = Strips(8, 4.0, columns=4)  # frames 0, 2, 4, 6
    values = np.arange(4 * 2 * 3.0)  # a token spans two frames
    body = Body(4, (0.25, 0.75), 0.1, "red")
    strips.video_tokens("tokens", values, (4, 2, 3), bodies=[body, body._replace(frame=5)])
    axis = strips.figure("title").axes[0]
    for frame, image in enumerate(axis.images):
        np.testing.assert_array_equal(image.get_array(), values.reshape(4, 2, 3)[frame])
        assert image.get_extent()[0] == pytest.approx(frame, abs=0.05) and image.get_clim() == (0, 23)
    (circle,) = axis.patches  # frame 5 is not shown
    assert circle.center == pytest.approx((2.25, 0.25), abs=0.02)


def test_a_measure_of_all_layers_down_and_across():
    of = lambda layers, ids: Features(ids, {}, {k: {"a": np.array([[x]])} for k, x in layers.items()}, {}, {})
    down, across = of({1: 1.0, 4: 2.0}, ["one"]), of({1: 10.0, 2: 20.0, 4: 30.0}, ["one"])
    found = layer_similarity((down, "a"), (across, "a"), lambda x, y: (x - y).item())
    np.testing.assert_array_equal(found, [[-9, -19, -29], [-8, -18, -28]])
    with pytest.raises(UserError, match=mentions("sample 0 'one' 'other'")):
        layer_similarity((down, "a"), (of({1: 1.0}, ["other"]), "a"), None)
    with pytest.raises(UserError, match=mentions("features 1 2 samples")):
        layer_similarity((down, "a"), (of({1: 1.0}, ["one", "two"]), "a"), None)


def test_panels_are_labelled_by_run_target_and_source():
    random = np.random.default_rng(0)
    layers = {layer: {m: random.standard_normal((20, 5)) for m in ("video", "audio")} for layer in (1, 2, 3)}
    found = Features([str(i) for i in range(20)], {}, layers, {}, {})
    figure = similarity_figure({m: (found, m) for m in ("video", "audio")}, k=4)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[:3] == [f"linear CKA: {pair}" for pair in ("video", "audio", "video and audio")]
    of_run = ("r", "m", 0, 1, "ema", "count", "video")
    rows = [
        Row(*of_run, tau, layer, "knn", "r2", 1, 0, tau + layer, 0, 0, 0, "test", 8, 4)
        for tau in (0.1, 0.5)
        for layer in (1, 2)
    ]
    panel = probe_map(rows).axes[0]
    assert panel.get_title() == "m\ncount from video"
    np.testing.assert_allclose(panel.images[0].get_array(), [[1.1, 2.1], [1.5, 2.5]])
    assert [text.get_text() for text in panel.texts] == ["1.10", "2.10", "1.50", "2.50"]
