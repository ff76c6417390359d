"""The catalogue: settings, shapes and cards of every data set."""

import dataclasses
import typing

import pytest

from selfflow.data.catalogue import DATASETS, AnyDataset, card
from selfflow.data.media import Media
from selfflow.errors import UserError
from selfflow.media import MEDIA
from selfflow.representation.probes.summary import SOURCES, columns_of
from tests.conftest import mentions


def test_every_data_set_keeps_the_contract():
    assert set(typing.get_args(AnyDataset)) == set(DATASETS.values())
    required = {
        "tfds": {"name": "x", "image": "image", "video": "video", "audio": "audio"},
        "latent_files": {"image": (32, 32, 3)},
    }
    for name, kind in DATASETS.items():
        settings = kind(**required.get(name, {}))
        assert settings.kind == name
        assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen
        shapes = settings.media_shapes()
        assert settings.licence
        assert shapes and set(shapes) <= set(MEDIA)
        for modality in {"video", "image"} & set(shapes):
            size = getattr(settings, "size", 32)
            assert shapes[modality][-3:] == (size, size, 3)
        if "video" in shapes:
            assert shapes["video"][0] == settings.frames and settings.frames_per_second > 0
        if "audio" in shapes:
            assert shapes["audio"] == (round(settings.frames / settings.frames_per_second * settings.sample_rate),)
        if settings.ground_truth is not None:
            assert all(column.source in SOURCES for column in columns_of(settings.ground_truth))
        assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(kind))
    assert Media(frames=5, sample_rate=100).media_shapes()["audio"] == (40,)


@pytest.mark.parametrize("name", DATASETS)
def test_cards(name):
    text = card(name)
    assert text.startswith("# ") and len(text) > 500 and "icence" in text
    assert f"build {name}" in text
    assert name in ("collisions", "latent_files") or ("| `id` |" in text and "`quality`" in text)


def test_a_card_that_does_not_exist():
    with pytest.raises(UserError, match=mentions("imagenet collisions tfds")):
        card("imagenet")
