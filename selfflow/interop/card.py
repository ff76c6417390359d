"""The card of exported weights, made from the run: what they are, of what data, with what result, and how to load them.

The form is that of model cards on the Hugging Face Hub: Markdown after a head in YAML.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfflow.errors import UserError
from selfflow.models.sit import SiTConfig
from selfflow.serialization import to_json

if TYPE_CHECKING:
    from selfflow.interop.exported import Description
    from selfflow.run.run import Run

_SHOWN = ("loss", "flow_loss/", "alignment_cosine/", "gradient_norm")
_FREE = "Apache-2.0"
# Fields of an experiment that stand elsewhere in the card, or say where and how and not what was trained.
_ELSEWHERE = set(
    "data autoencoders patch mixture model steps text seed devices cadence limits profile final_evaluation init_from "
    "loader exclude latents".split()
)
_UNKNOWN = "not told by the run"


def card(run: "Run", told: "Description", provenance: dict[str, Any], parameters: dict[str, int]) -> str:
    """The text of `README.md`.

    Args:
      run: the run.
      told: what is exported of it.
      provenance: what `run.provenance()` gives.
      parameters: how many there are in the model, and in the projector.

    Raises:
      UserError: if a file of the run lacks what it should tell.
    """
    with told_by(run.path / "provenance.json"):
        first = [_head(run, provenance), _about(run, told, provenance, parameters)]
        data = _data(run, provenance)
        last = [_licence(run, provenance), _made_with(provenance)]
    with told_by(run.path / "summary.json"):
        results = _measured(run, told)
    with told_by(run.path / "metrics.jsonl"):
        results += _last_row(run, told)
    results = results or [f"None: nothing was measured on the weights of step {told.step}."]
    training = _training(run, told, imported=bool(provenance.get("imported")))
    parts = [*first, _use(told), _model(told, parameters), data, training, "## Results", *results, *last]
    return "\n\n".join(parts) + "\n"


@contextmanager
def told_by(path: Path) -> Iterator[None]:
    """Turns what a file of the run lacks into a `UserError` that names it."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): restore it from a copy") from error


def _head(run: "Run", provenance: dict[str, Any]) -> str:
    data, licences = run.experiment.data, _licences(run, provenance)
    lines = ["---", f"license: {'apache-2.0' if set(licences.values()) == {_FREE} else 'other'}"]
    if set(licences.values()) != {_FREE}:
        lines.append("license_name: see-the-card")
    lines += ["library_name: selfflow", "tags:", "- self-flow", "- flow-matching", "- jax"]
    names = sorted({re.sub(r"[^\w.-]+", "-", getattr(d, "name", "") or d.kind) for d in data.values()})
    return "\n".join([*lines, *(["datasets:"] if names else []), *(f"- {json.dumps(name)}" for name in names), "---"])


def _about(run: "Run", told: "Description", provenance: dict[str, Any], parameters: dict[str, int]) -> str:
    kind = "SiT" if isinstance(told.model, SiTConfig) else "joint transformer"
    text = f"A {kind} over {', '.join(told.modalities)} latents, {parameters['model']:,} parameters"
    if imported := provenance.get("imported"):
        text += f": imported from {_file(imported)}, and not trained since."
    else:
        whose = "the EMA" if told.weights == "ema" else "the student, not its EMA"
        text += f": {whose}, after step {told.step} of a run of {run.experiment.steps}."
    paper = "[arXiv 2603.06507](https://arxiv.org/abs/2603.06507)"
    text += f"\nMade with selfflow, which follows {paper}."
    return f"# {_plain(run.path.resolve().name)}\n\n{text}"


_SIT_USE = """Tokens are [B, N, P], tau [B] or [B, N], label [B]. The keys are those of the released SiT, which
`selfflow.interop.load_released_sit(PATH, num_heads={heads}, patch_size={patch_size})` reads as well."""
_JOINT_USE = """By modality: tokens [B, N, P]; levels [B, K], the noise levels of a sample; assignment [B, N], which of
them a token has. The keys are the dotted names of the parameters of `selfflow.models.joint.JointTransformer`, after
`model.`."""


