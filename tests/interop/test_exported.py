"""Exported folders: they load what was exported, and refuse every other file."""

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from selfflow.config.experiment import Experiment
from selfflow.errors import UserError
from selfflow.interop import load_exported, load_released_sit, released_sit_weights
from selfflow.interop.card import NOT_IN_TRAINING
from selfflow.interop.export import export
from selfflow.run.run import open_run
from tests.interop.released import HEADS, PT, SAFETENSORS, recorded


@pytest.fixture(scope="module")
def sit(tmp_path_factory) -> Path:
    """An exported SiT, of an imported run that was removed."""
    from selfflow.cli.importing import main

    folder = tmp_path_factory.mktemp("sit")
    main([str(PT), "--out", str(folder / "run"), "--num-heads", str(HEADS)])
    (folder / "out").mkdir()
    export(open_run(folder / "run"), folder / "out")
    shutil.rmtree(folder / "run")
    return folder / "out"


@pytest.fixture(scope="module")
def joint(tiny_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("joint")
    export(open_run(tiny_run), folder)
    return folder


def sign(folder: Path) -> None:
    """Hashes the files, as an attacker could."""
    names = ("model.safetensors", "config.json")
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_an_imported_sit_is_exported_as_the_original_file(sit):
    """`load_released_sit` reads it, too."""
    assert (sit / "model.safetensors").read_bytes() == SAFETENSORS.read_bytes()
    model, config = load_released_sit(sit / "model.safetensors", num_heads=HEADS)
    exported = load_exported(sit)
    assert exported.config == config and list(exported.modalities) == ["image"]
    assert exported.modalities["image"].latent == (8, 8, 4) and exported.modalities["image"].patch == (2, 2)
    weights, expected = released_sit_weights(exported.model), released_sit_weights(model)
    assert list(weights) == list(expected)
    assert all(weights[key].tobytes() == expected[key].tobytes() for key in weights)
    golden = recorded()
    call = jax.jit(lambda x, tau, label: exported.model({"image": x}, {"image": tau}, label).velocity["image"])
    velocity = call(golden["x"], jnp.asarray(golden["tau_uniform"]), golden["labels"])
    np.testing.assert_allclose(velocity, golden["velocity_uniform"], rtol=0, atol=1e-5)
    assert exported.projector is exported.model.projector is not None


@pytest.mark.parametrize("weights", ["ema", "student"])
def test_a_joint_model_from_its_folder_alone_computes_what_the_run_does(tiny_run, data_dir, tmp_path, weights):
    shutil.copytree(tiny_run, tmp_path / "run")
    run = open_run(tmp_path / "run")
    state, objective = run.restore(9), run.objective
    inputs = _inputs(objective.modalities)
    params = state.frozen["ema"] if weights == "ema" else state.params["model"]
    expected = jax.jit(lambda *inputs: objective.apply(params, *inputs, taps=(1,)))(*inputs)
    projected = objective.project(state.params, expected.taps[1])
    (tmp_path / "out").mkdir()
    export(run, tmp_path / "out", step=9, weights=weights)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "out" / "experiment.json").unlink()

    exported = load_exported(tmp_path / "out")
    assert exported.config == run.experiment.model and exported.modalities == objective.modalities
    assert (exported.description.step, exported.description.weights) == (9, weights)
    output = jax.jit(lambda *inputs: exported.model(*inputs, taps=(1,)))(*inputs)
    jax.tree.map(np.testing.assert_array_equal, output, expected)
    for m, features in output.taps[1].items():
        np.testing.assert_array_equal(exported.projector(features), projected[m])
    encoders = exported.description.autoencoders
    assert encoders["audio"].settings == run.experiment.autoencoders["audio"]
    assert re.fullmatch(r"mdct_pca-\w{12}", encoders["audio"].identity)


def _inputs(modalities) -> tuple:
    random = np.random.default_rng(0)
    tokens = {
        m: random.standard_normal((2, s.tokens, s.token_size)).astype(np.float32)
        for m, s in modalities.items()
        if m != "image"
    }
    levels = {m: np.array([[0.2, 0.7], [0.5, 0.9]], np.float32) for m in tokens}
    assignment = {m: random.integers(0, 2, x.shape[:2]) for m, x in tokens.items()}
    return tokens, levels, np.zeros(2, np.int32), assignment


def test_ema_and_student_differ_and_are_named(tiny_run, joint, tmp_path):
    export(open_run(tiny_run), tmp_path, weights="student")
    ema, student = (load_file(folder / "model.safetensors") for folder in (joint, tmp_path))
    assert list(ema) == list(student) and "model.double.media.qkv.kernel" in ema
    differing = {key for key in ema if ema[key].tobytes() != student[key].tobytes()}
    assert differing and not any(key.startswith("projector.") for key in differing)
    assert "the student, not its EMA" in (tmp_path / "README.md").read_text()


