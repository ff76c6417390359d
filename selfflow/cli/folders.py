"""Where data sets and latents are kept."""

import os
from pathlib import Path


def data_folder(chosen: Path | None) -> Path:
    """`--data-dir`, else $SELFFLOW_DATA, else ~/.cache/selfflow."""
    return Path(chosen or os.environ.get("SELFFLOW_DATA") or Path.home() / ".cache" / "selfflow").expanduser()
