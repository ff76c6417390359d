"""Samples of a data set as files: sheets of images and clips, and each clip as video or audio."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfflow.data.built import BuiltDataset
from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.media import MEDIA
from selfflow.sampling.media_files import write_media, write_sheet

_IMAGES_PER_ROW = 8
_MAX_RECORDS = 2000  # searched for samples of each kind
# Kinds of clips, and their modalities: those of media that are neither video nor audio are written alone.
_OTHERS = tuple(m for m, medium in MEDIA.items() if medium.has_time and m not in ("video", "audio"))
_CLIPS = {"video with audio": ("video", "audio"), "video": ("video",), "audio": ("audio",)} | {m: (m,) for m in _OTHERS}


class DatasetSamples(NamedTuple):
    """Written samples.

    Attributes:
      records: records by kind, such as "video with audio", in the order of the data set.
      files: sheets first, then clips.
    """

    records: dict[str, list[dict[str, Any]]]
    files: list[Path]


def write_dataset_samples(built: BuiltDataset, out: Path, count: int) -> DatasetSamples:
    """Writes samples of the train split.

    Args:
      built: the data set.
      out: folder for the files, which is created.
      count: videos with audio, videos without, audio clips, and rows of images.

    Raises:
      UserError: if no record is readable.
    """
    records = _sample_records(built, dict.fromkeys(_CLIPS, count) | {"image": count * _IMAGES_PER_ROW})
    if not any(records.values()):
        raise UserError(f"{built.folder}: no record of train is readable: run `selfflow data verify`")
    out.mkdir(parents=True, exist_ok=True)
    settings = built.settings
    rates = {m: medium.rate(settings) for m, medium in MEDIA.items()}
    files: list[Path] = []
    if any(records[kind] for kind in _CLIPS):
        files.append(out / "clips.png")
        _write_clip_sheet(files[-1], records, rates, built.name)
    if records["image"]:
        files.append(out / "images.png")
        rows = _image_rows(_media(records["image"], "image"))
        write_sheet(files[-1], rows, rates, f"{built.name}: images of train")
    for kind, modalities in _CLIPS.items():
        for i, record in enumerate(records[kind]):
            stem = out / f"{kind.replace(' ', '-')}-{i}"
            files += write_media(stem, {m: record[m] for m in modalities}, rates)
    return DatasetSamples(records, files)


def _write_clip_sheet(path: Path, records: dict[str, list[dict[str, Any]]], rates: dict[str, float], name: str) -> None:
    groups = {}
    for kind, modalities in _CLIPS.items():
        if records[kind]:
            groups[kind] = {m: _media(records[kind], m) for m in modalities}
    write_sheet(path, groups, rates, f"{name}: {', '.join(groups)} of train")


def _media(records: list[dict[str, Any]], m: str) -> list[np.ndarray]:
    return [record[m] for record in records]


def _image_rows(images: list[np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Groups of a sheet, each one row of images. The last is padded with white, so that all have the same size."""
    blank = np.full_like(images[0], 255)
    groups = {}
    for start in range(0, len(images), _IMAGES_PER_ROW):
        row = images[start : start + _IMAGES_PER_ROW]
        padded = row + [blank] * (_IMAGES_PER_ROW - len(row))
        groups[f"images\n{start}-{start + len(row) - 1}\n"] = {"image": np.stack(padded)}
    return groups


def _sample_records(built: BuiltDataset, counts: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Returns records of each kind, drawn from the whole train split, in its order."""
    records = built.records("train")
    samples: dict[str, dict[int, dict[str, Any]]] = {kind: {} for kind in counts}  # by kind and number of the record
    # In random order, as similar records may be adjacent.
    for i in np.random.default_rng(0).permutation(len(records))[:_MAX_RECORDS]:
        try:
            record = records[int(i)]
        except BadRecord:
            continue
        for kind in _kinds(record["present"]):
            if len(samples[kind]) < counts[kind]:
                samples[kind][int(i)] = record
        if all(len(samples[kind]) == counts[kind] for kind in counts):
            break
    in_order = {}
    for kind, by_number in samples.items():
        in_order[kind] = [by_number[i] for i in sorted(by_number)]
    return in_order


def _kinds(present: dict[str, bool]) -> list[str]:
    """Kinds of samples that a record is: at most one of video and audio, every other clip, and an image."""
    timed = tuple(m for m in ("video", "audio") if present.get(m))
    kinds = [kind for kind, modalities in _CLIPS.items() if modalities == timed]
    kinds += [m for m in _OTHERS if present.get(m)]
    if present.get("image"):
        kinds.append("image")
    return kinds
