"""A data folder with a small data set in several shards, its autoencoders, and its latents, finished and not."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from selfflow.config.shapes import all_streams
from selfflow.data.built import BuiltDataset, build
from selfflow.latents.encode import EncodeShare, encode
from selfflow.latents.fit_autoencoder import fit_autoencoder
from selfflow.latents.store import Latents


def make_home(experiment, root: Path) -> tuple[BuiltDataset, Path]:
    """Builds collisions with five shards of train and latents of five records a shard.

    Returns:
      The data set, and the folder of its finished latents; `root` holds both, and an unfinished folder of latents.
    """
    import selfflow.data.writing as writing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "SHARD_BYTES", 500_000)
        built = build(experiment.data["collisions"], root)
    modalities = all_streams(experiment)
    fitted = {m: fit_autoencoder(m, c, {"collisions": built}, (), root) for m, c in experiment.autoencoders.items()}
    latents = encode(built, fitted, modalities, None, root, records_per_shard=5)
    # Half of the hosts have done their part.
    encode(built, {"image": fitted["image"]}, modalities, None, root, share=EncodeShare(1, 0, 2), records_per_shard=5)
    return built, latents.path


def copied(home: tuple[BuiltDataset, Path], to: Path) -> tuple[BuiltDataset, Path, Path]:
    """Data set and latents of a copy, and the folder that they lie in."""
    built, latents = home
    root = latents.parents[1]
    shutil.copytree(root, to, dirs_exist_ok=True)
    return dataclasses.replace(built, folder=to / built.folder.relative_to(root)), to / latents.relative_to(root), to


def media_of(built: BuiltDataset, latents: Path) -> dict[str, tuple[bytes, bytes]]:
    """For each id the bytes of its audio in the record, and those of its video latents."""
    media, encoded = {}, Latents(latents)
    for split in built.splits:
        records, source = built.records(split), encoded.open_split(split)
        for i in range(len(records)):
            media[records[i]["id"]] = (
                records[i]["audio"].tobytes(),
                np.ascontiguousarray(source[i]["video"]).tobytes(),
            )
    return media
