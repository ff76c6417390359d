from pathlib import Path

import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.sampling.context_spec import check_trained, choose_component, component_of, merge_requests, parse_context

KNOWN = ("video", "audio", "image")
TABLE = {"modality": 0.1, "first_frame": 0.1, "prefix": 0.1, "inpaint_time": 0.1, "inpaint_region": 0.1}


@pytest.fixture
def pair(modalities):
    return {m: modalities[m] for m in ("video", "audio")}


def request_of(text):
    return parse_context(text, KNOWN)


def test_what_a_flag_says():
    request = request_of("video=a=b:c@d.mp4")
    assert (request.name, request.case, request.file, request.level) == ("video", "modality", Path("a=b:c@d.mp4"), 0)
    request = request_of("inpaint_region:0,0.25,0.5,1")
    assert request.case == "inpaint_region" and request.numbers == (0, 0.25, 0.5, 1) and request.file is None
    assert request_of("image@0.6=x.png").level == 0.6
    assert request_of("inpaint_time:0.5,1.5").numbers == (0.5, 1.5)


def test_masks_are_those_of_the_case(pair):
    assert {m: mask.all() for m, mask in merge_requests((request_of("audio"),), pair).items()} == {"audio": True}
    prefix = merge_requests((request_of("prefix:0.16"),), pair)
    np.testing.assert_array_equal(prefix["audio"], [1, 1, 0, 0, 0])
    assert merge_requests((request_of("first_frame"),), pair)["video"].sum() == 4
    assert merge_requests((request_of("audio@0.5"),), pair) == {}


@pytest.mark.parametrize(
    "text, said",
    [
        ("vidoe", "did you mean video"),
        ("everything", "prefix"),
        ("prefix", "write prefix:SECONDS"),
        ("prefix:x", "'x' is not a number"),
        ("prefix:0", "above 0"),
        ("inpaint_time:2,1", "FROM must be below TO"),
        ("inpaint_region:0,0,1", "LEFT,TOP,RIGHT,BOTTOM"),
        ("inpaint_region:0.5,0,0.2,1", "LEFT < RIGHT"),
        ("video:3", "write video"),
        ("video@1", "below 1"),
        ("prefix:1@0.5", "only a whole modality"),
    ],
)
def test_flags_that_say_nothing(text, said):
    with pytest.raises(UserError, match=f"--context {text}: .*{said}"):
        request_of(text)


@pytest.mark.parametrize(
    "texts, table, said",
    [
        (["video"], {"prefix": 0.5}, "schedule.context lacks modality"),
        (["prefix:0.1"], {"modality": 0.5}, "schedule.context lacks prefix"),
        (["inpaint_region:0,0,1,1"], {}, "schedule.context lacks inpaint_region"),
        (["video", "prefix:0.1"], TABLE, "one case in a sample"),
        (["video", "audio"], TABLE, "nothing is left"),
        (["prefix:9"], TABLE, "nothing is left"),
        (["prefix:0.01"], TABLE, "no token"),
        (["image"], TABLE, "no token"),
        (["audio@0.5"], TABLE, "of video, audio at the same"),
        (["audio@0.5", "video@0.4"], TABLE, "one noise level"),
    ],
)
def test_what_a_run_was_not_trained_for_is_refused(pair, texts, table, said):
    with pytest.raises(UserError, match=said):
        check_trained(tuple(map(request_of, texts)), pair, table)


@pytest.mark.parametrize("texts", [[], ["video"], ["prefix:0.2"], ["audio@0.5", "video@0.5"], ["video", "audio@0.5"]])
def test_what_it_was_trained_for_is_not(pair, texts):
    check_trained(tuple(map(request_of, texts)), pair, TABLE)


def test_starting_from_noised_data_needs_no_training(pair):
    check_trained((request_of("audio@0.5"), request_of("video@0.5")), pair, {})


def test_the_set_is_what_is_generated_and_given():
    mixture = {"joint": ("video", "audio"), "single": ("image",)}
    chosen = lambda names, *texts: choose_component(names, tuple(map(request_of, texts)), mixture)
    assert chosen(("audio",), "video")[0] == chosen((), "video")[0] == chosen((), "prefix:1")[0] == "joint"
    assert chosen((), "image@0.5")[0] == "single"
    name, (request,) = chosen(("video", "audio"), "image=a.png")
    assert name == "joint" and request.name == "first_frame" and request.file == Path("a.png")
    with pytest.raises(UserError, match="noise level"):
        chosen(("video", "audio"), "image@0.5=a.png")
    name, (request,) = choose_component((), (request_of("image=a.png"),), {"joint": ("video", "audio")})
    assert request.name == "first_frame"


def test_sets_are_those_of_the_mixture():
    mixture = {"joint": ("video", "audio"), "single": ("image",)}
    assert component_of(("audio", "video"), mixture) == "joint"
    with pytest.raises(UserError, match="joint: video, audio; single: image"):
        component_of(("video",), mixture)
