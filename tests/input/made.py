"""Folders of latents made by hand, so that tests know every number in them."""

import json
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from safetensors.numpy import save, save_file

from selfflow.input.batches import BatchSource
from selfflow.input.mixture import Component
from selfflow.latents.ids import encode_ids
from selfflow.latents.store import Latents, shard_name
from selfflow.modality import Modality

MODALITIES = {
    "image": Modality((2, 2, 3), (1, 1)),
    "video": Modality((5, 2, 2, 3), (1, 1, 1), period=8.0),
    "audio": Modality((10, 4), (2,), period=4.0),
}


def record(i: int, modalities=("image", "video", "audio"), frames: int = 5) -> dict[str, np.ndarray]:
    """Latents that say which record and which moment they are: every number is i + moment / 64 (10 ms: t / 8)."""
    found = {}
    for m in modalities:
        shape = MODALITIES[m].latent
        if m != "image":
            shape = (frames * (2 if m == "audio" else 1), *shape[1:])
        moment = np.arange(shape[0]) / (2 if m == "audio" else 1) if m != "image" else np.zeros(shape[0])
        value = i + np.floor(moment) / 64
        found[m] = np.broadcast_to(value.reshape(-1, *[1] * (len(shape) - 1)), shape).astype(np.float16)
    return found


def write(
    folder: Path,
    records: list[dict[str, np.ndarray]],
    *,
    per_shard=4,
    quality=None,
    labels=None,
    name="made",
    split="train",
) -> Path:
    """Writes records as one split of a folder of latents."""
    folder.mkdir(parents=True, exist_ok=True)
    bounds = [(i, min(i + per_shard, len(records))) for i in range(0, len(records), per_shard)]
    for number, (start, stop) in enumerate(bounds):
        path = folder / shard_name(split, number, len(bounds))
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for each in records[start:stop]:
            writer.write(save(each))
        writer.close()
    index = {
        "id": encode_ids([f"{name}-{i}" for i in range(len(records))]),
        "quality": np.asarray(quality if quality is not None else np.ones(len(records)), np.float32),
        "caption": np.array([len(r.get("caption", ())) for r in records], np.int32),
    }
    for m, modality in MODALITIES.items():
        index[f"present/{m}"] = np.array([m in r for r in records])
        if modality.period:
            index[f"frames/{m}"] = np.array([len(r.get(m, ())) for r in records], np.int32)
    if labels is not None:
        index["label/kind"] = np.asarray(labels, np.int64)
    save_file(index, folder / f"{split}.index.safetensors")
    manifest = {
        "dataset": name,
        "fingerprint": "0",
        "deleted": [],
        "shards": {split: [stop - start for start, stop in bounds]},
        "modalities": {
            m: {"identity": "x", "latent": list(x.latent), "period": x.period} for m, x in MODALITIES.items()
        },
        "text": None,
        "features": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def feed(folders: dict[str, Path], mixture: dict[str, Component], exclude=(), frames: int = 5, **more) -> BatchSource:
    """A feed whose clips last `frames` video frames."""
    lasting = {m: x.lasting(frames * (2 if m == "audio" else 1)) if x.period else x for m, x in MODALITIES.items()}
    modalities = {name: {m: lasting[m] for m in component.modalities} for name, component in mixture.items()}
    return BatchSource({name: Latents(path, exclude) for name, path in folders.items()}, mixture, modalities, **more)


def take(stream) -> list[tuple[dict, dict]]:
    """All batches of a `Batches`."""
    return list(stream)


def numbers(batch: dict) -> list[int]:
    """Which record stands in each row of a batch, read from the latents themselves."""
    (latents, *_) = batch["latents"].values()
    return [int(np.floor(x.ravel()[0])) for x in latents]
