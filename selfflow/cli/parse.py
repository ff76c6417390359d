"""What commands on an experiment file share: `selfflow COMMAND EXPERIMENT [--FIELD VALUE ...]`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from selfflow.cli.folders import data_folder
from selfflow.errors import UserError
from selfflow.experiment import Experiment
from selfflow.experiment_file import load_experiment

Options = TypeVar("Options")


def parse(
    command: str, arguments: list[str], example: str, make_options: Callable[[Path], Options]
) -> tuple[Experiment, Options, Path] | None:
    """Reads a command line.

    Args:
      command: its name.
      arguments: what follows it.
      example: a line that shows how it is used.
      make_options: experiment file -> a dataclass of the command's own flags, with their defaults.

    Returns:
      The experiment, the options and the data folder; None where only the usage was asked for and printed.

    Raises:
      UserError: if no experiment file is named, or it cannot be read.
    """
    usage = f"selfflow {command} EXPERIMENT [--data-dir DIR] [--FIELD VALUE ...]"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {usage}\n\nexample: {example}")
        print(f"\n`selfflow {command} EXPERIMENT --help` lists every flag and every field of that experiment.")
        return None
    file = arguments[0]
    if file.startswith("-"):
        raise UserError(f"name an experiment file first; example: {example}")
    default, options = load_experiment(file), make_options(Path(file))

    def parsed(
        experiment: Annotated[tyro.conf.AvoidSubcommands[Experiment], tyro.conf.arg(name="")] = default,
        options: Annotated[type(options), tyro.conf.arg(name="")] = options,
        data_dir: Path | None = None,
    ) -> tuple:
        """Reads the flags.

        Args:
          experiment: the experiment.
          options: of the command.
          data_dir: folder for data sets and latents, on a disk or in a bucket (gs://, s3://); by default
            $SELFFLOW_DATA or ~/.cache/selfflow.
        """
        return experiment, options, data_dir

    experiment, options, data_dir = tyro.cli(
        parsed, prog=f"selfflow {command} {file}", description=f"example: {example}", args=arguments[1:]
    )
    return experiment, options, data_folder(data_dir)
