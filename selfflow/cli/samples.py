"""Samples of a data set as files: sheets of stills and films, films with their sound, sounds."""

from pathlib import Path
from typing import Any

import numpy as np

from selfflow.data.built import BuiltDataset
from selfflow.data.shards import BadRecord
from selfflow.errors import UserError

_STILLS_IN_A_ROW = 8
_LOOKED_AT = 2000
_MEDIA = {"film": ("video", "audio"), "silent film": ("video",), "sound": ("audio",)}


def write_samples(built: BuiltDataset, out: Path, count: int) -> None:
    """Writes samples of the split train, and prints what they show.

    Args:
      built: the data set.
      out: folder for the files; is made.
      count: films, films without sound, sounds alone, and rows of stills.

    Raises:
      UserError: if no record can be read.
    """
    from selfflow.sampling.media_files import write_audio, write_sheet, write_video

    kinds = dict.fromkeys(_MEDIA, count) | {"still": count * _STILLS_IN_A_ROW}
    chosen = _chosen(built, kinds)
    if not any(chosen.values()):
        raise UserError(f"{built.folder}: no record of train can be read; `selfflow data verify` tells why")
    out.mkdir(parents=True, exist_ok=True)
    rate, fps = built.settings.sample_rate, built.settings.frames_per_second
    files: list[Path] = []
    if stills := chosen["still"]:
        rows = [stills[i : i + _STILLS_IN_A_ROW] for i in range(0, len(stills), _STILLS_IN_A_ROW)]
        # A last row that is not full is filled up with white, so that its stills are as large as the others.
        blank = np.full_like(stills[0]["image"], 255)
        pictures = {
            f"stills\n{i * _STILLS_IN_A_ROW}-{i * _STILLS_IN_A_ROW + len(row) - 1}\n": {
                "image": np.stack([r["image"] for r in row] + [blank] * (_STILLS_IN_A_ROW - len(row)))
            }
            for i, row in enumerate(rows)
        }
        files.append(out / "stills.png")
        write_sheet(files[-1], pictures, rate, f"{built.name}: stills of train")
    groups = {}
    for kind, names in _MEDIA.items():
        if records := chosen[kind]:
            groups[kind] = {m: [record[m] for record in records] for m in names}
        for i, record in enumerate(records):
            path, sound = out / f"{kind.replace(' ', '-')}-{i}", record["audio"] if "audio" in names else None
            if "video" in names:
                files.append(path.with_suffix(".mp4"))
                write_video(files[-1], record["video"], fps, sound, rate)
            if sound is not None:
                files.append(path.with_suffix(".wav"))
                write_audio(files[-1], sound, rate)
    if groups:
        files.insert(0, out / "films.png")
        write_sheet(files[0], groups, rate, f"{built.name}: {' and '.join(f'{kind}s' for kind in groups)} of train")
    for kind, records in chosen.items():
        for i, record in enumerate(records):
            print(f"{kind} {i}: {_told(record, built)}")
    print(f"\n{len(files)} file{'s' * (len(files) > 1)} in {out}: {', '.join(path.name for path in files)}")


def _chosen(built: BuiltDataset, wanted: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Records of each kind, from all over the split, in the order in which they stand there."""
    records, found = built.records("train"), {kind: {} for kind in wanted}
    for i in np.random.default_rng(0).permutation(len(records))[:_LOOKED_AT]:
        try:
            record = records[int(i)]
        except BadRecord:
            continue
        present = record["present"]
        video, audio = present.get("video"), present.get("audio")
        kinds = {
            "film": video and audio,
            "silent film": video and not audio,
            "sound": audio and not video,
            "still": present.get("image"),
        }
        for kind, there in kinds.items():
            if there and len(found[kind]) < wanted[kind]:
                found[kind][int(i)] = record
        if all(len(found[kind]) == wanted[kind] for kind in wanted):
            break
    return {kind: [some[i] for i in sorted(some)] for kind, some in found.items()}


def _told(record: dict[str, Any], built: BuiltDataset) -> str:
    """The id, the labels by name where the data set names them, and the caption of a record."""
    parts = [record["id"]]
    for name, value in record.items():
        if np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.integer):
            names = built.metadata.get(f"{name}s") or []
            known = isinstance(names, list) and 0 <= value < len(names)
            parts.append(f"{name} {value} ({names[value]})" if known else f"{name} {value}")
    return ", ".join(parts) + (f': "{record["caption"]}"' if record.get("caption") else "")
