"""What commands on an experiment file share: `selfflow COMMAND EXPERIMENT [--FIELD VALUE ...]`."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from selfflow.autoencoders.config import AnyAutoencoder
from selfflow.autoencoders.parse import parse_autoencoder
from selfflow.config.experiment import Experiment
from selfflow.config.files import AnyExperiment, load_experiment, read_experiment
from selfflow.errors import UserError
from selfflow.storage.paths import data_folder

Options = TypeVar("Options")


def parse(
    command: str,
    arguments: list[str],
    example: str,
    make_options: Callable[[Path], Options],
    autoencoders: bool = False,
) -> tuple[AnyExperiment, Options, Path] | None:
    """Reads a command line.

    Args:
      command: its name.
      arguments: what follows it.
      example: a line that shows how it is used.
      make_options: experiment file -> a dataclass of the command's own flags, with their defaults.
      autoencoders: whether the command takes experiments that train an autoencoder, too.

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
    default, options = load_experiment(file, autoencoders), make_options(Path(file))
    if isinstance(default, Experiment):
        named = any(argument.startswith("--autoencoder.") for argument in arguments)
        known = _of_run(options, arguments) if named else {}
        default, arguments = _with_autoencoders(default, arguments, known)

    def parsed(
        experiment: Annotated[tyro.conf.AvoidSubcommands[type(default)], tyro.conf.arg(name="")] = default,
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


def _of_run(options: Any, arguments: list[str]) -> Mapping[str, AnyAutoencoder]:
    """The autoencoders of the run that a command would go on with, or of a member of the sweep."""
    workdir = getattr(options, "workdir", None)
    for argument, after in zip(arguments, [*arguments[1:], ""]):
        flag, given, text = argument.partition("=")
        if flag == "--workdir":
            workdir = text if given else after
    if workdir is None:
        return {}
    for path in sorted(path for name in ("experiment.json", "*/experiment.json") for path in Path(workdir).glob(name)):
        try:
            return getattr(read_experiment(path), "autoencoders", {})
        except UserError:
            continue  # a damaged one is reported where it is trained
    return {}


def _with_autoencoders(
    experiment: Experiment, arguments: list[str], known: Mapping[str, AnyAutoencoder]
) -> tuple[Experiment, list[str]]:
    """The experiment with the autoencoders that `--autoencoder.M NAME[=PATH]` names, and the other arguments.

    Which member of a union a field holds is otherwise the file's: flags of its fields follow from it.
    """
    chosen, others, rest = {}, [], iter(arguments)
    for argument in rest:
        flag, given, text = argument.partition("=")
        if not flag.startswith("--autoencoder."):
            others.append(argument)
            continue
        m = flag.removeprefix("--autoencoder.")
        if m not in experiment.autoencoders:
            raise UserError(f"{flag}: the experiment has autoencoders of {', '.join(experiment.autoencoders)}")
        chosen[m] = parse_autoencoder(text if given else next(rest, ""), m, known.get(m))
    return dataclasses.replace(experiment, autoencoders=experiment.autoencoders | chosen), others


def parse_run(
    command: str, arguments: list[str], example: str, make_options: Callable[[Experiment], Options]
) -> tuple[str, Options] | None:
    """Reads the command line of a command on a run: `selfflow COMMAND RUN [--FLAG VALUE ...]`.

    Args:
      command: its name.
      arguments: what follows it.
      example: a line that shows how it is used.
      make_options: experiment of the run -> a dataclass of the command's flags, with their defaults.

    Returns:
      The run's path or URL and the options; None where only the usage was asked for and printed.

    Raises:
      UserError: if no run is named, or it is none.
    """
    from selfflow.storage.runs import local_copy

    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: selfflow {command} RUN [--FLAG VALUE ...]\n\nexample: {example}")
        print(f"\n`selfflow {command} RUN --help` lists every flag with its default for that run.")
        return None
    if arguments[0].startswith("-"):
        raise UserError(f"name a run folder first; example: {example}")
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    if repeated := {flag for flag in flags if flags.count(flag) > 1}:
        raise UserError(f"{min(repeated)} stands there twice, and only the last would count: put all after one")
    path = local_copy(arguments[0]) / "experiment.json"
    if not path.is_file():
        raise UserError(f"{arguments[0]} is not a run folder: it has no experiment.json")
    experiment = read_experiment(path)
    if not isinstance(experiment, Experiment):
        raise UserError(
            f"{arguments[0]} trained an autoencoder, of which `selfflow {command}` knows nothing: give its "
            "autoencoder.safetensors to an experiment, as --autoencoder.image convolutional=PATH"
        )
    default = make_options(experiment)
    options = tyro.cli(
        tyro.conf.AvoidSubcommands[type(default)],
        prog=f"selfflow {command} {arguments[0]}",
        description=f"example: {example}",
        default=default,
        args=arguments[1:],
    )
    return arguments[0], options
