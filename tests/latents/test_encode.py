"""From built data sets to latents: complete, once, whichever process is killed, and never those of another one."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from selfflow.autoencoders.linear import LinearAutoencoder, MdctPCA, PatchPCA
from selfflow.config.shapes import all_streams
from selfflow.data.built import BuiltDataset, build
from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.latents.encode import EncodeShare, encode
from selfflow.latents.fit_autoencoder import fit_autoencoder
from selfflow.latents.store import Latents, shard_name
from selfflow.modality import Modality
from tests.conftest import mentions


@pytest.fixture(scope="module")
def prepared(tiny_experiment, data_dir):
    """The tiny data set, its fitted autoencoders and its latents in shards of five records."""
    built = build(tiny_experiment.data["collisions"], data_dir)
    fitted = {
        m: fit_autoencoder(m, config, {"collisions": built}, (), data_dir)
        for m, config in tiny_experiment.autoencoders.items()
    }
    return built, fitted, all_streams(tiny_experiment)


def encoded(prepared, folder, **more) -> Latents | None:
    built, fitted, modalities = prepared
    return encode(built, fitted, modalities, None, folder, records_per_shard=5, **more)


@pytest.fixture(scope="module")
def latents(prepared, tmp_path_factory):
    return encoded(prepared, tmp_path_factory.mktemp("whole"))


def contents(latents: Latents) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(latents.path.iterdir()) if not p.name.startswith("lock")}


def test_latents_are_the_encoded_records_in_order(prepared, latents):
    built, fitted, modalities = prepared
    for split in built.splits:
        records, source = built.records(split), latents.open_split(split)
        assert len(source) == len(records) == built.splits[split]
        for i in {0, 6, len(records) - 1} & set(range(len(records))):
            assert source.id(i) == records[i]["id"] and source.index["label/material"][i] == records[i]["material"]
            for m, f in fitted.items():
                with threadpool_limits(1):
                    expected = f.autoencoder().encode(records[i][m]).astype(np.float16)
                np.testing.assert_array_equal(source[i][m], expected)
                assert source[i][m].shape == modalities[m].latent
    assert latents.manifest["shards"]["train"] == [5, 5, 5, 5, 4]


def test_statistics_and_quality_are_in_the_manifest(latents):
    source = latents.open_split("train")
    for m in ("image", "video", "audio"):
        flat = np.concatenate([source[i][m].reshape(-1, source[i][m].shape[-1]) for i in range(len(source))])
        statistics = latents.manifest["statistics"][m]
        np.testing.assert_allclose(statistics["mean"], flat.astype(np.float64).mean(0), atol=1e-4)
        np.testing.assert_allclose(statistics["std"], flat.astype(np.float64).std(0), rtol=1e-3, atol=1e-4)
        assert statistics["positions"] == len(flat)
    quality = latents.manifest["quality"]
    assert quality["video"]["psnr_db"] > 15 and {"snr_db", "log_mel_distance", "snr_db/steel"} <= set(quality["audio"])


def test_latents_are_encoded_once(prepared, latents, capsys):
    before = contents(latents)
    again = encoded(prepared, latents.path.parents[1])
    assert again.path == latents.path and again.hash == latents.hash and contents(again) == before
    assert "encode" not in capsys.readouterr().err


def test_processes_and_hosts_make_the_same_folder(prepared, latents, tmp_path):
    assert contents(encoded(prepared, tmp_path / "two", share=EncodeShare(processes=2))) == contents(latents)
    first = encoded(prepared, tmp_path / "hosts", share=EncodeShare(host=0, hosts=2))
    assert first is None  # the other host's part is missing, and the folder does not count as complete
    (folder,) = (tmp_path / "hosts" / "latents").iterdir()
    with pytest.raises(UserError, match=mentions(folder, "manifest.json encode")):
        Latents(folder)
    assert contents(encoded(prepared, tmp_path / "hosts", share=EncodeShare(host=1, hosts=2))) == contents(latents)
    with pytest.raises(UserError, match=mentions("host 2 hosts")):
        EncodeShare(host=2, hosts=2)


_SLOW = """
import sys, time
from pathlib import Path
from tests.latents.test_encode import slow_encode
slow_encode(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def slow_encode(data_dir, folder) -> None:
    """What the process that is killed runs: a record takes 40 ms."""
    import selfflow.latents.encode_shard as shards
    from selfflow.config.files import load_experiment
    from tests.conftest import TINY

    plain = shards._encode_record
    shards._encode_record = lambda *args: time.sleep(0.04) or plain(*args)
    experiment = load_experiment(TINY)
    built = build(experiment.data["collisions"], data_dir)
    fitted = {m: fit_autoencoder(m, c, {"collisions": built}, (), data_dir) for m, c in experiment.autoencoders.items()}
    encode(built, fitted, all_streams(experiment), None, folder, records_per_shard=5)


def _start(data_dir, folder) -> subprocess.Popen:
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    return subprocess.Popen([sys.executable, "-c", _SLOW, str(data_dir), str(folder)], cwd=root)


def _finished(folder) -> int:
    return len(list(folder.glob("latents/*/*.index.safetensors")))


@pytest.mark.resilience
def test_kill_9_loses_and_repeats_nothing(prepared, latents, data_dir, tmp_path):
    """Killed twice in the middle of a shard; what was finished is kept, and the whole has every id once."""
    done = 0
    for wanted in (2, 5):
        process = _start(data_dir, tmp_path)
        while _finished(tmp_path) < wanted:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.1)  # into the next shard
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert _finished(tmp_path) >= wanted > done
        done = _finished(tmp_path)
    (folder,) = (tmp_path / "latents").iterdir()
    assert list(folder.glob("*.partial-*"))  # the kill did come in the middle
    times = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.index.safetensors")}
    shards = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.array_record")}
    whole = encoded(prepared, tmp_path)
    assert contents(whole) == contents(latents)  # the leftovers are gone, too
    kept = [p for p in folder.glob("*.array_record") if shards.get(p.name) == p.stat().st_mtime_ns]
    assert len(kept) >= len(times)  # finished shards were not encoded again
    for split in prepared[0].splits:
        ids = [whole.open_split(split).id(i) for i in range(prepared[0].splits[split])]
        assert ids == [prepared[0].records(split)[i]["id"] for i in range(len(ids))] and len(set(ids)) == len(ids)


