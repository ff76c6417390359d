"""Files of precomputed latents as a TFDS data set."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from selfflow.data.folder import File
from selfflow.data.folder_builder import SPLITS, FileRecord, FolderBuilder, build_folder, open_newest
from selfflow.data.latent_files import LatentFiles
from selfflow.data.latent_files.manifest import MANIFEST, Manifest, read_manifest
from selfflow.data.latent_files.read import CAPTION, Sample, read_samples
from selfflow.data.report import Notes, Remark, Unusable
from selfflow.media import medium_of


class LatentFilesBuilder(FolderBuilder, skip_registration=True):
    """Writes latents that another program encoded.

    Args:
      manifest: the content of latents.json; None to open a prepared data set.
      **kwargs: arguments of `FolderBuilder`.
    """

    name = "latent_files"
    VERSION = tfds.core.Version("1.0.0")
    empty: ClassVar[str] = "it holds no npz and no safetensors"

    def __init__(self, *, manifest: Manifest | None = None, **kwargs):
        self.manifest = manifest
        super().__init__(**kwargs)
        # Folders named as splits, if there are any, replace splits by hash.
        top_folders = {file.relative.partition("/")[0] for file in self.files if "/" in file.relative}
        self._split_folders = top_folders & set(SPLITS)
        self._unknown_arrays: set[str] = set()

    def _info(self) -> tfds.core.DatasetInfo:
        if self.manifest is None:  # TFDS reads what was stored with a prepared data set
            return tfds.core.DatasetInfo(builder=self)
        features: dict[str, Any] = {"id": tfds.features.Text(), CAPTION: tfds.features.Text(), "quality": np.float32}
        features["present"] = dict.fromkeys(self.manifest.streams, np.bool_)
        for m, stream in self.manifest.streams.items():
            shape = (None, *stream.shape[1:]) if medium_of(m).has_time else stream.shape
            # Absent latents are zeros, which take almost no space compressed.
            tensor = tfds.features.Tensor(shape=shape, dtype=np.float16, encoding=tfds.features.Encoding.ZLIB)
            features |= {m: tensor, f"{m}_std": tensor}
        features |= dict.fromkeys(self.manifest.labels, np.int64)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Precomputed latents, without their media.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(**self._metadata()),
        )

    def _metadata(self) -> dict[str, Any]:
        """Autoencoder and shape of each modality's latents, and the names of classes."""
        latents = {}
        for m, stream in self.manifest.streams.items():
            latents[m] = {"autoencoder": stream.autoencoder, "shape": list(stream.shape)}
        metadata: dict[str, Any] = {"latents": latents}
        # Labels without names of their classes have numbers alone.
        for label, classes in self.manifest.labels.items():
            if isinstance(classes, list):
                metadata[f"{label}s"] = classes
        return metadata

    def split_of(self, file: File) -> str | None:
        if not self._split_folders:
            return super().split_of(file)
        split = file.relative.partition("/")[0]
        if split in SPLITS:
            return split
        where = ", ".join(sorted(self._split_folders))
        self.report.skipped.append(Remark(file.relative, "in no split", f"it is outside of {where}"))
        return None

    def records_of(self, file: File, notes: Notes) -> Iterator[FileRecord]:
        for i, sample in read_samples(file.path, self.manifest, self._unknown_arrays):
            if isinstance(sample, Unusable):
                where = "" if i is None else f"sample {i}: "
                notes.add(sample.reason, where + sample.detail)
                continue
            name = file.relative if i is None else f"{file.relative}#{i}"
            yield FileRecord(_content(sample), self._record(name, sample))

    def _record(self, name: str, sample: Sample) -> dict[str, Any]:
        record: dict[str, Any] = {"id": name, "quality": 1.0, "present": {}, CAPTION: sample.caption, **sample.labels}
        for m, stream in self.manifest.streams.items():
            record["present"][m] = m in sample.latents
            record[m] = sample.latents.get(m, np.zeros(stream.shape, np.float16))
            record[f"{m}_std"] = sample.stds.get(m, np.zeros(record[m].shape, np.float16))
        return record

    def notes(self, splits: Collection[str]) -> list[str]:
        notes = [] if self._split_folders else super().notes(splits)
        if self._unknown_arrays:
            names = ", ".join(sorted(self._unknown_arrays)[:8])
            notes.append(f"arrays that {MANIFEST} does not describe were left out: {names}")
        return notes


def build(settings: LatentFiles, data_dir: Path) -> LatentFilesBuilder:
    """Returns the TFDS builder below `data_dir`; builds the data set and prints its report if it does not exist.

    A folder whose files changed (paths, sizes, times) is built again. If the folder does not exist, the newest data set
    that was built from it with these settings is used, and a line on stderr reports it.

    Raises:
      UserError: a setting is invalid, the folder or its latents.json is missing, or nothing can be used.
    """
    settings.check()
    folder = Path(settings.folder())
    # Settings with shapes do not need the folder.
    without_manifest = settings.media_shapes() and not (folder / MANIFEST).exists()
    if not settings.source or not folder.exists() or without_manifest:
        return open_newest(LatentFilesBuilder, settings, data_dir)
    manifest = read_manifest(folder)
    identity, remarks = settings.contents(data_dir)
    files = [file for file in identity if file.relative != MANIFEST]
    return build_folder(
        LatentFilesBuilder, settings, data_dir, identity, files=files, remarks=remarks, manifest=manifest
    )


def _content(sample: Sample) -> str:
    """Returns the modalities of a sample, by the names that reports of media use."""
    if {"video", "audio"} <= sample.latents.keys():
        return "video with audio"
    return " and ".join(sample.latents)
