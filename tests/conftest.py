"""What all tests share: JAX's compilation cache, one small data set, one tiny run."""

import os
import tempfile
from pathlib import Path

# Before JAX is imported anywhere: one cache for all tests and for the processes that they start.
_CACHE = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "selfflow-test-compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time of the tests is XLA's, on networks that run for milliseconds.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from selfflow.config.experiment import Experiment  # noqa: E402
from selfflow.config.files import load_experiment  # noqa: E402
from selfflow.modality import Modality  # noqa: E402
from selfflow.models.joint_config import JointConfig  # noqa: E402
from selfflow.noise import DualTimestep  # noqa: E402
from selfflow.objectives.alignment import SelfFlow  # noqa: E402
from selfflow.objectives.self_flow import SelfFlowObjective  # noqa: E402

TINY = Path(__file__).parent / "tiny.py"


@pytest.fixture(autouse=True)
def optimized_where_it_takes_minutes(request, monkeypatch):
    """Networks of slow tests run for longer than they compile."""
    slow = request.node.get_closest_marker("slow") is not None
    if slow:
        monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    jax.config.update("jax_disable_most_optimizations", not slow)


@pytest.fixture
def modalities() -> dict[str, Modality]:
    return {
        "image": Modality((4, 4, 3), (2, 2)),
        "video": Modality((5, 4, 4, 3), (1, 2, 2), period=8.0),
        "audio": Modality((10, 6), (2,), period=4.0),
    }


@pytest.fixture
def config() -> JointConfig:
    return JointConfig(
        width=16, heads=2, double_blocks=2, single_blocks=3, mlp_ratio=2.0, rotary=(2, 2, 2, 2), labels=3
    )


@pytest.fixture
def objective(config, modalities) -> SelfFlowObjective:
    return SelfFlowObjective(
        config,
        modalities,
        DualTimestep(),
        SelfFlow(student_layer=1, teacher_layer=3),
        modality_weight={},
        condition_drop=0.5,
    )


@pytest.fixture
def batch(modalities) -> dict:
    random = np.random.default_rng(0)
    latents = {m: random.standard_normal((4, *modalities[m].latent)).astype(np.float32) for m in ("video", "audio")}
    return {"latents": latents, "label": np.array([0, 1, 2, 0]), "weight": np.ones(4, np.float32)}


@pytest.fixture
def keys_B() -> jax.Array:
    return jax.random.split(jax.random.key(7), 4)


def perturbed(tree, seed: int = 0, size: float = 0.2):
    """Parameters moved off their initial values, so that no zero-initialised layer hides a mistake."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + size * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys)]
    return jax.tree.unflatten(structure, moved)


@pytest.fixture
def params(objective):
    return perturbed(jax.jit(objective.init)(jax.random.key(0)))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def tiny_experiment() -> Experiment:
    return load_experiment(TINY)


@pytest.fixture(scope="session")
def tiny_run(tiny_experiment, data_dir, tmp_path_factory) -> Path:
    """A finished run of the tiny experiment, uninterrupted."""
    from selfflow.tasks.train import train

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny_experiment, folder, data_dir)
    return folder