def test_sha256sum_agrees(sit):
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=sit, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["model.safetensors:", "OK", "config.json:", "OK", "experiment.json:", "OK"]


def test_the_card_has_the_facts_of_the_run(tiny_run, joint):
    card = (joint / "README.md").read_text()
    run = open_run(tiny_run)
    (dataset,) = run.provenance()["datasets"].values()
    assert card.startswith("---\nlicense: apache-2.0\n") and 'datasets:\n- "collisions"\n---\n' in card
    facts = [dataset["dataset"], dataset["fingerprint"], dataset["latents"], *dataset["autoencoders"].values()]
    facts += [
        "steps | 12 of 12",
        "seed.noise | 0",
        "learning_rate 0.002",
        "dual, draw shared",
        f"jax | {jax.__version__}",
    ]
    facts += ["collisions: Apache-2.0", 'load_exported("FOLDER")', "trained, block 3", "after step 12 of a run of 12"]
    loss = run.summary()["flow_loss"]["joint/video"]
    facts += [
        f"joint/video | {loss['loss']:.3f} | {loss['linear_baseline']:.3f}",
        f"| loss | {run.metrics()[-1]['loss']:.4g} |",
    ]
    assert [fact for fact in facts if fact not in card] == []
    assert (joint / "experiment.json").read_bytes() == (tiny_run / "experiment.json").read_bytes()


def test_results_are_of_the_exported_step(tiny_run, sit, tmp_path):
    export(open_run(tiny_run), tmp_path, step=9)
    card = (tmp_path / "README.md").read_text()
    assert "Flow loss of the EMA" not in card and "in step 9" in card
    card = (sit / "README.md").read_text()
    assert "None: the weights of step 0" in card and "license: other" in card
    assert f"imported from {PT.name} (sha256 {hashlib.sha256(PT.read_bytes()).hexdigest()})" in card
    assert str(PT.parent) not in card  # the path is private


