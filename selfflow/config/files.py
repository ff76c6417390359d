"""Experiments in files: Python that makes one, JSON that keeps one, and what differs between two."""

import dataclasses
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

# What a run may be of: `AutoencoderExperiment` trains what makes latents, `Experiment` what they are for.
AnyExperiment = Experiment | AutoencoderExperiment


def load_experiment(path: str | Path, autoencoders: bool = False) -> AnyExperiment:
    """Runs an experiment file and returns what its `experiment()` makes.

    Args:
      path: the file.
      autoencoders: whether it may be one that trains an autoencoder.

    Raises:
      UserError: if there is no such file, or it has no such function, or a field does not fit its type.
    """
    module = load_module(path)
    try:
        if not hasattr(module, "experiment"):
            raise UserError(f"{path} defines no function experiment() that returns an Experiment")
        made = module.experiment()
    except TypeError as error:
        _explain(error, path)
        raise  # a mistake in the file's own code: the traceback shows the line
    if isinstance(made, AutoencoderExperiment) and not autoencoders:
        raise UserError(f"{path} trains an autoencoder: `selfflow train` takes it, and no other command")
    if not isinstance(made, AnyExperiment):
        raise UserError(f"{path}: experiment() returned {type(made).__name__}, not an Experiment")
    return from_json(to_json(made), type(made), str(path))


def load_module(path: str | Path) -> ModuleType:
    """Runs an experiment file and returns all that it defines.

    Raises:
      UserError: if there is no such file, or it is no Python.
    """
    path = Path(path)
    if (path / "experiment.json").is_file():
        raise UserError(f"{path} is a run folder: give an experiment file, with --init-from {path} for its weights")
    if not path.is_file():
        names = [str(p) for p in path.parent.glob("*.py")]
        raise UserError(f"no experiment file {path}; {did_you_mean(str(path), names)}")
    spec = importlib.util.spec_from_file_location(f"selfflow_experiment_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except TypeError as error:
        _explain(error, path)
        raise  # a mistake in the file's own code: the traceback shows the line
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from error
    return module


def _explain(error: TypeError, path: str | Path) -> None:
    """Raises a `UserError` where a dataclass was given a field that it does not have."""
    if "keyword argument" in str(error):
        raise UserError(f"{path}: {_with_suggestion(str(error))}") from error


def _with_suggestion(message: str) -> str:
    """Adds the nearest field name to Python's complaint about an unexpected keyword."""
    if "unexpected keyword argument" not in message:
        return message
    typo, owner = message.split("'")[1], message.split(".")[0]
    classes = [c for c in dataclasses_in(AnyExperiment) if c.__name__ == owner]
    fields = [field.name for found in classes for field in dataclasses.fields(found)]
    return f"{message.replace('.__init__()', '')}; {did_you_mean(typo, fields)}"


# Fields that say how and how long a run computes, not what: these may change while it runs.
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
    """Leaves that differ: {dotted name: (old, new)}."""

    def leaves(data: Any, name: str) -> dict[str, Any]:
        if isinstance(data, dict):
            return {k: v for key in data for k, v in leaves(data[key], f"{name}.{key}".lstrip(".")).items()}
        return {name: data}

    a, b = leaves(to_json(old), ""), leaves(to_json(new), "")
    return {name: (a.get(name), b.get(name)) for name in sorted(a | b) if a.get(name) != b.get(name)}


def is_fixed(name: str) -> bool:
    """Whether a field says what is computed, and may therefore not change in a run."""
    return not any(fnmatch(name, free) or fnmatch(name, f"{free}.*") for free in MUTABLE_FIELDS)


def save_experiment(experiment: AnyExperiment, path: Path) -> None:
    """Writes `experiment.json`."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(to_json(experiment), indent=1))


def read_experiment(path: Path) -> AnyExperiment:
    """Reads `experiment.json`."""
    try:
        data = json.loads(path.read_text())
        if isinstance(data, dict) and data.get("kind") == "autoencoder":
            return from_json(data, AutoencoderExperiment, str(path))
        return from_json(data, Experiment, str(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore it or use another --workdir") from error
