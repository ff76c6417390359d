"""What all tests share: JAX's compilation cache, one small data set, one tiny run."""

import fcntl
import functools
import hashlib
import importlib.metadata
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

# Before JAX is imported anywhere: one cache for all tests and for the processes that they start.
_CACHE = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "selfflow-test-compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time of the tests is XLA's, on networks that run for milliseconds. Loops are emitted without MLIR, whose
# passes take longer than they save. XLA ends the process at a flag that it does not know, as jaxlib 0.12 this one.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
_HAS_FLAG = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11)
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false" if _HAS_FLAG else "")
# Background jobs of a shell ignore SIGINT, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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

ROOT = Path(__file__).parents[1]
TINY = Path(__file__).parent / "tiny.py"


def mentions(*words) -> re.Pattern:
    """Matches a message that has each of the words, in any order and not as a part of a longer word or number.

    Words are the names and values of the case: fields, flags, files, arrays, numbers. A message can then be reworded
    without touching a test. Only where two checks name the same things does a term of the field tell them apart.
    """
    each = " ".join(map(str, words)).split()
    return re.compile(r"(?s)\A" + "".join(rf"(?=.*(?<!\w)(?<!\d\.){re.escape(word)}(?!\w)(?!\.\d))" for word in each))


@pytest.fixture(autouse=True)
def optimized_where_it_takes_minutes(request, monkeypatch):
    """Networks of slow tests run for longer than they compile."""
    slow = request.node.get_closest_marker("slow") is not None
    if slow:
        monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    jax.config.update("jax_disable_most_optimizations", not slow)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_of_one_module():
    """Programs of earlier modules fill memory; those that took long are in the compilation cache on disk."""
    yield
    jax.clear_caches()


_STATIC = ("taps", "stop_at", "open_gates", "attention_of")  # arguments of `apply` that are no arrays


class JittedObjective(SelfFlowObjective):
    """The objective as training runs it: each method is one compiled program, not one for every operation.

    Dictionaries become sorted on the way, and a method that a test patches later is not traced again: where either
    matters, tests call the methods of `SelfFlowObjective`.
    """

    __eq__, __hash__ = object.__eq__, object.__hash__  # static arguments are hashed

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def init(self, key):
        return super().init(key)

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def draw(self, keys_B, batch, step=0):
        return super().draw(keys_B, batch, step)

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def loss(self, params, frozen, batch, keys_B, draw):
        return super().loss(params, frozen, batch, keys_B, draw)

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def terms(self, params, frozen, batch, keys_B, draw):
        return super().terms(params, frozen, batch, keys_B, draw)

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def diagnose(self, params, frozen, batch, keys_B):
        return super().diagnose(params, frozen, batch, keys_B)

    @functools.partial(
        jax.jit, static_argnums=0, static_argnames=("taps", "stop_at", "open_gates", "attention_of"), inline=True
    )
    def _apply(self, model_params, *args, **kwargs):
        return super().apply(model_params, *args, **kwargs)

    def apply(self, model_params, *args, groups=None, **kwargs):
        if groups is not None:  # holds numbers that shapes depend on
            return super().apply(model_params, *args, groups=groups, **kwargs)
        return self._apply(model_params, *args, **kwargs)


@pytest.fixture(scope="session")
def modalities() -> dict[str, Modality]:
    return {
        "image": Modality((4, 4, 3), (2, 2)),
        "video": Modality((5, 4, 4, 3), (1, 2, 2), period=8.0),
        "audio": Modality((10, 6), (2,), period=4.0),
    }


@pytest.fixture(scope="session")
def config() -> JointConfig:
    return JointConfig(
        width=16, heads=2, double_blocks=2, single_blocks=3, mlp_ratio=2.0, rotary=(2, 2, 2, 2), labels=3
    )


@pytest.fixture(scope="session")
def objective(config, modalities) -> JittedObjective:
    return JittedObjective(
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
    random = np.random.default_rng(seed)

    def moved(x):
        # In NumPy: JAX would compile a program for every shape.
        return jax.numpy.asarray(np.asarray(x) + size * random.standard_normal(x.shape), x.dtype)

    return jax.tree.map(moved, tree)


@functools.cache
def initial_params(objective: JittedObjective):
    return perturbed(objective.init(jax.random.key(0)))


@pytest.fixture
def params(objective):
    return initial_params(objective)


def _source_hash() -> str:
    """Hash of all source that a run depends on."""
    sources = [path for folder in ("selfflow", "data") for path in (ROOT / folder).rglob("*.py")]
    digest = hashlib.sha256(jax.__version__.encode())
    for path in sorted([*sources, TINY, ROOT / "experiments" / "quickstart.py"]):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session")
def shared_run(request) -> Path:
    """Folder of `data/` and `run/` of the tiny experiment, trained once for all workers and kept in pytest's cache."""
    cache = request.config.cache.mkdir("selfflow")
    folder = cache / f"tiny-{_source_hash()}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():  # a killed training leaves none
            for outdated in cache.glob("tiny-*"):
                shutil.rmtree(outdated, ignore_errors=True)
            from selfflow.tasks.train import train

            train(load_experiment(TINY), folder / "run", folder / "data")
            (folder / "complete").touch()
    return folder


@pytest.fixture(scope="session")
def data_dir(shared_run, tmp_path_factory) -> Path:
    """A data folder that holds the tiny experiment's data set and latents, one per worker."""
    folder = tmp_path_factory.mktemp("data") / "data"
    shutil.copytree(shared_run / "data", folder)
    return folder


@pytest.fixture(scope="session")
def tiny_experiment() -> Experiment:
    return load_experiment(TINY)


@pytest.fixture(scope="session")
def tiny_run(shared_run, data_dir, tmp_path_factory) -> Path:
    """A finished run of the tiny experiment, uninterrupted; a copy for each worker, on its own data folder."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    shutil.copytree(shared_run / "run", folder)
    # Files name the run and its data by their absolute paths.
    for name in ("provenance.json", "summary.json"):
        text = (folder / name).read_text()
        text = text.replace(str(shared_run / "run"), str(folder)).replace(str(shared_run / "data"), str(data_dir))
        (folder / name).write_text(text)
    return folder