def test_the_licences_of_ancestors_are_in_the_card(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    dataset = {"dataset": "videos/1.0.0", "licence": "CC BY 4.0", "autoencoders": {}, "text": None}
    provenance["ancestors"] = [
        {"run": "/home/someone/first:7", "datasets": {"videos": dataset}, "imported": None},
        {"run": "/home/someone/older:9", "datasets": {}, "imported": {"file": "/x/base.pt", "sha256": "0f"}},
    ]
    (tmp_path / "run" / "provenance.json").write_text(json.dumps(provenance))
    (tmp_path / "out").mkdir()
    export(open_run(tmp_path / "run"), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: other" in card and "descend from the run first:7: trained on videos/1.0.0 (CC BY 4.0)" in card
    assert "- videos/1.0.0: CC BY 4.0" in card and "imported from base.pt" in card and "/home/someone" not in card


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "SHA256SUMS"])
def test_a_missing_or_changed_file_is_named(sit, tmp_path, name):
    folder = tmp_path / "copy"
    whole = (sit / name).read_bytes()
    for damaged in (None, b"", whole[: len(whole) // 3], whole[:50] + bytes([whole[50] ^ 1]) + whole[51:], bytes(100)):
        shutil.copytree(sit, folder)
        (folder / name).unlink() if damaged is None else (folder / name).write_bytes(damaged)
        with pytest.raises(UserError, match=rf"copy/({name}|\S+ does not have its hash|SHA256SUMS has no hash)"):
            load_exported(folder)
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="copy is not a folder"):
        load_exported(folder)


def _tensors(change):
    def act(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return act


def _config(**changes):
    """Leaves of config.json by their dotted names; None takes one out."""

    def act(folder):
        config = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            *parents, last = name.split(".")
            inner = config
            for parent in parents:
                inner = inner[parent]
            inner.pop(last) if value is None else inner.update({last: value})
        (folder / "config.json").write_text(json.dumps(config))

    return act


KEY = "model.single.outputs.kernel"
BOTH = [
    (_config(step=None), "config.json: the description: .*'step'"),
    (_config(colour=1), "config.json: unknown field colour"),
    (_config(format="selfflow-2"), "config.json: format is 'selfflow-2', expected one of 'selfflow-1'"),
    (_config(**{"model.heads": 0}), "config.json: model.heads is 0"),
    (_config(**{"model.kind": "unet"}), "config.json: model is"),
    (_config(projector=False), "model.safetensors has projector.linear1.bias|projector is False"),
    (_config(**{"modalities.image.latent": [0, 8, 4]}), r"config.json: a latent of shape \(0, 8, 4\)"),
    (_config(**{"modalities.image.patch": [3, 3]}), r"config.json: patch \(3, 3\) does not divide"),
    (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json is damaged"),
    (lambda folder: (folder / "config.json").write_text("[]"), r"config.json: the description is \[\]"),
    (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "config.json is damaged"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10" + bytes(99)), "model.safetensors is damaged"),
]
JOINT = [
    (_tensors(lambda t: t.pop(KEY)), f"model.safetensors lacks {KEY}"),
    (_tensors(lambda t: t.pop("projector.linear2.bias")), "lacks projector.linear2.bias"),
    (_tensors(lambda t: t.update({"model.extra": np.zeros(3, np.float32)})), "model.safetensors has model.extra"),
    (
        _tensors(lambda t: t.update({KEY: t[KEY][:, :, :-1].copy()})),
        rf"{KEY} has shape \(2, 96, 31\), .* \(2, 96, 32",
    ),
    (_tensors(lambda t: t.update({KEY: t[KEY] * np.nan})), f"model.safetensors: {KEY} holds NaN or infinity"),
    (_tensors(lambda t: t.update({KEY: t[KEY].astype(np.int32)})), f"{KEY} is int32"),
    (_config(**{"model.single_blocks": 1 << 40}), "model.single.* has shape .* config.json"),
    (_config(**{"model.single_blocks": 1 << 63}), "config.json: no model has such sizes"),
]
SIT = [
    (_tensors(lambda t: t.pop("blocks.2.attn.qkv.bias")), "model.safetensors lacks blocks.2.attn.qkv.bias"),
    (_tensors(lambda t: t.update({"pos_embed": -t["pos_embed"]})), "model.safetensors: pos_embed is not the sine"),
    (_config(**{"model.depth": 1 << 40}), "config.json: model.depth is 1099511627776, .* 4"),
    (_config(**{"model.labels": 9}), "config.json: model.labels is 9"),
    (_config(**{"model.mlp_ratio": 3.0}), "config.json: model.mlp_ratio is 3.0"),
    (_config(**{"model.input_size": 16}), "config.json: modalities: a SiT of this model takes one modality"),
]


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    "which, change, error",
    [("joint", *each) for each in BOTH + JOINT] + [("sit", *each) for each in BOTH + SIT],
)
def test_a_folder_that_was_hashed_anew_is_still_refused_by_file_and_key(request, tmp_path, which, change, error):
    folder = tmp_path / "copy"
    shutil.copytree(request.getfixturevalue(which), folder)
    change(folder)
    sign(folder)
    with pytest.raises(UserError, match=error) as refused:
        load_exported(folder)
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


def test_a_run_that_is_damaged_is_not_exported(tiny_run, tmp_path):
    from selfflow.run.folder import import_run

    def refused(error: str, **files: str) -> None:
        folder, out = tmp_path / "run", tmp_path / "out"
        shutil.copytree(tiny_run, folder)
        for name, text in files.items():
            (folder / f"{name}.json").write_text(text)
        out.mkdir()
        with pytest.raises(UserError, match=error):
            export(open_run(folder), out)
        shutil.rmtree(folder)
        shutil.rmtree(out)

    refused("provenance.json is missing or damaged", provenance="{")
    refused("provenance.json holds no JSON object", provenance="[]")
    refused(r"provenance.json is damaged \(KeyError: 'sessions'\)", provenance='{"data": "x"}')
    refused("provenance.json is damaged", provenance='{"datasets": {"x": {"autoencoders": 3}}}')
    refused("experiment.json is not valid JSON", experiment='{"steps": 3')
    refused(r"summary.json is damaged \(", summary='{"steps": 12, "flow_loss": 3}')
    run = open_run(tiny_run)
    params = run.weights().params
    params["model"]["time_in"]["kernel"] *= np.nan
    for name in ("run", "out"):
        (tmp_path / name).mkdir()
    origin = {"file": "x.pt", "bytes": 1, "sha256": "0"}
    import_run(tmp_path / "run", dataclasses.replace(run.experiment, steps=0), params, origin)
    with pytest.raises(UserError, match="model.time_in.kernel holds NaN or infinity"):
        export(open_run(tmp_path / "run"), tmp_path / "out")


def test_the_three_lines_of_the_card_run(capsys, sit, tmp_path):
    """In a process of their own, which has nothing but the folder."""
    import sys

    shutil.copytree(sit, tmp_path / "out")
    lines = re.search(r"```python\n(.*?)```", (sit / "README.md").read_text(), re.DOTALL)[1].replace("FOLDER", "out")
    code = (
        "import numpy as np\n"
        "tokens, levels, label = {'image': np.zeros((1, 16, 16))}, {'image': np.ones((1, 1))}, np.array([10])\n"
        "assignment = {'image': np.zeros((1, 16), int)}\n"
    ) + lines
    done = subprocess.run(
        [sys.executable, "-c", code + "print(velocity['image'].shape)"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "(1, 16, 16)\n", done.stderr


def test_fields_that_the_card_leaves_out_exist():
    """A renamed field would be in two sections of the card."""
    assert NOT_IN_TRAINING <= {field.name for field in dataclasses.fields(Experiment)}
