"""diffusers' FLUX.2 with random weights: what `JointTransformer` is held against. It needs `selfflow[parity]`.

    python -m tests.parity.flux2_reference

writes the golden that the ordinary suite, which has no torch, checks.
"""

import json

import numpy as np
import torch
from diffusers import __version__ as diffusers_version
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from safetensors.numpy import save_file

from selfflow.modality import Modality
from selfflow.models.joint_config import JointConfig
from tests.models.flux2 import CONFIG, GOLDEN, VIDEO, Weights, context, ids

# Of all gradients to weights the golden keeps one of each kind of layer: all would be larger than the rest of it.
KEPT = (
    "transformer_blocks.0.attn.add_k_proj.weight",
    "transformer_blocks.0.attn.norm_q.weight",
    "transformer_blocks.0.ff.linear_in.weight",
    "single_transformer_blocks.1.attn.to_out.weight",
    "double_stream_modulation_txt.linear.weight",
    "time_guidance_embed.timestep_embedder.linear_2.weight",
)


# Layers before a norm: their outputs are so small that another epsilon shows.
SMALL = ("x_embedder.", "context_embedder.", "to_q.", "add_q_proj.")


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights of no special value: scales about 1, matrices of deviation 1 / sqrt(inputs); exact in half precision."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            value = 1 + 0.3 * noise if weight.ndim == 1 else noise / weight.shape[1] ** 0.5
            if any(part in name for part in SMALL):
                value *= 1e-2
            weight.copy_(value.half().float())


def weights_of(module: torch.nn.Module) -> Weights:
    return {name: weight.detach().numpy().copy() for name, weight in module.named_parameters()}


def gradients_of(module: torch.nn.Module) -> Weights:
    return {name: weight.grad.numpy().copy() for name, weight in module.named_parameters()}


def flux2(config: JointConfig, modality: Modality) -> Flux2Transformer2DModel:
    """The transformer of the same shape, with random weights."""
    model = Flux2Transformer2DModel(
        in_channels=modality.token_size,
        num_layers=config.double_blocks,
        num_single_layers=config.single_blocks,
        attention_head_dim=config.width // config.heads,
        num_attention_heads=config.heads,
        joint_attention_dim=config.text + config.labels + 1,
        mlp_ratio=config.mlp_ratio,
        axes_dims_rope=config.rotary,
        rope_theta=config.rotary_theta,
        guidance_embeds=False,
    )
    randomise(model)
    return model


def random_inputs(config: JointConfig, modality: Modality, batch: int = 2, length: int = 3, seed: int = 0) -> Weights:
    """What `tests.models.flux2.ours` takes."""
    random = np.random.default_rng(seed)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)
    return {
        "tokens": normal(batch, modality.tokens, modality.token_size),
        "tau": random.uniform(size=batch).astype(np.float32),
        "label": random.integers(0, config.labels + 1, batch),
        "caption": normal(batch, length, config.text),
        "weight": normal(batch, modality.tokens, modality.token_size),
    }


def theirs(model: Flux2Transformer2DModel, config: JointConfig, modality: Modality, inputs: Weights):
    """Outputs and gradients as `tests.models.flux2.ours` returns them; the gradients to weights by their names."""
    text = torch.from_numpy(context(inputs["label"], inputs["caption"], config.labels)).requires_grad_()
    tokens = torch.from_numpy(inputs["tokens"]).requires_grad_()
    text_ids, media_ids = map(torch.from_numpy, ids(modality, text.shape[1]))
    taps = {}

    def tap(block: int, media):
        taps[f"tap.{block}"] = media.detach().numpy()

    for i, block in enumerate(model.transformer_blocks):
        block.register_forward_hook(lambda _, __, out, n=i + 1: tap(n, out[1]))
    for i, block in enumerate(model.single_transformer_blocks):
        first = config.double_blocks + 1
        block.register_forward_hook(lambda _, __, out, n=i + first: tap(n, out[:, text.shape[1] :]))
    velocity = model(tokens, text, torch.from_numpy(inputs["tau"]), media_ids, text_ids).sample
    (velocity * torch.from_numpy(inputs["weight"])).sum().backward()
    gradients = {"tokens": tokens.grad.numpy(), "caption": text.grad[:, 1:, : config.text].numpy()}
    return {"velocity": velocity.detach().numpy()} | taps, gradients, gradients_of(model)


def main() -> None:
    model, inputs = flux2(CONFIG, VIDEO), random_inputs(CONFIG, VIDEO)
    outputs, input_gradients, weight_gradients = theirs(model, CONFIG, VIDEO, inputs)
    parts = {
        "weight": {name: weight.astype(np.float16) for name, weight in weights_of(model).items()},
        "input": inputs,
        "output": outputs,
        "input_gradient": input_gradients,
        "weight_gradient": {name: weight_gradients[name] for name in KEPT},
    }
    whole = {f"{part}/{name}": np.ascontiguousarray(x) for part, arrays in parts.items() for name, x in arrays.items()}
    versions = {"diffusers": diffusers_version, "torch": torch.__version__}
    save_file(whole, GOLDEN, metadata={"made by": "tests/parity/flux2_reference.py", "versions": json.dumps(versions)})
    print(f"{GOLDEN}: {GOLDEN.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
