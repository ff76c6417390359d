"""Features of frozen encoders: stored beside the latents, averaged over tokens, and never those of another encoder."""

import dataclasses

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from safetensors.numpy import load, save, save_file

from selfflow.data.verify import Contents
from selfflow.encoders import EffNetLite0, FeatureFiles
from selfflow.encoders.effnet import EffNet
from selfflow.encoders.load import load_encoder
from selfflow.errors import UserError
from selfflow.input.batches import BatchSource
from selfflow.input.mixture import Component
from selfflow.latents.delete.remove import LatentsChange, apply_change, read_raw
from selfflow.latents.encode import EncodeShare
from selfflow.latents.features import check_features, mean_over_grid, overlap_shares, token_features
from selfflow.latents.verify import verify_latents
from selfflow.modality import Modality
from selfflow.run.prepare_data import latents_hash
from tests.conftest import mentions
from tests.input.small_set import FRAMES, MODALITIES, WIDTH, encoded, feature_file, features_of, small_set


@pytest.fixture
def files(tmp_path):
    return {m: feature_file(tmp_path / f"{m}.safetensors", m) for m in MODALITIES}


def means(x: np.ndarray, *block: int) -> np.ndarray:
    """Means over blocks of cells along the leading axes."""
    for axis, size in enumerate(block):
        x = x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :]).mean(axis + 1)
    return x


def feed(latents, frames: int = FRAMES, **control) -> BatchSource:
    modalities = {m: x.lasting(frames) if x.period else x for m, x in MODALITIES.items()}
    mixture = {"clips": Component(("video",), 1.0, 4, data="d", **control)}
    shapes = {"clips": {"video": modalities["video"]}}
    return BatchSource({"d": latents}, mixture, shapes, features={"video": WIDTH, "image": WIDTH})


