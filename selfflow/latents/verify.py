"""Reads all of a folder of latents and says what is wrong with it, in itself and beside its data set."""

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
from selfflow.data.verify import UNFINISHED_FORGETTING, Contents, Kind, Problem, Unreadable, verify_data
from selfflow.errors import UserError
from selfflow.latents.encode import folder_name
from selfflow.latents.features import encoder_fault, stored_as
from selfflow.latents.store import CAPTION, FORGETTING, MANIFEST, LatentSource, ids_from, shard_name
from selfflow.serialization import from_json

_AGAIN = "remove {folder}; the next command that needs these latents encodes again"
DAMAGED = Kind("missing or damaged files", _AGAIN)
UNREADABLE = Kind("unreadable records", _AGAIN)
SHAPE = Kind("wrong shapes or types", _AGAIN)
NOT_FINITE = Kind("values that are not finite", _AGAIN)
AUTOENCODER = Kind("another autoencoder", _AGAIN)
NOT_LOOKED_AT = Kind("autoencoders that were not looked at", "pip install 'selfflow[diffusers]'", note=True)
INDEX = Kind("index and records that differ", _AGAIN)
IDS = Kind("ids that are not those of the data set", _AGAIN)
DUPLICATE = Kind("ids that stand twice", _AGAIN)
LABELS = Kind("labels that are not those of the data set", _AGAIN)
EMPTY = Kind("missing or empty splits", _AGAIN)
BUILD = Kind("made from another build", "nothing finds these latents any more: remove {folder}")
FORGOTTEN = Kind("samples forgotten since", "run `selfflow data delete` again with the file of ids of that time")
UNFINISHED = Kind("unfinished", "the command that encodes it goes on with it, or remove {folder}", note=True)
LEFTOVER = Kind("leftovers of interrupted commands", "they are read by nothing and may be deleted", note=True)
LEFT_OUT = Kind("records that could not be encoded", "if they can be read by now: " + _AGAIN, note=True)

_NAMES = ("dataset", "fingerprint", "forgotten", "shards", "modalities", "text", "unreadable", "statistics")


def latents_folders(data_dir: Path, name: str) -> list[Path]:
    """The folders of latents of a data set, finished or not, in `data_dir/latents`.

    Args:
      data_dir: cache folder.
      name: of the data set, as `Built.name`.
    """
    named = re.compile(re.escape(folder_name(name)) + "-[0-9a-f]{12}")
    found = []
    for folder in sorted((data_dir / "latents").glob("*/")):
        try:
            told = json.loads((folder / MANIFEST).read_text())["dataset"]
        except (OSError, ValueError, KeyError, TypeError):
            told = None  # unfinished or damaged: its name must do
        if told == name or named.fullmatch(folder.name):
            found.append(folder)
    return found


