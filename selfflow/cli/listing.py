"""`selfflow data list`: lists the data sets and their built configurations."""

import importlib.util
import sys
from pathlib import Path

import tyro

from selfflow.cli.folders import refuse_bucket
from selfflow.data.catalogue import DATASETS, card
from selfflow.errors import UserError
from selfflow.storage.paths import data_folder

# Subfolders of the data folder that are not data sets; all other unknown names are data sets of TFDS.
_NO_DATA_SETS = ("latents", "autoencoders", "compiled", "indexes", "downloads", "buckets", "staged", "locks")


def list_data(arguments: list[str], example: str) -> None:
    """Parses `[--data-dir DIR]` and prints a line for each data set, without importing its builder."""

    def read_flags(data_dir: Path | None = None) -> Path:
        """Lists the data sets.

        Args:
          data_dir: folder for data sets; by default $SELFFLOW_DATA or ~/.cache/selfflow.
        """
        return data_folder(data_dir)

    folder = tyro.cli(read_flags, prog="selfflow data list", description=f"example: {example}", args=arguments)
    refuse_bucket(folder, "data list")
    known = {*_NO_DATA_SETS, *DATASETS}
    others = sorted(p.name for p in folder.glob("*/") if p.name not in known)
    for name, kind in DATASETS.items():
        try:
            modalities = ", ".join(kind().media_shapes())
        except UserError:
            modalities = "by its source"
        missing = bool(kind.package) and importlib.util.find_spec(kind.package) is None
        text = _description(name) + (f" (needs pip install 'selfflow[{kind.extra}]')" if missing else "")
        print(f"{name:<12} {modalities:<20} {_amount(folder / name, 'not built'):<18} {text}")
        if name == "tfds":
            for other in others:
                amount = _amount(folder / other, "")
                if amount:
                    print(f"  tfds:{other:<24} {amount:<18}")
    print(f"\nbuilt in {folder}; `selfflow data show NAME` prints the card and writes samples")


def _description(name: str) -> str:
    """Describes a data set in one line, from the title of its card or the docstring of its module."""
    try:
        title, _, body = card(name).partition("\n")
    except FileNotFoundError:
        title, body = "", (sys.modules[DATASETS[name].__module__].__doc__ or "").partition(": ")[2]
    text = title.partition(": ")[2] or " ".join(body.strip().partition("\n\n")[0].split())
    for end in (". ", ": ", "; "):
        text = text.partition(end)[0]
    text = text.rstrip(".")
    # An abbreviation at the beginning keeps its capitals.
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


def _amount(folder: Path, empty: str) -> str:
    """Returns number and size of the configurations in the folder of a data set; `empty` if there are none."""
    count, size = 0, 0
    for info in folder.rglob("dataset_info.json"):
        if "incomplete." in str(info):  # temporary folder of TFDS during a build
            continue
        count += 1
        size += sum(file.stat().st_size for file in info.parent.rglob("*") if file.is_file())
    return f"{count} built, {_size(size)}" if count else empty


def _size(count: float) -> str:
    """Formats a number of bytes in decimal units, with at least two digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            break
        count /= 1000
    else:
        unit = "TB"
    return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