def _use(told: "Description") -> str:
    sit = isinstance(told.model, SiTConfig)
    call = "tokens, tau, label" if sit else "tokens, levels, label, assignment"
    return f"""## Use

```python
from selfflow.interop import load_exported
exported = load_exported("FOLDER")  # where these files are
velocity = exported.model({call}).velocity
```

{_SIT_USE.format(**to_json(told.model)) if sit else _JOINT_USE}
tau is 0 for data and 1 for noise, and the velocity is noise - data; label {told.model.labels} stands for no label.
`exported.modalities[NAME].to_tokens` cuts latents [B, ...] into tokens, `from_tokens` puts them together.
`load_exported` checks the files, and so does `sha256sum -c SHA256SUMS`."""


def _model(told: "Description", parameters: dict[str, int]) -> str:
    projector = f"{parameters['projector']:,} parameters, the student's" if told.projector else "none"
    fields = {name: value for name, value in to_json(told.model).items() if name != "execution"}
    shape = _table(("field", "value"), [*fields.items(), ("projector", projector)])
    streams = [
        (
            name,
            list(m.latent),
            list(m.patch),
            m.tokens,
            f"{10 * m.period:g} ms" if m.period else "-",
            *_encoder(told, name),
        )
        for name, m in told.modalities.items()
    ]
    columns = ("modality", "latent", "patch", "tokens", "a latent frame", "autoencoder", "its identity")
    text = f"\n\nCaptions: {_told(to_json(told.text.settings))}; {told.text.identity or _UNKNOWN}." if told.text else ""
    return f"## Model\n\n{shape}\n\n{_table(columns, streams)}{text}"


def _encoder(told: "Description", modality: str) -> tuple[str, str]:
    encoder = told.autoencoders.get(modality)
    return (_told(to_json(encoder.settings)), encoder.identity or _UNKNOWN) if encoder else (_UNKNOWN, _UNKNOWN)


def _data(run: "Run", provenance: dict[str, Any]) -> str:
    datasets = provenance.get("datasets", {})
    rows = [
        (name, datasets.get(name, {}).get("dataset", data.kind), data.licence)
        + tuple(datasets.get(name, {}).get(what, _UNKNOWN) for what in ("fingerprint", "latents"))
        for name, data in run.experiment.data.items()
    ]
    table = _table(("data set", "which", "licence", "hash of its records", "hash of its latents"), rows)
    if not rows:
        table = "What the weights were trained on is not known here: they were imported."
    elif provenance["data"]:
        table += f"\n\nAll that the run read has the hash {provenance['data']}."
    lines = [table]
    for ancestor in provenance.get("ancestors", []):
        of = [f"trained on {each['dataset']} ({each['licence']})" for each in ancestor["datasets"].values()]
        of += [f"imported from {_file(ancestor['imported'])}"] if ancestor["imported"] else []
        lines.append(f"The weights descend from {_run(ancestor)}: {', '.join(of) or _UNKNOWN}.")
    return "## Data\n\n" + "\n\n".join(lines)


def _training(run: "Run", told: "Description", *, imported: bool) -> str:
    if imported:
        return (
            "## Training\n\nNot here. `experiment.json` describes the model; its other fields, optimizer, noise and "
            "layers among them, are defaults and not what the weights were trained with."
        )
    fields = to_json(run.experiment)
    rows = [("steps", f"{told.step} of {fields['steps']}")]
    rows += [(f"seed.{name}", value) for name, value in fields["seed"].items()]
    rows += [
        (name, _told(value))
        for name, value in fields.items()
        if name not in _ELSEWHERE and value not in ({}, [], "", None)
    ]
    rows += [(f"mixture.{name}", _told(chosen)) for name, chosen in fields["mixture"].items()]
    return f"## Training\n\n{_table(('setting', 'value'), rows)}\n\nThe whole experiment stands in `experiment.json`."


