"""Parsing of command lines with an experiment file, `selfflow COMMAND EXPERIMENT [--FIELD VALUE ...]`, or a run."""

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
    """Parses the command line of a command on an experiment file.

    Args:
      command: name of the command.
      arguments: arguments after the name of the command.
      example: example of a command line, for messages.
      make_options: function experiment file -> dataclass of the command's flags, with their defaults.
      autoencoders: whether experiments that train an autoencoder are accepted.

    Returns:
      The experiment, the options and the data folder; None if the usage was printed.

    Raises:
      UserError: if the experiment file is missing or cannot be read.
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
        default, arguments = _with_autoencoders(default, arguments, options)

    def read_flags(
        experiment: Annotated[tyro.conf.AvoidSubcommands[type(default)], tyro.conf.arg(name="")] = default,
        options: Annotated[type(options), tyro.conf.arg(name="")] = options,
        data_dir: Path | None = None,
    ) -> tuple:
        """Reads the flags.

        Args:
          experiment: the experiment.
          options: options of the command.
          data_dir: folder for data sets and latents, on a disk or in a bucket (gs://, s3://); by default
            $SELFFLOW_DATA or ~/.cache/selfflow.
        """
        return experiment, options, data_dir

    experiment, options, data_dir = tyro.cli(
        read_flags, prog=f"selfflow {command} {file}", description=f"example: {example}", args=arguments[1:]
    )
    return experiment, options, data_folder(data_dir)


def _with_autoencoders(experiment: Experiment, arguments: list[str], options: Any) -> tuple[Experiment, list[str]]:
    """Applies the flags `--autoencoder.M NAME[=PATH]`; returns the experiment and the remaining arguments.

    These flags are parsed before tyro runs, because tyro derives the flags of an autoencoder's fields from its class.
    """
    texts: dict[str, str] = {}  # by modality
    others, rest = [], iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--autoencoder."):
            others.append(argument)
            continue
        m = flag.removeprefix("--autoencoder.")
        if m not in experiment.autoencoders:
            raise UserError(f"{flag}: the experiment has autoencoders of {', '.join(experiment.autoencoders)}")
        texts[m] = value if equals else next(rest, "")
    if not texts:
        return experiment, others

    # A resumed run uses its own copies of the weights, because the original files may have been changed or removed.
    previous = _autoencoders_of_run(_workdir(arguments, options))
    chosen = {m: parse_autoencoder(text, m, previous.get(m)) for m, text in texts.items()}
    return dataclasses.replace(experiment, autoencoders=experiment.autoencoders | chosen), others


def _workdir(arguments: list[str], options: Any) -> Path | None:
    """Returns the run folder of an unparsed command line; None if the command has no run folder."""
    workdir = getattr(options, "workdir", None)
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag == "--workdir":
            following = arguments[i + 1] if i + 1 < len(arguments) else ""
            workdir = Path(value if equals else following)
    return workdir


def _autoencoders_of_run(folder: Path | None) -> Mapping[str, AnyAutoencoder]:
    """Returns the autoencoders of a run, or of the first readable run of a sweep; {} if the folder has no run."""
    if folder is None:
        return {}
    for path in [folder / "experiment.json", *sorted(folder.glob("*/experiment.json"))]:
        if not path.exists():
            continue
        try:
            return getattr(read_experiment(path), "autoencoders", {})
        except UserError:
            continue  # training reports the damaged file
    return {}


def parse_run(
    command: str, arguments: list[str], example: str, make_options: Callable[[Experiment], Options]
) -> tuple[str, Options] | None:
    """Parses the command line of a command on a run: `selfflow COMMAND RUN [--FLAG VALUE ...]`.

    Args:
      command: name of the command.
      arguments: arguments after the name of the command.
      example: example of a command line, for messages.
      make_options: function experiment of the run -> dataclass of the command's flags, with their defaults.

    Returns:
      The run's path or URL and the options; None if the usage was printed.

    Raises:
      UserError: if no run folder is named, or it does not contain a run of a flow-matching transformer.
    """
    from selfflow.storage.runs import local_copy

    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: selfflow {command} RUN [--FLAG VALUE ...]\n\nexample: {example}")
        print(f"\n`selfflow {command} RUN --help` lists every flag with its default for that run.")
        return None
    if arguments[0].startswith("-"):
        raise UserError(f"name a run folder first; example: {example}")
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    repeated = sorted(flag for flag in flags if flags.count(flag) > 1)
    if repeated:
        # tyro would silently use only the last value.
        raise UserError(f"{repeated[0]} is repeated: list all its values after one flag")
    path = local_copy(arguments[0]) / "experiment.json"
    if not path.is_file():
        raise UserError(f"{arguments[0]} is not a run folder: it has no experiment.json")
    experiment = read_experiment(path)
    if not isinstance(experiment, Experiment):
        raise UserError(
            f"{arguments[0]} trained an autoencoder, which `selfflow {command}` does not apply to: use its "
            "autoencoder.safetensors in an experiment, by --autoencoder.image convolutional=PATH"
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
