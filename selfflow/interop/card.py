"""The model card of exported weights, as on the Hugging Face Hub: Markdown after a header in YAML.

Its sections come from the run: model, data, training settings, results, licences, and how to load the weights.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfflow.errors import UserError
from selfflow.models.sit import SiTConfig
from selfflow.serialization import to_json

if TYPE_CHECKING:
    from selfflow.interop.exported import Description
    from selfflow.run.run import Run

_METRICS = ("loss", "flow_loss/", "alignment_", "gradient_norm")
_OWN_LICENCE = "Apache-2.0"
_UNKNOWN = "not recorded"
# Fields of an experiment that are in another section of the card, or do not affect the weights.
NOT_IN_TRAINING = set(
    "data autoencoders patch mixture model steps text seed devices cadence limits profile final_evaluation init_from "
    "loader exclude latents".split()
)


def model_card(run: "Run", description: "Description", provenance: dict[str, Any], parameters: dict[str, int]) -> str:
    """Returns the text of `README.md`.

    Args:
      run: the run.
      description: description of the exported weights.
      provenance: provenance from `run.provenance()`.
      parameters: number of parameters of "model", and of "projector" if there is one.

    Raises:
      UserError: if a file of the run lacks an entry.
    """
    with damage_in(run.path / "provenance.json"):
        title = [_header(run, provenance), _title(run, description, provenance, parameters)]
        data = _data(run, provenance)
        end = [_licence(run, provenance), _made_with(provenance)]
    with damage_in(run.path / "summary.json"):
        results = _summary(run, description)
    with damage_in(run.path / "metrics.jsonl"):
        results += _metrics(run, description)
    if not results:
        results = [f"None: the weights of step {description.step} were not evaluated."]
    training = _imported_training() if provenance.get("imported") else _training(run, description)
    sections = [*title, _use(description), _model(description, parameters), data, training, "## Results", *results]
    return "\n\n".join([*sections, *end]) + "\n"


@contextmanager
def damage_in(path: Path) -> Iterator[None]:
    """Raises a `UserError` that names a file of the run if its content lacks an entry or has one of another type."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): restore it from a copy") from error


def _header(run: "Run", provenance: dict[str, Any]) -> str:
    lines = ["---"]
    if set(_licences(run, provenance).values()) == {_OWN_LICENCE}:
        lines.append("license: apache-2.0")
    else:
        lines += ["license: other", "license_name: see-the-card"]
    lines += ["library_name: selfflow", "tags:", "- self-flow", "- flow-matching", "- jax"]
    names = set()
    for data in run.experiment.data.values():
        names.add(re.sub(r"[^\w.-]+", "-", data.name or data.kind))
    if names:
        lines.append("datasets:")
        lines += [f"- {json.dumps(name)}" for name in sorted(names)]
    return "\n".join([*lines, "---"])


def _title(run: "Run", description: "Description", provenance: dict[str, Any], parameters: dict[str, int]) -> str:
    kind = "SiT" if isinstance(description.model, SiTConfig) else "joint transformer"
    text = f"A {kind} over {', '.join(description.modalities)} latents, {parameters['model']:,} parameters"
    imported = provenance.get("imported")
    if imported:
        text += f": imported from {_file_of(imported)}, without further training."
    else:
        weights = "the EMA" if description.weights == "ema" else "the student, not its EMA"
        text += f": {weights}, after step {description.step} of a run of {run.experiment.steps}."
    paper = "[arXiv 2603.06507](https://arxiv.org/abs/2603.06507)"
    return f"# {_plain(run.path.resolve().name)}\n\n{text}\nMade with selfflow, which implements {paper}."


_INPUTS = """By modality: tokens [B, N, P]; levels [B, K], the noise levels of a sample; assignment [B, N], which of
them a token has. label is [B]."""
_SIT_KEYS = """The keys of the weights are those of the released SiT, which
`selfflow.interop.load_released_sit(PATH, num_heads={heads}, patch_size={patch_size})` reads as well."""
_JOINT_KEYS = """The keys of the weights are the dotted names of the parameters of
`selfflow.models.joint.JointTransformer`, after `model.`."""


