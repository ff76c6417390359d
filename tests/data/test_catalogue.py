"""The catalogue: settings, shapes and cards of every data set."""

import dataclasses
import typing

import pytest

from selfflow.data.catalogue import DATASETS, Dataset, card
from selfflow.data.media import Media
from selfflow.data.tfds import Tfds
from selfflow.errors import UserError


def test_every_data_set_keeps_the_contract():
    assert set(typing.get_args(Dataset)) == set(DATASETS.values())
    for name, kind in DATASETS.items():
        settings = kind(name="x", image="image", video="video", audio="audio") if kind is Tfds else kind()
        assert settings.kind == name and dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen
        shapes = settings.media_shapes()
        assert settings.licence
        assert shapes and set(shapes) <= {"video", "audio", "image"}
        for modality in {"video", "image"} & set(shapes):
            assert shapes[modality][-3:] == (settings.size, settings.size, 3)
        if "video" in shapes:
            assert shapes["video"][0] == settings.frames and settings.frames_per_second > 0
        if "audio" in shapes:
            assert shapes["audio"] == (round(settings.frames / settings.frames_per_second * settings.sample_rate),)
        assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(kind))
    assert Media(frames=5, sample_rate=100).media_shapes()["audio"] == (40,)


@pytest.mark.parametrize("name", DATASETS)
def test_cards(name):
    text = card(name)
    assert text.startswith("# ") and len(text) > 500 and "icence" in text
    assert "| `id` |" in text and "`quality`" in text and f"build {name}" in text or name == "collisions"


def test_a_card_that_is_not_there():
    with pytest.raises(UserError, match="no data set 'imagenet'; choose from collisions"):
        card("imagenet")