def test_shares_of_areas():
    np.testing.assert_allclose(overlap_shares(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    np.testing.assert_allclose(overlap_shares(3, 2), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], rtol=1e-6)
    np.testing.assert_allclose(overlap_shares(2, 3), [[1, 0], [0.5, 0.5], [0, 1]])
    for size, parts in ((14, 4), (7, 16), (5, 5)):
        np.testing.assert_allclose(overlap_shares(size, parts).sum(1), 1, rtol=1e-6)
    assert (overlap_shares(5, 5) == np.eye(5)).all()


def test_a_target_is_the_mean_over_the_tokens_area_and_time():
    """Where the map has the latent's positions, it is cut into tokens like the latent itself."""
    modality = Modality((6, 4, 8, WIDTH), (2, 2, 4), period=4.0)
    features = np.random.default_rng(0).standard_normal((6, 4, 8, WIDTH), np.float32)
    patches = np.asarray(modality.to_tokens(features[None]))[0].reshape(modality.tokens, WIDTH, -1)
    np.testing.assert_allclose(token_features(features, modality), patches.mean(-1), atol=2e-3)
    # Fourteen cells on four tokens: each has three and a half of them.
    fourteen = np.random.default_rng(1).standard_normal((14, 14, WIDTH), np.float32)
    by_hand = means(fourteen.repeat(2, 0).repeat(2, 1), 7, 7)
    np.testing.assert_allclose(mean_over_grid(fourteen, (4, 4)), by_hand, atol=1e-6)
    # What is stored in between changes nothing.
    np.testing.assert_allclose(mean_over_grid(mean_over_grid(fourteen, (8, 8)), (4, 4)), by_hand, atol=1e-6)


def test_stored_features_are_those_of_effnet_itself(tmp_path):
    latents = encoded(tmp_path, {"video": EffNetLite0()})
    network, record = EffNet("image"), small_set().records("train")[3]
    stored = latents.open_split("train")[3]["video.features"]
    assert stored.shape == (6, 4, 4, 112) and stored.dtype == np.float16
    direct = load_encoder(EffNetLite0())(record["video"])
    assert direct.shape == (6, 14, 14, 112)
    by_hand = np.stack([means(each.repeat(2, 0).repeat(2, 1), 7, 7) for each in direct])
    np.testing.assert_allclose(stored, by_hand, atol=2e-3, rtol=1e-3)
    # Means over areas keep the mean over the whole map, which is the extractor's feature of a frame.
    np.testing.assert_allclose(stored.astype(np.float32).mean((1, 2)), network(record["video"]), atol=2e-3)
    entry = latents.manifest["features"]["video"]
    assert entry["identity"] == network.identity.replace("EffNet-", "EffNetLite0-") and entry["width"] == 112


def test_features_of_files_are_stored_beside_the_latents(tmp_path, files):
    latents = encoded(tmp_path, files)
    for i in range(4):
        stored = latents.open_split("train")[i]
        assert stored["video.features"].shape == (6, 4, 4, WIDTH)  # nowhere finer than the latent
        np.testing.assert_allclose(stored["video.features"], means(features_of(i, "video"), 2, 2, 2), atol=2e-3)
        assert ("image.features" in stored) == (i < 3)
    assert latents.manifest["features"]["video"]["settings"]["kind"] == "feature_files"
    plain = encoded(tmp_path, {})
    # Evaluations compare runs by the hash of the latents; training data includes the features.
    assert plain.path != latents.path and plain.hash == latents.hash and plain.features == {}
    assert latents_hash({"d": plain}) == plain.hash != latents_hash({"d": latents})
    np.testing.assert_array_equal(plain.open_split("train")[1]["video"], latents.open_split("train")[1]["video"])


def test_hosts_make_the_same_and_other_features_another_folder(tmp_path, files):
    alone = encoded(tmp_path, files)
    (tmp_path / "hosts").mkdir()
    assert encoded(tmp_path / "hosts", files, share=EncodeShare(host=0, hosts=2)) is None
    both = encoded(tmp_path / "hosts", files, share=EncodeShare(host=1, hosts=2))
    for path in alone.path.glob("*.array_record"):
        assert path.read_bytes() == (both.path / path.name).read_bytes()
    assert encoded(tmp_path, files).path == alone.path
    again = feature_file(tmp_path / "other.safetensors", "video", _1=features_of(9, "video"))
    other = encoded(tmp_path, files | {"video": again})
    assert other.path != alone.path and latents_hash({"d": other}) != latents_hash({"d": alone})


@pytest.mark.parametrize("control", [{}, {"delayed": {"video": 0.08}}, {"shuffled": ("video",)}])
def test_targets_move_with_their_latents(tmp_path, files, control):
    """Crops of four frames, drawn anew: the features of each token are those of the frames that it is made of."""
    latents = encoded(tmp_path, files)
    latent = np.stack([latents.open_split("train")[i]["video"] for i in range(4)])
    stored = np.stack([latents.open_split("train")[i]["video.features"] for i in range(4)]).astype(np.float32)
    starts = set()
    for batch, _ in feed(latents, frames=4, **control).batches(0, 6):
        assert batch["features"]["video"].shape == (4, 8, WIDTH)
        for x, target in zip(batch["latents"]["video"], batch["features"]["video"]):
            frames = [np.argwhere((latent == frame).all((2, 3, 4)))[0] for frame in x]
            starts.add(int(frames[0][1]))
            own = np.stack([stored[i, t] for i, t in frames])
            np.testing.assert_allclose(target, means(own, 2, 2, 2).reshape(8, WIDTH), atol=2e-3)
    assert len(starts) > 1


def test_clips_that_are_too_short_are_padded(tmp_path, files):
    (batch, _), *_ = feed(encoded(tmp_path, files), frames=8).batches(0, 1)
    assert (batch["frames"]["video"] == FRAMES).all() and batch["features"]["video"].shape == (4, 16, WIDTH)
    assert (batch["features"]["video"][:, 12:] == 0).all() and (batch["features"]["video"][:, :12] != 0).all()


def damaged(latents, change) -> None:
    """Changes the arrays of record 0."""
    path = next(latents.path.glob("train-00000-*.array_record"))
    first, *rest = read_raw(path)
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for raw in (save(change(load(first))), *rest):
        writer.write(raw)
    writer.close()


DAMAGES = [
    (lambda x: x | {"video.features": np.full_like(x["video.features"], np.nan)}, ""),
    (lambda x: x | {"video.features": x["video.features"][..., :3].copy()}, "(6, 4, 4, 3) 5"),
    (lambda x: x | {"video.features": x["video.features"][:5].copy()}, "5 frames 6"),
    (lambda x: {name: a for name, a in x.items() if name != "video.features"}, "missing"),
]


@pytest.mark.parametrize(("change", "words"), DAMAGES)
def test_damaged_features_are_found_and_have_weight_0(tmp_path, files, change, words):
    latents = encoded(tmp_path, files)
    contents = Contents({"train": [f"train/{i}" for i in range(4)]}, {"train": [{"quality": 1.0}] * 4})
    assert verify_latents(latents.path, small_set(), contents) == []
    damaged(latents, change)
    (problem,) = verify_latents(latents.path, small_set(), contents)
    assert problem.record == "train/0"
    reader = feed(latents).reader("clips", "train")
    assert reader(0)["weight"] == 0 and not reader(0)["features"]["video"].any() and reader(1)["weight"] == 1
    for detail in (problem.detail, reader.why(0)[1]):
        assert mentions("video.features", words).search(detail)


def test_deleted_samples_take_their_features_along(tmp_path, files):
    latents = encoded(tmp_path, files)
    before = [latents.open_split("train")[i] for i in range(4)]
    apply_change(LatentsChange(latents.path, latents.manifest, {"train": np.array([True, False, True, True])}, []))
    left = type(latents)(latents.path)
    kept = [left.open_split("train")[i] for i in range(3)]
    assert [left.open_split("train").id(i) for i in range(3)] == ["train/0", "train/2", "train/3"]
    for old, new in zip([before[0], before[2], before[3]], kept):
        np.testing.assert_array_equal(old["video.features"], new["video.features"])
    raw = b"".join(path.read_bytes() for path in latents.path.iterdir())
    assert before[1]["video.features"].tobytes() not in raw and before[2]["video.features"].tobytes() in raw


def test_latents_from_elsewhere_must_have_the_features(tmp_path, files):
    latents = encoded(tmp_path, {"video": files["video"]})
    known = {"video": latents.manifest["features"]["video"]["identity"]}
    check_features(latents, {"video": files["video"]}, known)
    check_features(latents, {"video": FeatureFiles("not/here", WIDTH)}, {})
    for encoders, identities, words in (
        (files, {}, "image alignment.encoders"),
        ({"video": files["video"]}, {"video": "files-0"}, f"alignment.encoders.video {known['video']} files-0"),
        ({"video": dataclasses.replace(files["video"], width=6)}, {}, "alignment.encoders.video 5 channels 6"),
        ({"video": EffNetLite0()}, {}, "alignment.encoders.video feature_files efficientnet_lite0"),
    ):
        with pytest.raises(UserError, match=mentions(latents.path, "features", words)):
            check_features(latents, encoders, identities)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"_1": None, "_3": None}, "alignment.encoders.video 2 4 train/1"),
        ({"_2": np.zeros((12, 8, 8, 4), np.float32)}, "alignment.encoders.video train/2 [12, 8, 8, 4] [T, h, w, 5]"),
        ({"_2": np.zeros((8, 8, WIDTH), np.float32)}, "alignment.encoders.video train/2 [8, 8, 5] [T, h, w, 5]"),
        ({"_0": np.zeros((0, 8, 8, WIDTH), np.float32)}, "alignment.encoders.video train/0 [0, 8, 8, 5]"),
        ({"_0": np.full((6, 4, 4, WIDTH), np.nan, np.float32)}, "alignment.encoders.video train/0 float16"),
        ({"_0": np.full((6, 4, 4, WIDTH), 1e6, np.float32)}, "alignment.encoders.video train/0 float16"),
        ({"_0": np.zeros((6, 4, 4, WIDTH), np.int32)}, "f.safetensors train/0 I32 F16"),
    ],
)
def test_features_that_do_not_fit_are_named(tmp_path, changed, words):
    with pytest.raises(UserError, match=mentions(words)):
        encoded(tmp_path, {"video": feature_file(tmp_path / "f.safetensors", "video", **changed)})