def _use(description: "Description") -> str:
    keys = _JOINT_KEYS
    if isinstance(description.model, SiTConfig):
        keys = _SIT_KEYS.format(**to_json(description.model))
    return f"""## Use

```python
from selfflow.interop import load_exported
exported = load_exported("FOLDER")  # the folder of these files
velocity = exported.model(tokens, levels, label, assignment).velocity
```

{_INPUTS} {keys}
Levels are 0 for data and 1 for noise; the velocity is noise - data; label {description.model.labels} means no label.
`exported.modalities[NAME].to_tokens` turns latents [B, ...] into tokens, `from_tokens` tokens into latents.
`load_exported` checks the files, as `sha256sum -c SHA256SUMS` does."""


def _model(description: "Description", parameters: dict[str, int]) -> str:
    fields = to_json(description.model)
    fields.pop("execution", None)
    fields["projector"] = f"{parameters['projector']:,} parameters, the student's" if description.projector else "none"
    columns = ("modality", "latent", "patch", "tokens", "a latent frame", "autoencoder", "its identity")
    rows = []
    for name, modality in description.modalities.items():
        frame = f"{10 * modality.period:g} ms" if modality.period else "-"
        encoder = description.autoencoders.get(name)
        settings = _format_setting(to_json(encoder.settings)) if encoder else _UNKNOWN
        identity = encoder.identity if encoder else ""
        shape = (list(modality.latent), list(modality.patch), modality.tokens)
        rows.append((name, *shape, frame, settings, identity or _UNKNOWN))
    parts = ["## Model", _table(("field", "value"), list(fields.items())), _table(columns, rows)]
    if description.text:
        settings = _format_setting(to_json(description.text.settings))
        parts.append(f"Captions: {settings}; {description.text.identity or _UNKNOWN}.")
    return "\n\n".join(parts)


def _data(run: "Run", provenance: dict[str, Any]) -> str:
    datasets = provenance.get("datasets", {})
    rows = []
    for name, data in run.experiment.data.items():
        entry = datasets.get(name, {})
        hashes = entry.get("fingerprint", _UNKNOWN), entry.get("latents", _UNKNOWN)
        rows.append((name, entry.get("dataset", data.kind), data.licence, *hashes))
    parts = ["## Data"]
    if rows:
        parts.append(_table(("data", "data set", "licence", "hash of its records", "hash of its latents"), rows))
        if provenance["data"]:
            parts.append(f"Hash of all data of the run: {provenance['data']}.")
    else:
        parts.append("The training data is not known: the weights were imported.")
    for ancestor in provenance.get("ancestors", []):
        sources = [f"trained on {entry['dataset']} ({entry['licence']})" for entry in ancestor["datasets"].values()]
        if ancestor["imported"]:
            sources.append(f"imported from {_file_of(ancestor['imported'])}")
        parts.append(f"The weights descend from {_run_of(ancestor)}: {', '.join(sources) or _UNKNOWN}.")
    return "\n\n".join(parts)


def _imported_training() -> str:
    return (
        "## Training\n\nNone in this run: the weights were imported. `experiment.json` describes the model; its other "
        "fields, optimizer, noise and layers among them, are defaults and not the settings of the training."
    )


def _training(run: "Run", description: "Description") -> str:
    fields = to_json(run.experiment)
    rows = [("steps", f"{description.step} of {fields['steps']}")]
    rows += [(f"seed.{name}", value) for name, value in fields["seed"].items()]
    for name, value in fields.items():
        if name not in NOT_IN_TRAINING and value not in ({}, [], "", None):
            rows.append((name, _format_setting(value)))
    rows += [(f"mixture.{name}", _format_setting(component)) for name, component in fields["mixture"].items()]
    return f"## Training\n\n{_table(('setting', 'value'), rows)}\n\nThe whole experiment is in `experiment.json`."