def _measured(run: "Run", told: "Description") -> list[str]:
    """What the run measured of these weights at its end."""
    summary, parts = run.summary(), []
    if not summary or summary["steps"] != told.step:
        return []
    rows = [
        (name, f"{v['loss']:.3f}", f"{v['linear_baseline']:.3f}", f"{v['normalised_loss']:.2f}", v["split"])
        for name, v in summary["flow_loss"].items()
    ]
    table = _table(("component / modality", "loss", "linear baseline", "normalised loss", "split"), rows)
    parts.append(f"Flow loss of the EMA; the linear baseline is the best guess that knows no structure:\n\n{table}")
    if probes := summary.get("probes"):
        columns = list(dict.fromkeys(column for row in probes.values() for column in row))
        cell = lambda row, column: f"{row[column]['test']:.2f}" if column in row else ""
        rows = [(name, *(cell(row, column) for column in columns)) for name, row in probes.items()]
        parts.append(
            "Linear probes on features of the EMA, test split; balanced accuracy, and R^2 for position and contacts:"
            f"\n\n{_table(('features', *columns), rows)}"
        )
    return parts


def _last_row(run: "Run", told: "Description") -> list[str]:
    """The training metrics of the step."""
    row = next((row for row in reversed(run.metrics()) if row["step"] == told.step), None)
    if row is None:
        return []
    shown = [name for name in row if name.startswith(_SHOWN) and "/tau_" not in name]
    rows = [(name, "not finite" if row[name] is None else f"{row[name]:.4g}") for name in shown]
    about = f"Metrics of the student in step {told.step}, on a batch of the component {_plain(row['component'])}"
    return [f"{about}:\n\n{_table(('metric', 'value'), rows)}"]


def _licence(run: "Run", provenance: dict[str, Any]) -> str:
    licences = _licences(run, provenance)
    lines = [f"- {_plain(name)}: {_plain(licence)}" for name, licence in licences.items()]
    return "\n".join(
        [
            f"## Licence\n\nThe code that made these files is {_FREE}. For the weights count the licences of what they",
            "were made from, and whoever passes them on answers for that:\n",
            *lines,
        ]
    )


def _licences(run: "Run", provenance: dict[str, Any]) -> dict[str, str]:
    """What the weights were made from, in this run and before it, and its licence."""
    found = {name: data.licence for name, data in run.experiment.data.items()}
    told = [provenance, *provenance.get("ancestors", [])]
    for ancestor in told[1:]:
        found |= {each["dataset"]: each["licence"] for each in ancestor["datasets"].values()}
        if not ancestor["datasets"] and not ancestor["imported"]:
            found[_run(ancestor)] = _UNKNOWN
    imported = [each["imported"] for each in told if each.get("imported")]
    return found | {_file(origin): "that of whoever made it; not known here" for origin in imported}


def _made_with(provenance: dict[str, Any]) -> str:
    last = provenance["sessions"][-1]
    changed = {None: "", True: ", with changes that were not committed", False: ""}[last["dirty"]]
    rows = [
        ("selfflow", f"{last['selfflow']}" + (f", commit {last['commit']}{changed}" if last["commit"] else "")),
        ("python", last["python"]),
        *last["packages"].items(),
        ("devices", ", ".join(last["devices"])),
        ("sessions", len(provenance["sessions"])),
    ]
    return f"## Made with\n\n{_table(('', ''), rows)}"


def _run(ancestor: dict[str, Any]) -> str:
    return f"the run {_plain(ancestor['run'].rstrip('/').rsplit('/', 1)[-1])}"  # not where it lay


def _file(origin: dict[str, Any]) -> str:
    return f"{origin['file'].rsplit('/', 1)[-1]} (sha256 {origin['sha256']})"


def _told(value: Any) -> str:
    """JSON data of a setting on one line: its kind first, then its fields."""
    if not isinstance(value, dict):
        return str(value)
    fields = [f"{name} {_told(v)}" for name, v in value.items() if name != "kind" and v not in ({}, "")]
    return ", ".join([*([value["kind"]] if "kind" in value else []), *fields])


def _table(head: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(value: Any) -> str:
    """Text that ends neither a cell nor a line."""
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|")
