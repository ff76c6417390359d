"""Verification of a folder of latents: reads all of its files, and compares them with the data set."""

import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from selfflow.autoencoders.config import AnyAutoencoder, can_decode
from selfflow.autoencoders.load import load_autoencoder
from selfflow.data.built import BuiltDataset
from selfflow.data.shards import BadRecord
from selfflow.data.verify import UNFINISHED_DELETION, Contents, Kind, Problem, Unreadable, verify_data
from selfflow.errors import UserError
from selfflow.latents.encode import folder_name
from selfflow.latents.features import features_fault, features_key
from selfflow.latents.ids import decode_ids
from selfflow.latents.store import CAPTION, MANIFEST, NEXT_MANIFEST, LatentSource, shard_name
from selfflow.serialization import from_json

_AGAIN = "remove {folder}; the next command that needs these latents encodes again"
DAMAGED = Kind("missing or damaged files", _AGAIN)
UNREADABLE = Kind("unreadable records", _AGAIN)
SHAPE = Kind("wrong shapes or types", _AGAIN)
NOT_FINITE = Kind("values that are not finite", _AGAIN)
AUTOENCODER = Kind("another autoencoder", _AGAIN)
NOT_LOOKED_AT = Kind("autoencoders that were not verified", "pip install 'selfflow[diffusers]'", note=True)
INDEX = Kind("index and records that differ", _AGAIN)
IDS = Kind("ids that are not those of the data set", _AGAIN)
DUPLICATE = Kind("duplicate ids", _AGAIN)
LABELS = Kind("labels that are not those of the data set", _AGAIN)
EMPTY = Kind("missing or empty splits", _AGAIN)
BUILD = Kind("latents of another build", "no command uses these latents any more: remove {folder}")
DELETED_SINCE = Kind("samples deleted since", "run `selfflow data delete` again with the file of ids of that time")
UNFINISHED = Kind("unfinished", "run the command that encodes it again, or remove {folder}", note=True)
LEFTOVER = Kind("leftovers of interrupted commands", "no command reads them: delete them", note=True)
LEFT_OUT = Kind("records that could not be encoded", "if they can be read by now: " + _AGAIN, note=True)

_ENTRIES = ("dataset", "fingerprint", "deleted", "shards", "modalities", "text", "features", "unreadable", "statistics")

Index = dict[str, np.ndarray]


def _no_progress() -> None:
    pass


def latents_folders(data_dir: Path, name: str) -> list[Path]:
    """Returns the folders of latents of a data set in `data_dir/latents`, finished or unfinished.

    Args:
      data_dir: cache folder.
      name: name of the data set, as `BuiltDataset.name`.
    """
    pattern = re.compile(re.escape(folder_name(name)) + "-[0-9a-f]{12}")
    folders = []
    for folder in sorted((data_dir / "latents").glob("*/")):
        try:
            dataset = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["dataset"]
        except (OSError, ValueError, KeyError, TypeError):
            dataset = None  # unfinished or damaged: recognised by its name
        if dataset == name or pattern.fullmatch(folder.name):
            folders.append(folder)
    return folders


