"""diffusers' KL autoencoders with random weights: what ours is held against. It needs `selfflow[parity]`.

    python -m tests.parity.kl_reference

writes the golden that the ordinary suite, which has no torch, checks.
"""

import json
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers import __version__ as diffusers_version

from tests.autoencoders.kl import CONFIG, GOLDEN, images, random_weights

SIZE = (20, 28)  # odd numbers of latent positions, which FLUX.2 cannot pack
PACKED = (24, 32)


def autoencoder(kind: type, **changes: Any) -> torch.nn.Module:
    """A small autoencoder of diffusers with `random_weights`."""
    model = kind(**{**CONFIG, **changes}).eval()
    state = {name: x for name, x in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    weights = random_weights({name: tuple(x.shape) for name, x in state.items()})
    model.load_state_dict({name: torch.from_numpy(x) for name, x in weights.items()}, strict=False)
    return model


@torch.no_grad()
def theirs(model: torch.nn.Module, media: np.ndarray, latents: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and std of images, and images of latents; channels last, nothing normalised."""
    last = lambda x: x.movedim(1, -1).numpy()
    first = lambda x: torch.from_numpy(x).movedim(-1, 1)
    found = model.encode(first(media.astype(np.float32) / 127.5 - 1)).latent_dist
    return {"mean": last(found.mean), "std": last(found.std), "decoded": last(model.decode(first(latents)).sample)}


def random_latents(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def main() -> None:
    model, media = autoencoder(AutoencoderKL), images(*SIZE)
    latents = random_latents((2, SIZE[0] // 4, SIZE[1] // 4, 4))
    shapes = {name: list(x.shape) for name, x in model.state_dict().items()}
    arrays = theirs(model, media, latents) | {"media": media, "latents": latents}
    told = {"shapes": shapes, "versions": {"diffusers": diffusers_version, "torch": torch.__version__}}
    np.savez_compressed(GOLDEN, told=json.dumps(told), **arrays)
    print(f"{GOLDEN}: {GOLDEN.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
