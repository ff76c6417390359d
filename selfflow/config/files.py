"""Reading and writing of experiments, as Python files and as `experiment.json`, and their comparison."""

import dataclasses
import importlib.machinery
import importlib.util
import json
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

from selfflow.config.autoencoder_experiment import AutoencoderExperiment
from selfflow.config.experiment import Experiment
from selfflow.errors import UserError, did_you_mean
from selfflow.serialization import dataclasses_in, from_json, to_json
from selfflow.storage.atomic import atomic_write

# The experiment of a run. `AutoencoderExperiment` trains an autoencoder, `Experiment` a model of latents.
AnyExperiment = Experiment | AutoencoderExperiment


def load_experiment(path: str | Path, autoencoders: bool = False) -> AnyExperiment:
    """Runs an experiment file and returns the experiment of its function `experiment()`.

    Args:
      path: path of the experiment file.
      autoencoders: whether experiments that train an autoencoder are accepted.

    Raises:
      UserError: if the file or its function does not exist, or a value is not of the type of its field.
    """
    module = load_module(path)
    try:
        if not hasattr(module, "experiment"):
            raise UserError(f"{path} defines no function experiment() that returns an Experiment")
        experiment = module.experiment()
    except TypeError as error:
        _raise_if_unknown_field(error, path)
        raise  # a mistake in the file's own code: the traceback shows the line
    if isinstance(experiment, AutoencoderExperiment) and not autoencoders:
        raise UserError(f"{path} trains an autoencoder, which only `selfflow train` does")
    if not isinstance(experiment, AnyExperiment):
        raise UserError(f"{path}: experiment() returned {type(experiment).__name__}, not an Experiment")
    # Dataclasses do not check the types of their values, but `from_json` does.
    return from_json(to_json(experiment), type(experiment), str(path))


def load_module(path: str | Path) -> ModuleType:
    """Runs an experiment file and returns it as a module.

    Raises:
      UserError: if the file does not exist or has a syntax error.
    """
    path = Path(path)
    if (path / "experiment.json").is_file():
        raise UserError(f"{path} is a run folder: give an experiment file, with --init-from {path} for its weights")
    if not path.is_file():
        installed = _installed_file(path)
        if installed:
            raise UserError(f"no experiment file {path}; the installed package has {installed}")
        names = [str(p) for p in path.parent.glob("*.py")]
        raise UserError(f"no experiment file {path}; {did_you_mean(str(path), names)}")
    name = f"selfflow_experiment_{path.stem}"
    # An explicit loader is needed for suffixes other than .py, such as .PY.
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except TypeError as error:
        _raise_if_unknown_field(error, path)
        raise  # a mistake in the file's own code: the traceback shows the line
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from error
    return module


def _installed_file(path: Path) -> Path | None:
    """Returns the file of the installed package for a path `experiments/NAME.py`; None if there is none."""
    spec = importlib.util.find_spec("selfflow.experiments")
    if spec is None or "experiments" not in path.parts:
        return None
    below = path.parts[path.parts.index("experiments") + 1 :]
    file = Path(spec.origin).parent.joinpath(*below)
    return file if file.is_file() else None


def _raise_if_unknown_field(error: TypeError, path: str | Path) -> None:
    """Raises `UserError` if an error is due to a dataclass called with an unknown field."""
    if "keyword argument" in str(error):
        raise UserError(f"{path}: {_with_suggestion(str(error))}") from error


def _with_suggestion(message: str) -> str:
    """Adds the nearest field name to Python's message about an unexpected keyword.

    The message is "CLASS.__init__() got an unexpected keyword argument 'NAME'".
    """
    if "unexpected keyword argument" not in message:
        return message
    typo, class_name = message.split("'")[1], message.split(".")[0]
    fields: list[str] = []
    for config in dataclasses_in(AnyExperiment):
        if config.__name__ == class_name:
            fields += [field.name for field in dataclasses.fields(config)]
    return f"{message.replace('.__init__()', '')}; {did_you_mean(typo, fields)}"


# Fields that may change when a run is resumed: length, evaluation, execution, locations of files, excluded samples.
MUTABLE_FIELDS = (
    "steps",
    "cadence",
    "limits",
    "profile",
    "sampler",
    "evaluation",
    "final_evaluation",
    "data.*.workers",
    "model.execution",
    "devices",
    "loader",
    "exclude",
    "autoencoders.*.path",
    "held_out",
    "latents",
)


def diff(old: AnyExperiment, new: AnyExperiment) -> dict[str, tuple[Any, Any]]:
    """Returns the fields in which two experiments differ: {dotted name: (old, new)}."""
    before, after = _leaves(to_json(old)), _leaves(to_json(new))
    changes = {}
    for name in sorted(before | after):
        if before.get(name) != after.get(name):
            changes[name] = before.get(name), after.get(name)
    return changes


def _leaves(data: dict[str, Any]) -> dict[str, Any]:
    """Returns the leaves of a nested dict, by dotted names."""
    leaves = {}
    for key, value in data.items():
        if isinstance(value, dict):
            for name, leaf in _leaves(value).items():
                leaves[f"{key}.{name}"] = leaf
        else:
            leaves[key] = value
    return leaves


def is_fixed(name: str) -> bool:
    """Returns whether a field may not change when a run is resumed."""
    return not any(fnmatch(name, free) or fnmatch(name, f"{free}.*") for free in MUTABLE_FIELDS)


def save_experiment(experiment: AnyExperiment, path: Path) -> None:
    """Writes `experiment.json`."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(to_json(experiment), indent=1), encoding="utf-8")


def read_experiment(path: Path) -> AnyExperiment:
    """Reads `experiment.json`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict) and data.get("kind") == "autoencoder":
            return from_json(data, AutoencoderExperiment, str(path))
        return from_json(data, Experiment, str(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore it or use another --workdir") from error