@pytest.mark.resilience
def test_two_processes_at_once_make_one_folder(prepared, latents, data_dir, tmp_path, capfd):
    process = _start(data_dir, tmp_path)
    while not _finished(tmp_path):
        assert process.poll() is None
        time.sleep(0.01)
    mine = encoded(prepared, tmp_path)  # waits for the other
    assert process.wait() == 0 and mentions("another process").search(capfd.readouterr().err)
    assert contents(mine) == contents(latents)


def test_a_record_that_cannot_be_read_keeps_its_place(prepared, latents, tmp_path, capsys, monkeypatch):
    class Damaged:
        def __init__(self, records):
            self.records = records

        def __len__(self):
            return len(self.records)

        def __getitem__(self, i):
            if i == 7:
                raise BadRecord("collisions-train.array_record", "hash mismatch")
            return self.records[i]

    plain = BuiltDataset.records
    monkeypatch.setattr(
        BuiltDataset,
        "records",
        lambda self, split: Damaged(plain(self, split)) if split == "train" else plain(self, split),
    )
    partial = encoded(prepared, tmp_path)
    assert partial.manifest["unreadable"] == {"train": [[7, "collisions-train.array_record", "hash mismatch"]]}
    assert mentions("record 7 collisions-train.array_record hash mismatch").search(capsys.readouterr().err)
    source, whole = partial.open_split("train"), latents.open_split("train")
    assert 7 not in source.indices_with(("image",)) and len(source.indices_with(("image",))) == 23 and source[7] == {}
    np.testing.assert_array_equal(source[8]["audio"], whole[8]["audio"])


def test_too_many_bad_records_stop_it(prepared, latents, tmp_path, monkeypatch):
    monkeypatch.setattr("selfflow.latents.encode_shard._encode_record", _always_bad)
    for _ in range(2):  # the same command again finds them again
        with pytest.raises(UserError, match=mentions("50 collisions shard-x (no good)")):
            encoded(prepared, tmp_path)
    monkeypatch.undo()  # the data was repaired
    assert contents(encoded(prepared, tmp_path)) == contents(latents)


def test_hosts_that_end_together_join_the_shards_once(prepared, latents, tmp_path, monkeypatch):
    """Host 1 has seen that all shards are there; before it joins them, host 0 does, and clears up."""
    import selfflow.latents.encode as module

    plain, calls = module.locked, []

    def locked(path, task):
        if path.name == "lock-finish" and not calls:
            calls.append(path)
            encoded(prepared, tmp_path, share=EncodeShare(host=0, hosts=2))
        return plain(path, task)

    assert encoded(prepared, tmp_path, share=EncodeShare(host=0, hosts=2)) is None
    monkeypatch.setattr(module, "locked", locked)
    found = encoded(prepared, tmp_path, share=EncodeShare(host=1, hosts=2))
    assert calls and contents(found) == contents(latents)


def _always_bad(*_):
    raise BadRecord("shard-x", "no good")


