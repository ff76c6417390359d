"""A data set of a few images and videos in memory, its autoencoders, and features of it in a file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from selfflow.autoencoders.linear import LinearAutoencoder, PatchPCA
from selfflow.data.built import BuiltDataset
from selfflow.data.dataset import Dataset
from selfflow.encoders import FeatureFiles
from selfflow.latents.encode import encode
from selfflow.latents.fit_autoencoder import FittedAutoencoder
from selfflow.latents.store import Latents
from selfflow.modality import Modality

MODALITIES = {"image": Modality((4, 4, 3), (2, 2)), "video": Modality((6, 4, 4, 3), (2, 2, 2), period=4.0)}
WIDTH = 5
FRAMES = 6


@dataclass(frozen=True)
class Settings(Dataset):
    kind: str = "small"


class InMemory(list):
    def shard_of(self, i: int) -> str:
        return "in-memory"


@dataclass(frozen=True)
class SmallSet(BuiltDataset):
    """Four records with an image of 16 x 16 and a video of six frames; the last one has no image."""

    def records(self, split: str) -> InMemory:
        random = np.random.default_rng(len(split))
        records = InMemory()
        for i in range(self.splits[split]):
            media = random.integers(0, 256, (1 + FRAMES, 16, 16, 3), np.uint8)
            present = {"image": i < 3, "video": True}
            media = {"image": media[0], "video": media[1:], "present": present}
            records.append({"id": f"{split}/{i}", "quality": 1.0} | media)
        return records

    @property
    def fingerprint(self) -> str:
        return "0"

    @property
    def deleted(self) -> list:
        return []


def small_set() -> SmallSet:
    return SmallSet(Settings(), "small/0", Path("nowhere"), {"train": 4}, {})


def features_of(i: int, m: str) -> np.ndarray:
    """The map of record i: [8, 8, E] for the image, [12, 8, 8, E] for the video, twice as fine as the latents."""
    return np.random.default_rng([i, m == "video"]).standard_normal((12,) * (m == "video") + (8, 8, WIDTH), np.float32)


def feature_file(path: Path, m: str, **changed: np.ndarray | None) -> FeatureFiles:
    """Writes them; `changed` replaces those of a record by its number, or leaves them out."""
    having = range(3) if m == "image" else range(4)
    tensors = {f"train/{i}": features_of(i, m) for i in having}
    tensors |= {f"train/{i.removeprefix('_')}": x for i, x in changed.items()}
    save_file({name: x for name, x in tensors.items() if x is not None}, path)
    return FeatureFiles(str(path), WIDTH)


def encoded(root: Path, encoders: dict, **more) -> Latents | None:
    fitted = {}
    for m in MODALITIES:
        config, path = PatchPCA(patch=4, channels=3), root / f"{m}.fitted.safetensors"
        media = [record[m] for record in small_set().records("train")]
        made = LinearAutoencoder.fit(config, [np.stack(media)])
        made.save(path)
        fitted[m] = FittedAutoencoder(config, path, made.identity, {})
    return encode(small_set(), fitted, MODALITIES, None, root, encoders=encoders, records_per_shard=2, **more)
