"""`selfflow data build`: makes a data set."""

from pathlib import Path
from typing import Annotated

import tyro

from selfflow.cli.folders import data_folder
from selfflow.data.collisions import Collisions
from selfflow.data.media import Media
from selfflow.errors import UserError

_SETTINGS = {"collisions": Collisions, "media": Media}
_EXAMPLE = "example: selfflow data build media --source ~/videos"


def main(arguments: list[str]) -> None:
    """Parses `build NAME [--data-dir DIR] [--SETTING VALUE ...]` and builds the data set."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: selfflow data build NAME [--data-dir DIR] [--SETTING VALUE ...]\n\nNAME: {', '.join(_SETTINGS)}")
        print(f"\n{_EXAMPLE}\n\n`selfflow data build NAME --help` lists the settings.")
        return
    if arguments[0] != "build" or len(arguments) < 2 or arguments[1] not in _SETTINGS:
        raise UserError(f"write `selfflow data build NAME`, with NAME one of {', '.join(_SETTINGS)}; {_EXAMPLE}")
    name = arguments[1]

    def parsed(
        settings: Annotated[_SETTINGS[name], tyro.conf.arg(name="")] = _SETTINGS[name](),
        data_dir: Path | None = None,
    ) -> tuple[Collisions | Media, Path | None]:
        """Builds a data set; what is already built is found again.

        Args:
          settings: its settings.
          data_dir: folder for data sets; by default $SELFFLOW_DATA or ~/.cache/selfflow.
        """
        return settings, data_dir

    settings, data_dir = tyro.cli(parsed, prog=f"selfflow data build {name}", description=_EXAMPLE, args=arguments[2:])
    builder = settings.build(data_folder(data_dir))
    for split, info in builder.info.splits.items():
        print(f"{split:<12} {info.num_examples} records")
    print(f"in {builder.data_dir}")