def test_files_that_hold_no_features_are_named(tmp_path):
    cut, twice = tmp_path / "cut.safetensors", tmp_path / "twice"
    (tmp_path / "empty").mkdir()
    twice.mkdir()
    feature_file(cut, "video")
    cut.write_bytes(cut.read_bytes()[:-100])
    for name in "ab":
        save_file({"train/0": features_of(0, "video")}, twice / f"{name}.safetensors")
    for path, words in (
        (tmp_path / "nowhere", ".safetensors folder"),
        (tmp_path / "empty", ".safetensors folder"),
        (cut, "deserializing"),
        (twice, "train/0 a.safetensors b.safetensors"),
    ):
        with pytest.raises(UserError, match=mentions(path, words)):
            encoded(tmp_path, {"video": FeatureFiles(str(path), WIDTH)})
    with pytest.raises(UserError, match=mentions("width x 0")):
        FeatureFiles("x", 0)


def test_a_folder_of_files_is_one(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for i in range(4):
        save_file({f"train/{i}": features_of(i, "video")}, folder / f"{i}.safetensors")
    parts = encoded(tmp_path, {"video": FeatureFiles(str(folder), WIDTH)})
    whole = encoded(tmp_path, {"video": feature_file(tmp_path / "whole.safetensors", "video")})
    for i in range(4):
        a, b = (latents.open_split("train")[i]["video.features"] for latents in (parts, whole))
        np.testing.assert_array_equal(a, b)