def records_of(folder: Path) -> int:
    """How many records a folder of latents says that it holds; 0 where it does not say."""
    try:
        return sum(sum(lengths) for lengths in json.loads((folder / MANIFEST).read_text())["shards"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def verify_latents(
    folder: Path, built: BuiltDataset, contents: Contents | None = None, advance: Callable[[], None] = lambda: None
) -> list[Problem]:
    """Reads every record of a folder of latents, and all that belongs to them.

    Args:
      folder: the latents.
      built: the data set that they were made of.
      contents: what `verify_data` filled in; read anew by default.
      advance: called after each record.

    Returns:
      All problems and notes.
    """
    if (folder / FORGETTING).exists():
        return [Problem(UNFINISHED_FORGETTING, FORGETTING, "", "a forgetting was interrupted")]
    if not (folder / MANIFEST).exists():
        return [Problem(UNFINISHED, MANIFEST, "", "it is not there: these latents are not finished")]
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if missing := [name for name in _NAMES if name not in manifest]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        problems = list(_about(folder, manifest, built))
        own = not any(problem.kind is BUILD for problem in problems)
        if own and contents is None:
            verify_data(built, contents := Contents())
        for split in manifest["shards"]:
            problems += _verify_split(folder, manifest, split, built, contents if own else None, advance)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return [Problem(DAMAGED, MANIFEST, "", f"{type(error).__name__}: {error}")]
    return problems + [Problem(LEFTOVER, path.name, "", "") for path in foreign_files(folder, manifest)]


def foreign_files(folder: Path, manifest: dict[str, Any]) -> list[Path]:
    """Files in a finished folder of latents that its manifest does not tell of."""
    known = {MANIFEST} | {f"autoencoder_{m}.safetensors" for m in manifest["modalities"]}
    for split, lengths in manifest["shards"].items():
        known |= {f"{split}.index.safetensors"} | {shard_name(split, i, len(lengths)) for i in range(len(lengths))}
    return sorted(
        p for p in folder.iterdir() if p.name not in known and not re.fullmatch("lock-[0-9]+|lock-finish", p.name)
    )


def _about(folder: Path, manifest: dict[str, Any], built: BuiltDataset) -> Iterator[Problem]:
    """What is wrong with the manifest and the autoencoders."""
    if manifest["dataset"] != built.name:
        yield Problem(BUILD, MANIFEST, "", f"it was made of {manifest['dataset']}, not of {built.name}")
    elif manifest["fingerprint"] != built.fingerprint:
        detail = f"it was made of a build {manifest['fingerprint']}, and there is {built.fingerprint}"
        yield Problem(BUILD, MANIFEST, "", detail)
    else:
        if manifest["forgotten"] != built.forgotten:
            count = sum(e["count"] for e in built.forgotten if e not in manifest["forgotten"])
            yield Problem(FORGOTTEN, MANIFEST, "", f"{count} samples are gone from the data set, not from here")
        for split in sorted(set(built.splits) ^ set(manifest["shards"])):
            where = "data set" if split in built.splits else "latents"
            yield Problem(EMPTY, MANIFEST, "", f"only the {where} has the split {split}")
    for split, lengths in manifest["shards"].items():
        if not sum(lengths):
            yield Problem(EMPTY, MANIFEST, "", f"the split {split} has no record")
    for m, made in manifest["modalities"].items():
        path = folder / f"autoencoder_{m}.safetensors"
        try:
            config = from_json(made["autoencoder"], AnyAutoencoder, str(folder / MANIFEST), m)
            if config.kind == "diffusers" and importlib.util.find_spec("diffusers") is None:
                yield Problem(NOT_LOOKED_AT, path.name, "", f"{config.name} is one of diffusers")
                continue
            identity = load_autoencoder(config, path).identity if can_decode(config) else config.identity
        except (OSError, SafetensorError, UserError) as error:
            yield Problem(DAMAGED, path.name, "", str(error).splitlines()[0])
            continue
        if identity != made["identity"]:
            yield Problem(
                AUTOENCODER, path.name, "", f"it is {identity}; these latents were made by {made['identity']}"
            )
        statistics = np.array([manifest["statistics"][m][name] for name in ("mean", "std")], float)
        if statistics.shape != (2, made["latent"][-1]) or not np.isfinite(statistics).all():
            yield Problem(DAMAGED, MANIFEST, "", f"the statistics of {m} are not two numbers for each channel")


def _verify_split(
    folder: Path, manifest: dict[str, Any], split: str, built: BuiltDataset, contents: Contents | None, advance
) -> list[Problem]:
    lengths, file = manifest["shards"][split], f"{split}.index.safetensors"
    total = sum(lengths)
    try:
        index = load_file(folder / file)
        index["id"] = ids_from(index["id"])
    except (OSError, SafetensorError, KeyError, IndexError, ValueError) as error:
        index, problems = None, [Problem(DAMAGED, file, "", f"{type(error).__name__}: {error}".splitlines()[0])]
    else:
        problems = list(_index_faults(index, manifest, file, total))
        if problems:
            index = None  # its rows do not belong to the records
    names = [f"{split} record {i}" for i in range(total)]
    if index is not None:
        ids = [name.decode(errors="replace") for name in index["id"]]
        names = [name or place for name, place in zip(ids, names)]
        left_out = {int(i): reason for i, _, reason in manifest["unreadable"].get(split, [])}
        for i, reason in left_out.items():
            problems.append(Problem(LEFT_OUT, file, names[i], reason))
        problems += _beside(ids, index, contents, split, file, left_out) if contents is not None else []
    source, bad = LatentSource(folder, split, lengths, {"id": np.array(names)}), Unreadable(UNREADABLE)
    for i in range(total):
        try:
            stored = source[i]
        except BadRecord as error:
            bad.add(error, i, names[i])
        else:
            row = None if index is None else {name: column[i] for name, column in index.items()}
            shard = source.shard_of(i)
            faults = _faults(stored, row, manifest, built.settings.varying_length)
            problems += [Problem(kind, shard, names[i], detail) for kind, detail in faults]
        advance()
    return problems + bad.problems()


def _index_faults(index: dict[str, np.ndarray], manifest: dict[str, Any], file: str, total: int) -> Iterator[Problem]:
    needed = ["quality", "caption"]
    for m, made in manifest["modalities"].items():
        needed += [f"present/{m}"] + [f"frames/{m}"] * bool(made["period"])
    for name in needed:
        # Where no record of a split has a modality, no length of one stands in its index.
        absent = name.startswith("frames/") and not index.get(f"present/{name[7:]}", np.zeros(1)).any()
        if name not in index and not absent:
            yield Problem(INDEX, file, "", f"it lacks {name}")
    for name, column in index.items():
        if len(column) != total:
            yield Problem(INDEX, file, "", f"{name} has {len(column)} rows, the shards have {total} records")


def _beside(ids, index, contents: Contents, split: str, file: str, left_out: dict[int, str]) -> Iterator[Problem]:
    """Compares an index with the records of the data set, row by row."""
    theirs, rows = contents.ids.get(split, []), contents.rows.get(split, [])
    if len(theirs) != len(ids):
        yield Problem(IDS, file, "", f"{len(ids)} records; the split {split} of the data set has {len(theirs)}")
        return
    labels = {name for name in index if name.startswith("label/")}
    known = {f"label/{name}" for row in rows for name in row if name != "quality"}
    for name in sorted(labels ^ known):
        yield Problem(LABELS, file, "", f"only the {'data set' if name in known else 'index'} has {name}")
    seen: set[str] = set()
    for i, (own, other, row) in enumerate(zip(ids, theirs, rows)):
        if other is None or (i in left_out and not own):
            continue
        if own != other:
            yield Problem(IDS, file, own or f"{split} record {i}", f"record {i} of the data set is {other!r}")
            continue
        if own in seen:
            yield Problem(DUPLICATE, file, own, f"again at {split} record {i}")
        seen.add(own)
        if i in left_out:
            continue  # it has no labels
        for name in sorted(labels & known):
            if index[name][i] != row.get(name.removeprefix("label/"), -1):
                detail = f"{name} is {index[name][i]}, in the data set {row.get(name.removeprefix('label/'), -1)}"
                yield Problem(LABELS, file, own, detail)
        if not np.isclose(index["quality"][i], row["quality"], equal_nan=True):
            yield Problem(LABELS, file, own, f"quality is {index['quality'][i]:g}, in the data set {row['quality']:g}")


def _faults(stored: dict[str, np.ndarray], row: dict | None, manifest, loose: bool) -> Iterator[tuple[Kind, str]]:
    """Whatever is wrong with one record; `loose` says that clips may have any length."""
    for m, made in manifest["modalities"].items():
        latent, timed = stored.get(m), bool(made["period"])
        if row is not None and bool(row[f"present/{m}"]) != (latent is not None):
            yield INDEX, f"{m} is {'not ' * (latent is None)}there, present/{m} says {bool(row[f'present/{m}'])}"
        if latent is None:
            continue
        expected, free = tuple(made["latent"]), int(loose and timed)
        if latent.ndim != len(expected) or latent.shape[free:] != expected[free:] or not latent.size:
            yield SHAPE, f"{m} has shape {latent.shape}, not {expected}"
        elif row is not None and timed and row[f"frames/{m}"] != len(latent):
            yield INDEX, f"{m} has {len(latent)} frames, frames/{m} says {row[f'frames/{m}']}"
        told = manifest.get("features", {}).get(m)
        if told and (fault := encoder_fault(stored, m, timed, told["width"])):
            yield SHAPE, fault
        if f"{m}.std" in stored and stored[f"{m}.std"].shape != latent.shape:
            yield SHAPE, f"{m}.std has shape {stored[f'{m}.std'].shape}, {m} has {latent.shape}"
    caption = stored.get(CAPTION)
    if caption is not None and caption.shape[1:] != ((manifest["text"] or {}).get("width"),):
        yield SHAPE, f"{CAPTION} has shape {caption.shape}; the text encoder is {manifest['text']}"
    if row is not None and row["caption"] != (0 if caption is None else len(caption)):
        yield INDEX, f"the caption has {0 if caption is None else len(caption)} tokens, the index says {row['caption']}"
    known = {CAPTION} | {name for m in manifest["modalities"] for name in (m, f"{m}.std")}
    known |= {stored_as(m) for m in manifest.get("features", {})}
    for name, value in stored.items():
        if name not in known:
            yield SHAPE, f"it holds {name}, of which the manifest does not tell"
        elif value.dtype != np.float16 and name != CAPTION:
            yield SHAPE, f"{name} holds {value.dtype}, not float16"
        elif not np.isfinite(value).all():
            yield NOT_FINITE, f"{name} holds NaN or infinity"
