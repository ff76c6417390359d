"""How long a step of SiT-S/2 takes here and in torch, on the same machine in the same minutes.

    pip install -e '.[parity]'
    python tests/parity/step_against_torch.py --rounds 20

Ours is the compiled step of experiments/sit_s.py (256 tokens, batch 8, float32). Torch's is that of
tests/parity/torch_sit.py, as it is and through torch.compile, which wants a C++ compiler and a minute: the same update
with the arithmetic of the released code. That both compute the same is shown by `pytest -m parity`.

Each side runs in a process of its own, on all cores, and they take turns: one steps, and the others sleep. A round is a
turn of each, and a turn is two steps of which the second counts, since in training a step finds the caches and the free
memory as a step before it left them, and not as another program did. Rounds in which a side had fewer than
`--least-cores` cores (CPU time over wall time) are dropped: a shared host sometimes gives fewer than it shows.

All sides get the environment of the caller. Where /sys/kernel/mm/transparent_hugepage/enabled says madvise,
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 saves all of them page faults, of which XLA has the most.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
WARM_UP = 3


def ours(weights_file: Path, device: str):
    """Our step as a function that returns its loss; writes the weights that it starts from."""
    import jax
    import jax.numpy as jnp
    from safetensors.numpy import save_file

    from selfflow.benchmark.step import random_batch
    from selfflow.config.files import load_experiment
    from selfflow.config.resolve import resolve
    from selfflow.interop.released_sit import released_layout

    if jax.default_backend() != {"cuda": "gpu"}.get(device, device):
        sys.exit(f"--device is {device}, but JAX runs on {jax.default_backend()}")
    setup = resolve(load_experiment(ROOT / "experiments" / "sit_s.py"))
    state = jax.jit(setup.init)(jax.random.key(0))
    # Off their zeros, so that no gradient is zero on either side.
    leaves, structure = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = structure.unflatten([x + 0.02 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])
    state = state._replace(params=params, frozen={"ema": jax.tree.map(jnp.copy, params["model"])})
    whole = params["model"] | {"projector": params["projector"]}
    save_file(released_layout(whole, setup.experiment.model, projector=True), weights_file)
    batch = jax.device_put(random_batch(setup, "image"))
    compiled = jax.jit(setup.step(), donate_argnums=0).lower(state, batch).compile()

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return step, f"jax {jax.__version__}"


def torchs(weights_file: Path, device: str, compiled: bool):
    """Torch's step from the same weights."""
    import torch
    from safetensors.torch import load_file

    from selfflow.config.files import load_experiment
    from selfflow.config.resolve import resolve
    from tests.parity.torch_sit import Shape, Step, draw

    experiment = resolve(load_experiment(ROOT / "experiments" / "sit_s.py")).experiment
    model, alignment, optimizer = experiment.model, experiment.alignment, experiment.optimizer
    # On a GPU float32 products of JAX are those of TF32 unless told otherwise.
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    weights = load_file(weights_file, device=device)
    step = Step(
        weights,
        {name: x.clone() for name, x in weights.items() if not name.startswith("projector.")},
        Shape(model.heads, model.patch_size, alignment.student_layer, alignment.teacher_layer),
        learning_rate=optimizer.learning_rate,
        ema_decay=experiment.ema_decay,
        gamma=alignment.weight,
        clip=optimizer.clip,
        compiled=compiled,
    )
    batch = experiment.mixture["image"].batch_size
    tokens = torch.randn(batch, model.tokens, model.token_size, device=device)
    label = torch.randint(0, model.labels, (batch,), device=device)
    settings = {"mask_ratio": experiment.schedule.mask_ratio["image"], "drop": experiment.condition_drop}

    def one() -> float:
        return step(tokens, draw(tokens, label, null=model.labels, **settings))[0]

    return one, f"torch {torch.__version__}"


def _serve(connection, make, arguments) -> None:
    """The other end of a `Side`: steps when asked to."""
    sys.path.insert(0, str(ROOT))
    step, version = make(*arguments)
    for _ in range(WARM_UP):
        step()
    connection.send(version)
    while True:
        try:
            connection.recv()
        except EOFError:  # the other end has gone
            return
        step()
        began, busy = time.perf_counter(), time.process_time()
        loss = step()
        seconds = time.perf_counter() - began
        connection.send((seconds, (time.process_time() - busy) / seconds, loss))


class Side:
    """A step in a process of its own, which sleeps until its turn."""

    def __init__(self, name: str, make, *arguments):
        spawn = multiprocessing.get_context("spawn")
        self.name = name
        self._connection, end = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(end, make, arguments), daemon=True)
        self._process.start()
        end.close()
        self.version = self._receive()

    def turn(self) -> tuple[float, float, float]:
        """Seconds of a step that follows another, the cores that it had, and its loss."""
        self._connection.send("step")
        return self._receive()

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join()

    def _receive(self):
        try:
            return self._connection.recv()
        except EOFError:
            sys.exit(f"the process of {self.name} has ended")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="turns of each side")
    parser.add_argument("--least-cores", type=float, help="default: 1.6 on a CPU, 0 on a GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of all sides")
    options = parser.parse_args()
    least = options.least_cores if options.least_cores is not None else {"cpu": 1.6, "cuda": 0.0}[options.device]

    with tempfile.TemporaryDirectory() as folder:
        weights_file = Path(folder) / "weights.safetensors"
        sides = [Side("ours", ours, weights_file, options.device)]
        sides.append(Side("torch", torchs, weights_file, options.device, False))
        sides.append(Side("torch compiled", torchs, weights_file, options.device, True))
    print(f"{sides[0].version}, {sides[1].version}, GLIBC_TUNABLES={os.environ.get('GLIBC_TUNABLES', '')}", flush=True)

    rounds = []
    for number in range(options.rounds):
        # Now forwards, now backwards, so that none always follows the same other.
        turns = {side.name: side.turn() for side in sides[:: (-1) ** number]}
        rounds.append(turns)
        shown = (f"{side.name} {turns[side.name][0]:.3f} s on {turns[side.name][1]:.2f} cores" for side in sides)
        print(f"{number + 1:3d}   {', '.join(shown)}", flush=True)
    for side in sides:
        side.close()
    kept = [turns for turns in rounds if min(cores for _, cores, _ in turns.values()) >= least]
    print(f"{len(kept)} of {len(rounds)} rounds kept: every side had {least} cores")
    if not kept:
        sys.exit("no round is left to compare: try again on a quieter machine, or give --least-cores")

    seconds = {side.name: np.array([turns[side.name][0] for turns in kept]) for side in sides}
    for name, times in seconds.items():
        low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
        loss = kept[-1][name][2]
        print(f"{name}: median {middle:.3f} s, quartiles {low:.3f} to {high:.3f} s; its loss came to {loss:.3f}")
    for name in list(seconds)[1:]:
        low, middle, high = np.quantile(seconds[name] / seconds["ours"], [0.25, 0.5, 0.75])
        print(f"{name} / ours: median of the rounds {middle:.3f}, quartiles {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
