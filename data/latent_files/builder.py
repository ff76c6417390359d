"""Files of latents -> a TFDS data set."""

import datetime
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from selfflow.data import writing
from selfflow.data.folder import File, fingerprint, position, scan, split_of
from selfflow.data.latent_files import LatentFiles
from selfflow.data.latent_files.manifest import MANIFEST, Manifest, read_manifest
from selfflow.data.latent_files.read import CAPTION, SUFFIXES, Unusable, samples
from selfflow.data.report import FILE, Remark, Report, format_report
from selfflow.data.writing import Config, RecordsBuilder, newest, quiet
from selfflow.errors import UserError
from selfflow.media import medium_of
from selfflow.progress import Progress

_SPLITS = ("train", "validation", "test")


class LatentFilesBuilder(RecordsBuilder, skip_registration=True):
    """Latents that were made elsewhere. `build` makes and fills it."""

    name = "latent_files"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, files: list[File] = (), remarks: list[Remark] = (), told: Manifest | None = None, **kwargs):
        self.files, self.remarks, self.told = files, remarks, told
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        if self.told is None:  # it is there: what it has was written beside it
            return tfds.core.DatasetInfo(builder=self)
        zlib, features = tfds.features.Encoding.ZLIB, {}  # zeros cost next to nothing
        for m, stream in self.told.streams.items():
            shape = (None, *stream.shape[1:]) if medium_of(m).has_time else stream.shape
            for name in (m, f"{m}_std"):
                features[name] = tfds.features.Tensor(shape=shape, dtype=np.float16, encoding=zlib)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Latents that were made elsewhere, of media that are not there.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    **features,
                    "present": {m: np.bool_ for m in self.told.streams},
                    "quality": np.float32,
                    CAPTION: tfds.features.Text(),
                    **{label: np.int64 for label in self.told.labels},
                }
            ),
            metadata=tfds.core.MetadataDict(
                latents={
                    m: {"autoencoder": stream.autoencoder, "shape": list(stream.shape)}
                    for m, stream in self.told.streams.items()
                },
                **{f"{label}s": names for label, names in self.told.labels.items() if isinstance(names, list)},
            ),
        )

    def records(self) -> Iterator[tuple[str, dict]]:
        settings, self._counts, self._strange = self.builder_config.settings, Counter(), set()
        self._report = report = Report(
            source=settings.folder(),
            built=datetime.datetime.now(datetime.UTC).isoformat(),
            settings=asdict(settings),
            found=len(self.files),
            skipped=list(self.remarks),
        )
        named = {file.relative.partition("/")[0] for file in self.files if "/" in file.relative} & set(_SPLITS)
        with Progress("latents", total=len(self.files), unit="files") as shown:
            for file in sorted(self.files, key=lambda file: position(file.relative, settings.seed + 1)):
                split = split_of(file.relative, settings.seed, settings.validation_fraction, settings.test_fraction)
                if named:
                    split = file.relative.partition("/")[0]
                if split not in _SPLITS:
                    others = ", ".join(sorted(named))
                    report.skipped.append(Remark(file.relative, "in no split", f"it lies outside {others}"))
                    continue
                yield from ((split, record) for record in self._of(file, split))
                shown.advance()

    def _of(self, file: File, split: str) -> Iterator[dict[str, Any]]:
        made, wrong = 0, []
        try:
            for i, sample in samples(file.path, self.told, self._strange):
                if isinstance(sample, Unusable):
                    where = "" if i is None else f"sample {i}: "
                    wrong.append(Remark(file.relative, sample.reason, where + sample.detail))
                    continue
                what = " and ".join(m for m in self.told.streams if m in sample)
                what = {"audio": "sound", "video and audio": "video with sound"}.get(what, what)
                self._counts[split, what] += 1
                made += 1
                yield self._record(file.relative if i is None else f"{file.relative}#{i}", sample)
        except Unusable as error:
            wrong.append(Remark(file.relative, error.reason, error.detail))
        self._report.used += made > 0
        (self._report.partial if made else self._report.skipped).extend(wrong)

    def _record(self, name: str, sample: dict[str, Any]) -> dict[str, Any]:
        record: dict[str, Any] = {"id": name, "quality": 1.0, CAPTION: sample.get(CAPTION, "")}
        for m, stream in self.told.streams.items():
            record[m] = sample.get(m, np.zeros(stream.shape, np.float16))
            record[f"{m}_std"] = sample.get(f"{m}_std", np.zeros(record[m].shape, np.float16))
        return record | {
            "present": {m: m in sample for m in self.told.streams},
            **{label: sample[label] for label in self.told.labels},
        }

    def arranged(self, written):
        """A split without records is left out, train never is."""
        report = self._report
        if not written:
            reasons = Counter(remark.reason for remark in report.skipped).most_common()
            listed = ", ".join(f"{count} {reason}" for reason, count in reasons) or "it holds no npz and no safetensors"
            first = next((f"; the first: {r.file}: {r.detail}" for r in report.skipped if r.detail), "")
            raise UserError(f"nothing in {report.source} can be used ({listed}){first}")
        groups = {split: [written[split]] for split in _SPLITS if split in written}
        if "train" not in groups:
            groups = {"train": [shards for some in groups.values() for shards in some]}
            report.notes.append("no file fell to train: all went to train")
        if self._strange:
            names = ", ".join(sorted(self._strange)[:8])
            report.notes.append(f"arrays that {MANIFEST} does not tell of were left out: {names}")
        for (split, what), count in sorted(self._counts.items()):
            counts = report.clips.setdefault(split if split in groups else "train", {})
            counts[what] = counts.get(what, 0) + count
        return groups

    def finished(self, folder: Path) -> None:
        self._report.write(folder)


def build(settings: LatentFiles, data_dir: Path) -> LatentFilesBuilder:
    """Returns the builder of the data set below `data_dir`; builds it and prints its report if need be."""
    settings.check()
    folder = Path(settings.folder())
    if not settings.source or not folder.exists() or (settings.media_shapes() and not (folder / MANIFEST).exists()):
        with quiet():
            return _builder(settings, data_dir, newest(LatentFilesBuilder, settings, data_dir, FILE))
    told = read_manifest(folder)
    files, remarks = scan(settings, (data_dir, data_dir / LatentFilesBuilder.name))
    described = [file for file in files if file.relative == MANIFEST]
    files = [file for file in files if Path(file.relative).suffix in SUFFIXES]
    slug = re.sub(r"[^a-z0-9]+", "_", (settings.name or folder.name).lower()).strip("_")[:40] or "latents"
    name = f"{slug}-{settings.key()}-{fingerprint(described + files)}"
    with quiet():
        if (ready := _builder(settings, data_dir, name)).is_prepared():
            return ready
    builder = writing.prepare(lambda: _builder(settings, data_dir, name, files=files, remarks=remarks, told=told))
    print(format_report(json.loads((Path(builder.data_path) / FILE).read_text())))
    return builder


def _builder(settings: LatentFiles, data_dir: Path, name: str, **found) -> LatentFilesBuilder:
    config = Config(name=name, settings=settings)
    return LatentFilesBuilder(data_dir=str(data_dir), config=config, file_format="array_record", **found)