def records_of(folder: Path) -> int:
    """Number of records according to the manifest of a folder of latents; 0 if that cannot be read."""
    try:
        return sum(
            sum(lengths) for lengths in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["shards"].values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def verify_latents(
    folder: Path, built: BuiltDataset, contents: Contents | None = None, advance: Callable[[], None] = _no_progress
) -> list[Problem]:
    """Reads every record of a folder of latents, its indexes, autoencoders and manifest.

    Args:
      folder: the latents.
      built: the data set that was encoded.
      contents: contents from `verify_data`; by default the data set is read.
      advance: called after each record.

    Returns:
      All problems and notes.
    """
    if (folder / NEXT_MANIFEST).exists():
        return [Problem(UNFINISHED_DELETION, NEXT_MANIFEST, "", "a deletion was interrupted")]
    if not (folder / MANIFEST).exists():
        return [Problem(UNFINISHED, MANIFEST, "", "it does not exist: these latents are not finished")]
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        missing = [name for name in _ENTRIES if name not in manifest]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        problems = [*_manifest_faults(manifest, built), *_autoencoder_faults(folder, manifest)]
        is_of_this_build = not any(problem.kind is BUILD for problem in problems)
        # Latents of another build are checked, but not compared with the data set.
        if is_of_this_build and contents is None:
            contents = Contents()
            verify_data(built, contents)
        for split in manifest["shards"]:
            compared = contents if is_of_this_build else None
            problems += _verify_split(folder, manifest, split, built.settings.varying_length, compared, advance)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return [Problem(DAMAGED, MANIFEST, "", f"{type(error).__name__}: {error}")]
    return problems + [Problem(LEFTOVER, path.name, "", "") for path in foreign_files(folder, manifest)]


def foreign_files(folder: Path, manifest: dict[str, Any]) -> list[Path]:
    """Returns the files in a finished folder of latents that its manifest does not account for."""
    # Lock files belong to the folder, too.
    known = {MANIFEST}
    for m in manifest["modalities"]:
        known.add(f"autoencoder_{m}.safetensors")
    for split, lengths in manifest["shards"].items():
        known.add(f"{split}.index.safetensors")
        known |= {shard_name(split, number, len(lengths)) for number in range(len(lengths))}
    foreign = []
    for path in sorted(folder.iterdir()):
        if path.name not in known and not re.fullmatch("lock-[0-9]+|lock-finish", path.name):
            foreign.append(path)
    return foreign


def _manifest_faults(manifest: dict[str, Any], built: BuiltDataset) -> Iterator[Problem]:
    """Yields problems of the manifest, alone and compared with the data set."""
    if manifest["dataset"] != built.name:
        yield Problem(BUILD, MANIFEST, "", f"it was made of {manifest['dataset']}, not of {built.name}")
    elif manifest["fingerprint"] != built.fingerprint:
        detail = f"it was made of the build {manifest['fingerprint']}, not of {built.fingerprint}"
        yield Problem(BUILD, MANIFEST, "", detail)
    else:
        if manifest["deleted"] != built.deleted:
            count = sum(entry["count"] for entry in built.deleted if entry not in manifest["deleted"])
            yield Problem(DELETED_SINCE, MANIFEST, "", f"{count} samples were deleted from the data set, not from here")
        for split in sorted(set(built.splits) ^ set(manifest["shards"])):
            where = "data set" if split in built.splits else "latents"
            yield Problem(EMPTY, MANIFEST, "", f"only the {where} has the split {split}")
    for split, lengths in manifest["shards"].items():
        if not sum(lengths):
            yield Problem(EMPTY, MANIFEST, "", f"the split {split} has no record")


def _autoencoder_faults(folder: Path, manifest: dict[str, Any]) -> Iterator[Problem]:
    """Yields problems of the autoencoders and of the statistics of their latents."""
    for m, entry in manifest["modalities"].items():
        path = folder / f"autoencoder_{m}.safetensors"
        try:
            config = from_json(entry["autoencoder"], AnyAutoencoder, str(folder / MANIFEST), m)
            if config.kind == "diffusers" and importlib.util.find_spec("diffusers") is None:
                yield Problem(NOT_LOOKED_AT, path.name, "", f"{config.name} needs the package diffusers")
                continue
            identity = load_autoencoder(config, path).identity if can_decode(config) else config.identity
        except (OSError, SafetensorError, UserError) as error:
            yield Problem(DAMAGED, path.name, "", str(error).splitlines()[0])
            continue
        if identity != entry["identity"]:
            detail = f"it is {identity}; these latents were made by {entry['identity']}"
            yield Problem(AUTOENCODER, path.name, "", detail)
        statistics = np.array([manifest["statistics"][m]["mean"], manifest["statistics"][m]["std"]], float)
        if statistics.shape != (2, entry["latent"][-1]) or not np.isfinite(statistics).all():
            yield Problem(DAMAGED, MANIFEST, "", f"the statistics of {m} are not two numbers for each channel")


def _verify_split(
    folder: Path,
    manifest: dict[str, Any],
    split: str,
    varying_length: bool,
    contents: Contents | None,
    advance: Callable[[], None],
) -> list[Problem]:
    """Returns problems of a split's index and records; they are compared with the data set if `contents` is given."""
    lengths, file = manifest["shards"][split], f"{split}.index.safetensors"
    total = sum(lengths)
    index, problems = _read_index(folder, manifest, file, total)
    # Problems name records by their ids, or by their numbers if the ids are unknown.
    names = [f"{split} record {i}" for i in range(total)]
    if index is not None:
        ids = [name.decode(errors="replace") for name in index["id"]]
        names = [name or place for name, place in zip(ids, names)]
        left_out = {}
        for i, _, reason in manifest["unreadable"].get(split, []):
            left_out[int(i)] = reason
            problems.append(Problem(LEFT_OUT, file, names[int(i)], reason))
        if contents is not None:
            problems += _compare_with_dataset(ids, index, contents, split, file, left_out)
    source, unreadable = LatentSource(folder, split, lengths, {"id": np.array(names)}), Unreadable(UNREADABLE)
    for i in range(total):
        try:
            stored = source[i]
        except BadRecord as error:
            unreadable.add(error, i, names[i])
        else:
            row = None if index is None else {name: column[i] for name, column in index.items()}
            shard = source.shard_of(i)
            for kind, detail in _record_faults(stored, row, manifest, varying_length):
                problems.append(Problem(kind, shard, names[i], detail))
        advance()
    return problems + unreadable.problems()


def _read_index(folder: Path, manifest: dict[str, Any], file: str, total: int) -> tuple[Index | None, list[Problem]]:
    """Reads the index of a split, None if it is damaged or its rows do not match the records; also its problems."""
    try:
        index = load_file(folder / file)
        index["id"] = decode_ids(index["id"])
    except (OSError, SafetensorError, KeyError, IndexError, ValueError) as error:
        return None, [Problem(DAMAGED, file, "", f"{type(error).__name__}: {error}".splitlines()[0])]
    problems = list(_index_faults(index, manifest, file, total))
    return (None, problems) if problems else (index, [])


def _index_faults(index: Index, manifest: dict[str, Any], file: str, total: int) -> Iterator[Problem]:
    needed = ["quality", "caption"]
    for m, entry in manifest["modalities"].items():
        needed.append(f"present/{m}")
        # An index has no column of lengths for a modality that no record of the split has.
        if entry["period"] and index.get(f"present/{m}", np.zeros(1)).any():
            needed.append(f"frames/{m}")
    for name in needed:
        if name not in index:
            yield Problem(INDEX, file, "", f"it lacks {name}")
    for name, column in index.items():
        if len(column) != total:
            yield Problem(INDEX, file, "", f"{name} has {len(column)} rows, the shards have {total} records")


def _compare_with_dataset(
    ids: list[str], index: Index, contents: Contents, split: str, file: str, left_out: dict[int, str]
) -> Iterator[Problem]:
    """Compares ids, labels and quality in an index with the records of the data set."""
    expected_ids, rows = contents.ids.get(split, []), contents.rows.get(split, [])
    # Rows are matched by position.
    if len(expected_ids) != len(ids):
        yield Problem(IDS, file, "", f"{len(ids)} records; the split {split} of the data set has {len(expected_ids)}")
        return
    labels = {name for name in index if name.startswith("label/")}
    expected_labels = set()
    for row in rows:
        expected_labels |= {f"label/{name}" for name in row if name != "quality"}
    for name in sorted(labels ^ expected_labels):
        yield Problem(LABELS, file, "", f"only the {'data set' if name in expected_labels else 'index'} has {name}")
    seen: set[str] = set()
    for i, (own, expected, row) in enumerate(zip(ids, expected_ids, rows)):
        if expected is None or (i in left_out and not own):
            continue  # unreadable in the latents or in the data set
        if own != expected:
            yield Problem(IDS, file, own or f"{split} record {i}", f"record {i} of the data set is {expected!r}")
            continue
        if own in seen:
            yield Problem(DUPLICATE, file, own, f"again at {split} record {i}")
        seen.add(own)
        if i in left_out:
            continue  # its row has no labels
        for name in sorted(labels & expected_labels):
            label = row.get(name.removeprefix("label/"), -1)
            if index[name][i] != label:
                yield Problem(LABELS, file, own, f"{name} is {index[name][i]}, in the data set {label}")
        if not np.isclose(index["quality"][i], row["quality"], equal_nan=True):
            yield Problem(LABELS, file, own, f"quality is {index['quality'][i]:g}, in the data set {row['quality']:g}")


def _record_faults(
    stored: dict[str, np.ndarray], row: dict[str, Any] | None, manifest: dict[str, Any], varying_length: bool
) -> Iterator[tuple[Kind, str]]:
    """Yields problems of one record: its latents, its caption, and the names and values of all arrays.

    Args:
      stored: arrays of the record.
      row: row of the index; None if the index is damaged.
      manifest: manifest of the folder.
      varying_length: whether clips may have any length.
    """
    for m in manifest["modalities"]:
        yield from _latent_faults(stored, row, manifest, m, varying_length)
    caption = stored.get(CAPTION)
    if caption is not None and caption.shape[1:] != ((manifest["text"] or {}).get("width"),):
        yield SHAPE, f"{CAPTION} has shape {caption.shape}; the text encoder is {manifest['text']}"
    tokens = 0 if caption is None else len(caption)
    if row is not None and row["caption"] != tokens:
        yield INDEX, f"the caption has {tokens} tokens, in the index {row['caption']}"
    known = {CAPTION}
    for m in manifest["modalities"]:
        known |= {m, f"{m}.std"}
    for m in manifest["features"]:
        known.add(features_key(m))
    for name, value in stored.items():
        if name not in known:
            yield SHAPE, f"it holds {name}, which is not in the manifest"
        elif value.dtype != np.float16 and name != CAPTION:
            yield SHAPE, f"{name} holds {value.dtype}, not float16"
        elif not np.isfinite(value).all():
            yield NOT_FINITE, f"{name} holds NaN or infinity"


def _latent_faults(
    stored: dict[str, np.ndarray], row: dict[str, Any] | None, manifest: dict[str, Any], m: str, varying_length: bool
) -> Iterator[tuple[Kind, str]]:
    """Yields problems of one modality of a record; arguments as for `_record_faults`."""
    entry = manifest["modalities"][m]
    latent, timed = stored.get(m), bool(entry["period"])
    if row is not None and bool(row[f"present/{m}"]) != (latent is not None):
        state = "missing" if latent is None else "stored"
        yield INDEX, f"{m} is {state}, present/{m} is {bool(row[f'present/{m}'])}"
    if latent is None:
        return
    expected, free = tuple(entry["latent"]), int(varying_length and timed)
    if latent.ndim != len(expected) or latent.shape[free:] != expected[free:] or not latent.size:
        yield SHAPE, f"{m} has shape {latent.shape}, not {expected}"
    elif row is not None and timed and row[f"frames/{m}"] != len(latent):
        yield INDEX, f"{m} has {len(latent)} frames, frames/{m} is {row[f'frames/{m}']}"
    if m in manifest["features"]:
        fault = features_fault(stored, m, timed, manifest["features"][m]["width"])
        if fault:
            yield SHAPE, fault
    if f"{m}.std" in stored and stored[f"{m}.std"].shape != latent.shape:
        yield SHAPE, f"{m}.std has shape {stored[f'{m}.std'].shape}, {m} has {latent.shape}"
