"""Every notebook runs from top to bottom and draws its figures, on a small run."""

from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.conftest import mentions
from tests.interop.released import HEADS, PT, settings

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def executed(name: str, **parameters) -> nbformat.NotebookNode:
    """The notebook with some of its parameters replaced, executed."""
    notebook = jupytext.read(NOTEBOOKS / f"{name}.py")
    (at,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    known = {line.split(" = ")[0] for line in notebook.cells[at].source.splitlines()}
    assert parameters.keys() <= known, "a parameter that the notebook does not have would do nothing"
    own = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(own))
    where = {"metadata": {"path": str(NOTEBOOKS)}}
    return NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=where).execute()


def outputs(notebook: nbformat.NotebookNode) -> list:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def text(notebook: nbformat.NotebookNode, stream: str = "stdout") -> str:
    return "".join(o.text for o in outputs(notebook) if o.output_type == "stream" and o.name == stream)


def check(notebook: nbformat.NotebookNode, figures: int) -> None:
    """So many figures, and neither errors nor warnings."""
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) == figures
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert "warning" not in text(notebook, "stderr").lower()


def test_method(tiny_run):
    check(executed("method", run_path=str(tiny_run), clips=[0, 1], draws=64), figures=5)


@pytest.mark.slow
def test_layers(tiny_run):
    small = {"taus": [0.1, 0.5], "targets": ["material"], "sources": ["video"], "clips": 24, "probe": "knn"}
    small |= {"similar_clips": 12, "healthy_clips": 4, "healthy_batch": 4, "neighbours": 4}
    notebook = executed("layers", run_paths=[str(tiny_run)], **small)
    check(notebook, figures=6)
    assert mentions("tiny untrained").search(text(notebook))


@pytest.mark.slow
def test_maps(tiny_run):
    small = {"layers": [1, 3], "component_clips": 4, "contact_clips": 6}
    notebook = executed("maps", run_path=str(tiny_run), **small)
    check(notebook, figures=3)
    assert mentions("tokens bodies").search(text(notebook))


@pytest.mark.slow
def test_sight_and_sound(tiny_run, tmp_path):
    """From the files of the study, and with a run of it."""
    without = text(executed("sight_and_sound", runs_path=str(tmp_path / "none")))
    assert mentions(tmp_path / "none", "no runs").search(without)
    (tmp_path / "matched_1").symlink_to(tiny_run)
    notebook = executed("sight_and_sound", runs_path=str(tmp_path))
    check(notebook, figures=4)
    primary = text(notebook).splitlines()[:2]
    assert [line.split()[0] for line in primary] == ["matched", "shuffled"] and "n = 5" in primary[1]
    assert "difference" in primary[0] and str(tmp_path) not in text(notebook)


def test_released_checkpoint(tmp_path):
    """On the recorded SiT, with latents that a linear autoencoder makes of digits."""
    from sklearn.datasets import load_digits

    from selfflow.autoencoders.linear import LinearAutoencoder, PatchPCA

    digits = load_digits()
    size = settings()["input_size"]
    grey = np.repeat((digits.images[:96] * 15.9).astype(np.uint8), 2, axis=1).repeat(2, axis=2)
    images = np.repeat(grey[..., None], 3, axis=-1)
    autoencoder = LinearAutoencoder.fit(PatchPCA(patch=16 // size, channels=4), [images])
    latents = autoencoder.encode(images)
    assert latents.shape[1:] == (size, size, settings()["in_channels"])
    np.savez(tmp_path / "latents.npz", latents=latents, labels=digits.target[:96])
    paths = {"checkpoint": str(PT), "latents": str(tmp_path / "latents.npz"), "run_path": str(tmp_path / "sit")}
    notebook = executed("released_checkpoint", **paths, num_heads=HEADS, taus=[0.1], layers=[2, 3], probe="knn")
    check(notebook, figures=2)
    assert mentions("released untrained block").search(text(notebook))


def test_without_a_checkpoint_nothing_is_done(tmp_path):
    paths = {"checkpoint": str(tmp_path / "none.pt"), "latents": str(PT), "run_path": str(tmp_path / "sit")}
    notebook = executed("released_checkpoint", **paths)
    check(notebook, figures=0)
    assert mentions(tmp_path / "none.pt", "no file").search(text(notebook)) and not (tmp_path / "sit").exists()


def test_a_missing_run_is_named_in_one_line(tmp_path):
    with pytest.raises(CellExecutionError) as error:
        executed("method", run_path=str(tmp_path / "none"))
    assert "Traceback" not in error.value.traceback
    line = error.value.traceback.strip().splitlines()[-1]
    assert mentions("UserError", tmp_path / "none", "experiment.json").search(line)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_sources_hold_no_logic_and_no_outputs(path):
    """A notebook is text and calls: what it computes and draws is in the package, where it is tested."""
    notebook = jupytext.read(path)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert not any(line.startswith(("def ", "class ")) for line in code.splitlines())
    assert not outputs(notebook)


@pytest.mark.slow
def test_all_on_the_quickstart(tmp_path_factory):
    """As they stand, on the run that the first page of README.md trains."""
    from selfflow.config.files import load_experiment
    from selfflow.tasks.train import train

    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    train(load_experiment(NOTEBOOKS.parent / "experiments" / "quickstart.py"), folder, tmp_path_factory.mktemp("data"))
    check(executed("method", run_path=str(folder)), figures=5)
    check(executed("layers", run_paths=[str(folder)]), figures=6)
    check(executed("maps", run_path=str(folder)), figures=3)
