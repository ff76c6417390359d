"""Atari: records, the synchrony of video and audio, and games that are refused."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfflow.data.atari import ACTION_NAMES, Atari
from selfflow.data.atari.console import Console
from selfflow.data.atari.episode import clip_starts, clips, frame_offsets, play, resample
from selfflow.data.built import load_builder
from selfflow.data.records import Records
from selfflow.errors import UserError
from tests.conftest import mentions

ale_py = pytest.importorskip("ale_py")

SMALL = Atari(train_clips=6, validation_clips=2, test_clips=2, clips_per_episode=3)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return Path(load_builder(SMALL, tmp_path_factory.mktemp("atari")).data_dir)


@pytest.fixture(scope="module")
def resimulated():
    """Episode 0 of train played again with ale-py alone: its screens, audio, points and positions of the ball."""
    played = play(SMALL, Console("pong"), "train", 0, 500)
    ale = ale_py.ALEInterface()
    ale.setInt("random_seed", 1)
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setBool("sound_obs", True)
    ale.loadROM(str(ale_py.roms.get_rom_path("pong")))
    ale.reset_game()
    screens, audio, points, ball = [], [], [], []
    for action in played.actions:
        points.append(ale.act(action))
        screens.append(ale.getScreenRGB().copy())
        audio.append(ale.getAudio().copy())
        ball.append(ale.getRAM()[[49, 54]].astype(int))
    return played.actions, np.stack(screens), np.concatenate(audio), np.array(points), np.array(ball)


def onsets(loud: np.ndarray, quiet: int) -> np.ndarray:
    """Positions of onsets after `quiet` samples of silence."""
    at = np.flatnonzero(loud)
    return at[1:][np.diff(at) > quiet]


def test_records(built):
    ids = set()
    for split, count in (("train", 6), ("validation", 2), ("test", 2)):
        records = Records(SMALL, built, split)
        assert len(records) == count
        for record in records:
            assert {name: record[name].shape for name in SMALL.media_shapes()} == SMALL.media_shapes()
            assert record["video"].dtype == record["image"].dtype == np.uint8 and record["audio"].dtype == np.int16
            assert record["action"].shape == record["score"].shape == (25,)
            assert record["action"].dtype == np.int32 and record["score"].dtype == np.float32
            assert set(record["action"]) <= {0, 1, 3, 4, 11, 12}
            assert record["present"]["audio"] == record["audio"].any()
            assert len(np.unique(record["video"].reshape(25, -1), axis=0)) > 5, "play moves"
            ids.add(record["id"])
    assert len(ids) == 10 and "atari-pong-test-000001" in ids
    metadata = json.loads((built / "metadata.json").read_text())
    assert metadata["actions"] == list(ACTION_NAMES) and metadata["ale_py"]
    assert ACTION_NAMES == tuple(ale_py.Action(i).name for i in range(18))
    assert not [path for path in built.iterdir() if path.suffix == ".bin"]


def test_video_audio_and_score_are_those_of_a_slow_simulation(built, resimulated):
    actions, screens, audio, points, _ = resimulated
    records = Records(SMALL, built, "train")
    for number, start in enumerate(clip_starts(SMALL)):
        record = records[number]
        shown = [start + round(i * 4.8) for i in range(25)]
        for i in (0, 1, 7, 12, 24):
            screen = Image.fromarray(np.maximum(screens[shown[i] - 1], screens[shown[i]]))
            np.testing.assert_array_equal(
                record["video"][i], np.asarray(screen.resize((32, 32), Image.Resampling.BICUBIC))
            )
        assert record["action"].tolist() == [actions[k + 1] for k in shown]
        edges = [*shown, start + 120]
        won = [points[a + 1 : b + 1].sum() for a, b in zip(edges[:-1], edges[1:], strict=True)]
        assert record["score"].tolist() == won
        held = [set(actions[a + 1 : b + 1]) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        assert all(len(held_once) == 1 for held_once in held), "one action leads from frame to frame"

        raw = audio[512 * start : 512 * (start + 120)]
        true = onsets(raw != 128, 3000) / 30720
        measured = onsets(np.abs(record["audio"].astype(int)) > 600, 600) / 8000
        assert len(true) == len(measured) and np.abs(true - measured).max(initial=0) < 0.001


def test_the_sound_of_pong_sets_in_when_the_ball_turns(resimulated):
    _, _, audio, points, ball = resimulated
    starts = [at // 512 for at in onsets(audio != 128, 3000)]
    turned = 0
    for k in starts:
        around = np.sign(np.diff(ball[k - 4 : k + 5], axis=0))
        turned += bool((around.max(0) * around.min(0) == -1).any()) or bool(points[k - 4 : k + 5].any())
    assert len(starts) >= 3 and turned == len(starts)


def test_an_impulse_keeps_its_time():
    for at in (5000, 10_007, 30_720):
        wave = np.full(61440, 128, np.uint8)
        wave[at : at + 8] = 200
        assert abs(np.argmax(np.abs(resample(wave, 8000))) - (at + 3.5) * 8000 / 30720) <= 1
    quiet = resample(np.full(30720, 128, np.uint8), 8000)
    tone = np.where(np.arange(61440) // 64 % 2, 220, 128).astype(np.uint8)
    assert not quiet.any() and abs(resample(tone, 8000)[8000:].mean()) < 1e-3, "no direct current"


@pytest.mark.parametrize(
    "changes",
    [
        {"frames_per_second": 60.0, "frames": 30},
        {"sample_rate": 22050},
        {"frames_per_second": 24.0, "frames": 48},
        {"sample_rate": 12345, "frames_per_second": 15.0},
    ],
)
def test_clips_start_on_a_sample_and_have_their_length(changes):
    settings = dataclasses.replace(SMALL, clips_per_episode=2, skip_seconds=0.5, **changes)
    starts = clip_starts(settings)
    assert all(start * settings.sample_rate % 60 == 0 for start in starts.tolist()) and starts[0] >= 30
    assert starts[1] - starts[0] >= settings.seconds * 60 and frame_offsets(settings)[0] == 0
    records = list(clips(settings, Console("pong"), "train", 1))
    assert [record["audio"].shape for record in records] == [(settings.samples,)] * 2
    assert records[0]["video"].shape == settings.media_shapes()["video"]


def test_the_same_settings_give_the_same_clips_and_others_do_not(built, tmp_path):
    again = Records(SMALL, load_builder(SMALL, tmp_path).data_dir, "validation")
    first = Records(SMALL, built, "validation")
    for one, two in zip(first, again, strict=True):
        assert one["video"].tobytes() == two["video"].tobytes() and one["audio"].tobytes() == two["audio"].tobytes()
    other = next(clips(dataclasses.replace(SMALL, seed=1), Console("pong"), "validation", 0))
    assert other["video"].tobytes() != first[0]["video"].tobytes()
    names = {dataclasses.replace(SMALL, **c).config_name for c in ({}, {"seed": 1}, {"game": "breakout"}, {"size": 64})}
    assert len(names) == 4


def test_a_built_set_is_read_without_the_package(built, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    again = load_builder(SMALL, built.parents[2])
    assert Path(again.data_dir) == built and len(again.as_data_source("test")) == 2
    with pytest.raises(UserError, match=mentions("ale-py pip selfflow[atari]")):
        load_builder(dataclasses.replace(SMALL, seed=5), built.parents[2])


def test_games_that_are_refused(tmp_path):
    for game, words in [
        ("pongg", "pong"),
        ("Ms-Pacman", "ms_pacman"),
        ("../../zzz", "adventure"),
        ("combat", "two players"),
    ]:
        with pytest.raises(UserError, match=mentions("atari.game", game, words)) as error:
            load_builder(Atari(game=game), tmp_path)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.array_record*"))
    assert {p.name for p in tmp_path.iterdir()} <= {"atari", "downloads"}
    with pytest.raises(UserError, match=mentions("atari.frames 5000 klax 400 s skip_seconds")):
        load_builder(Atari(game="klax", frames=5000, clips_per_episode=1), tmp_path)


def test_a_silent_game_and_empty_splits(tmp_path, capsys):
    settings = Atari(game="tetris", train_clips=2, validation_clips=0, test_clips=0)
    builder = load_builder(settings, tmp_path)
    assert mentions("tetris no audio").search(capsys.readouterr().err)
    assert list(builder.info.splits) == ["train"]
    record = Records(settings, builder.data_dir, "train")[0]
    assert record["present"] == {"video": True, "audio": False, "image": True} and not record["audio"].any()


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"frames_per_second": 61.0, "sample_rate": 6100}, "frames_per_second 61.0 60"),
        ({"sample_rate": 8001, "frames": 22, "frames_per_second": 15.0}, "sample_rate 8001 22 15"),
        ({"train_clips": 0}, "train_clips 0"),
        ({"size": 0}, "size 0"),
        ({"test_clips": -1}, "test_clips -1"),
        ({"frames": 2.5}, "frames 2.5"),
        ({"action_seconds": float("nan")}, "action_seconds nan"),
    ],
)
def test_settings_that_cannot_be(fields, words):
    with pytest.raises(UserError, match=mentions("atari", words)):
        Atari(**fields)


def test_importing_the_settings_is_cheap():
    code = (
        "import sys, json, selfflow.data.catalogue as c\n"
        "[kind().media_shapes() for name, kind in c.DATASETS.items() if name not in ('tfds', 'latent_files')]\n"
        "heavy = {'ale_py', 'av', 'PIL', 'tensorflow_datasets', 'soxr', 'numpy', 'jax', 'sklearn', 'mlxtend'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) == []