def _summary(run: "Run", description: "Description") -> list[str]:
    """Flow losses and probes of the final evaluation, if it is of these weights."""
    summary = run.summary()
    if not summary or summary["steps"] != description.step:
        return []
    rows = []
    for name, loss in summary["flow_loss"].items():
        numbers = f"{loss['loss']:.3f}", f"{loss['linear_baseline']:.3f}", f"{loss['normalised_loss']:.2f}"
        rows.append((name, *numbers, loss["split"]))
    table = _table(("component / modality", "loss", "linear baseline", "normalised loss", "split"), rows)
    baseline = "the linear baseline is the loss of the best per-channel linear predictor"
    parts = [f"Flow loss of the EMA; {baseline}:\n\n{table}"]
    probes = summary.get("probes")
    if probes:
        parts.append(
            "Linear probes on features of the EMA, test split; balanced accuracy, and R^2 for position and contacts:"
            f"\n\n{_probe_table(probes)}"
        )
    return parts


def _probe_table(probes: dict[str, dict[str, dict[str, float]]]) -> str:
    columns: dict[str, None] = {}
    for scores in probes.values():
        columns.update(dict.fromkeys(scores))
    rows = []
    for name, scores in probes.items():
        rows.append((name, *(f"{scores[column]['test']:.2f}" if column in scores else "" for column in columns)))
    return _table(("features", *columns), rows)


def _metrics(run: "Run", description: "Description") -> list[str]:
    """Returns the training metrics of the step, if they were logged."""
    rows = [row for row in run.metrics() if row["step"] == description.step]
    if not rows:
        return []
    row = rows[-1]
    values = []
    for name, value in row.items():
        if name.startswith(_METRICS) and "/tau_" not in name:
            values.append((name, "not finite" if value is None else f"{value:.4g}"))
    batch = f"on a batch of the component {_plain(row['component'])}"
    return [f"Metrics of the student in step {description.step}, {batch}:\n\n{_table(('metric', 'value'), values)}"]


def _licence(run: "Run", provenance: dict[str, Any]) -> str:
    lines = [
        f"## Licence\n\nThe code that made these files is under {_OWN_LICENCE}. The weights are subject to the",
        "licences of their sources; whoever distributes the weights is responsible for them:\n",
    ]
    lines += [f"- {_plain(source)}: {_plain(licence)}" for source, licence in _licences(run, provenance).items()]
    return "\n".join(lines)


def _licences(run: "Run", provenance: dict[str, Any]) -> dict[str, str]:
    """Returns the licence of each source of the weights: data of this run and of its ancestors, and imported files."""
    licences = {name: data.licence for name, data in run.experiment.data.items()}
    ancestors = provenance.get("ancestors", [])
    for ancestor in ancestors:
        for entry in ancestor["datasets"].values():
            licences[entry["dataset"]] = entry["licence"]
        if not ancestor["datasets"] and not ancestor["imported"]:
            licences[_run_of(ancestor)] = _UNKNOWN
    for entry in (provenance, *ancestors):
        if entry.get("imported"):
            licences[_file_of(entry["imported"])] = "that of its author, not known here"
    return licences


def _made_with(provenance: dict[str, Any]) -> str:
    last = provenance["sessions"][-1]
    code = last["selfflow"]
    if last["commit"]:
        code += f", commit {last['commit']}"
        code += ", with uncommitted changes" if last["dirty"] else ""
    rows = [
        ("selfflow", code),
        ("python", last["python"]),
        *last["packages"].items(),
        ("devices", ", ".join(last["devices"])),
        ("sessions", len(provenance["sessions"])),
    ]
    return f"## Made with\n\n{_table(('', ''), rows)}"


def _run_of(ancestor: dict[str, Any]) -> str:
    """Returns the name of a run, without the path to its folder."""
    return f"the run {_plain(ancestor['run'].rstrip('/').rsplit('/', 1)[-1])}"


def _file_of(origin: dict[str, Any]) -> str:
    """Returns the name of an imported file, without the path to its folder."""
    return f"{origin['file'].rsplit('/', 1)[-1]} (sha256 {origin['sha256']})"


def _format_setting(value: Any) -> str:
    """JSON data of a setting on one line: its kind first, then its fields."""
    if not isinstance(value, dict):
        return str(value)
    parts = [value["kind"]] if "kind" in value else []
    for name, field in value.items():
        if name != "kind" and field not in ({}, ""):
            parts.append(f"{name} {_format_setting(field)}")
    return ", ".join(parts)


def _table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _plain(value: Any) -> str:
    """Text that ends neither a cell nor a line."""
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|")