def test_latents_that_are_not_finite_or_of_another_shape_are_left_out(prepared, tmp_path, monkeypatch):
    plain = LinearAutoencoder.encode_distribution
    calls = []

    def encode_distribution(self, media):
        mean, std = plain(self, media)
        if isinstance(self.config, PatchPCA) and media.ndim == 3:
            calls.append(0)
            mean = np.full_like(mean, np.nan) if len(calls) == 3 else mean
        return mean, std

    monkeypatch.setattr(LinearAutoencoder, "encode_distribution", encode_distribution)
    found = encoded(prepared, tmp_path)
    ((record, shard, reason),) = found.manifest["unreadable"]["train"]
    assert record == 2 and reason == "the latents of its image are not finite" and found.open_split("train").id(2)


def test_stochastic_autoencoders_leave_mean_and_std(prepared, tmp_path, monkeypatch):
    plain = LinearAutoencoder.encode_distribution
    monkeypatch.setattr(
        LinearAutoencoder,
        "encode_distribution",
        # However they lie in memory: as those of torch, channels first.
        lambda self, x: tuple(map(np.asfortranarray, (plain(self, x)[0], np.tanh(plain(self, x)[0]) ** 2))),
    )
    record = encoded(prepared, tmp_path).open_split("train")[3]
    assert set(record) == {"image", "video", "audio", "image.std", "video.std", "audio.std"}
    assert record["video.std"].shape == record["video"].shape
    expected = plain(prepared[1]["video"].autoencoder(), prepared[0].records("train")[3]["video"])[0]
    np.testing.assert_allclose(record["video"], expected, atol=5e-3, rtol=2e-3)


def test_latents_of_another_autoencoder_resolution_or_rate_are_refused_by_name(latents, tiny_experiment):
    configs, modalities = tiny_experiment.autoencoders, all_streams(tiny_experiment)
    latents.check(configs, modalities)
    latents.check(configs, modalities | {"video": modalities["video"].lasting(5)})  # another length is no other data
    faster = dataclasses.replace(modalities["video"], period=4.0)
    for config, modality, words in (
        ({"image": PatchPCA(patch=4)}, {}, "image autoencoder 'patch': 8 4"),
        ({"audio": MdctPCA(temporal_stride=160)}, {}, "audio autoencoder 'temporal_stride': 320 160"),
        ({}, {"image": Modality((8, 8, 32), (1, 1))}, "image [4, 4, 32] [8, 8, 32]"),
        ({}, {"video": faster}, "video period 8.0 4.0"),
    ):
        with pytest.raises(UserError, match=mentions(latents.path, words)):
            latents.check(configs | config, modalities | modality)


def test_another_build_of_the_data_is_another_folder(prepared, latents, tmp_path):
    built, fitted, modalities = prepared
    other = dataclasses.replace(built, name=built.name.replace("collisions", "collided"))
    found = encode(other, fitted, modalities, None, latents.path.parents[1], records_per_shard=5)
    assert found.path != latents.path and found.hash != latents.hash


def test_an_autoencoder_is_fitted_once_without_the_excluded(prepared, tiny_experiment, tmp_path):
    built, fitted, _ = prepared
    config = tiny_experiment.autoencoders["image"]
    found = fit_autoencoder("image", config, {"c": built}, (), tmp_path)
    assert found.identity == fitted["image"].identity  # another folder, the same numbers
    assert fit_autoencoder("image", config, {"c": built}, (), tmp_path) == found
    ids = [built.records("train")[i]["id"] for i in range(24)]
    without = fit_autoencoder("image", config, {"c": built}, {ids[4], ids[9]}, tmp_path)
    assert without.identity != found.identity and list(without.fitted_on.values()) == [22]
    left = [built.records("train")[i]["image"] for i in range(24) if i not in (4, 9)]
    by_hand = LinearAutoencoder.fit(config, [np.stack(left)])
    np.testing.assert_allclose(np.abs(without.autoencoder().arrays["mean"]), np.abs(by_hand.arrays["mean"]), rtol=1e-4)


def test_a_damaged_folder_is_named(prepared, latents, tmp_path):
    import shutil

    for name in ("manifest.json", "train.index.safetensors", "autoencoder_image.safetensors"):
        folder = tmp_path / name
        shutil.copytree(latents.path, folder)
        (folder / name).write_bytes((folder / name).read_bytes()[:50])
        with pytest.raises(UserError, match=mentions(folder / name, "damaged")):
            damaged = Latents(folder)
            damaged.open_split("train")
            damaged.autoencoder("image", prepared[1]["image"].config)
    swapped = tmp_path / "swapped"
    shutil.copytree(latents.path, swapped)
    other = LinearAutoencoder.fit(prepared[1]["image"].config, [np.zeros((2, 32, 32, 3), np.uint8)])
    other.save(swapped / "autoencoder_image.safetensors")
    identities = other.identity, prepared[1]["image"].identity
    with pytest.raises(UserError, match=mentions(swapped / "autoencoder_image.safetensors", *identities)):
        Latents(swapped).autoencoder("image", prepared[1]["image"].config)


def test_shards_are_named_as_tfds_does():
    assert shard_name("train", 3, 12) == "train-00003-of-00012.array_record"
