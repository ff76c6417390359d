"""Where a prepared TFDS data set lies, found without importing TFDS."""

import json
from pathlib import Path

from selfflow.data.tfds import Tfds
from selfflow.errors import UserError

FORMAT = "array_record"
_INFO = "dataset_info.json"


def find(settings: Tfds, data_dir: Path) -> Path | None:
    """The folder of the prepared data set, in `settings.folder` or `data_dir`: ArrayRecord first, then the newest.

    Raises:
      UserError: the name is not of its form, or several configs are prepared and the name does not choose.
    """
    name, config, version = settings.parts
    found: list[Path] = []
    for root in filter(None, (settings.folder, str(data_dir))):
        root = Path(root).expanduser()
        if (root / _INFO).exists():
            found.append(root)
            continue
        at = root / name / config
        if not config:
            configs = sorted({path.parent.parent.name for path in at.glob(f"*/*/{_INFO}")})
            if len(configs) > 1 and not list(at.glob(f"*/{_INFO}")):
                raise UserError(
                    f"tfds.name = {name!r}: several configs are prepared in {at}; choose {name}/{configs[0]} or other"
                )
            at = at / configs[0] if configs and not list(at.glob(f"*/{_INFO}")) else at
        versions = [path.parent for path in at.glob(f"{version or '*'}/{_INFO}") if _number(path.parent)]
        found += sorted(versions, key=_number, reverse=True)
    return next((path for path in found if format_of(path) == FORMAT), found[0] if found else None)


def format_of(folder: Path) -> str:
    """The form of the files of a prepared data set, such as "array_record" or "tfrecord"."""
    try:
        return json.loads((folder / _INFO).read_text()).get("fileFormat") or "tfrecord"
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / _INFO} cannot be read: prepare the data set again") from error


def _number(folder: Path) -> tuple[int, ...]:
    parts = folder.name.split(".")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else ()
