"""The Self-Flow step of a SiT in torch, with the arithmetic of the released code. It needs `selfflow[parity]`.

Each token has a modulation of its own (the projection D -> 6D runs for every token, the teacher's included), and the
teacher runs all its layers. The rest is what makes a step fast in torch: one attention kernel, the optimizer fused,
clipping and EMA over all tensors at once. Weights go by their released names, as `selfflow.interop` writes them.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


class Shape(NamedTuple):
    """What weights do not tell: heads, the patch's side, and the blocks whose features are aligned, from 1."""

    heads: int
    patch: int
    student_layer: int
    teacher_layer: int


class Noise(NamedTuple):
    """What a step draws: levels (t, s) [B, 2], which tokens have the second [B, N], eps [B, N, P], labels [B]."""

    levels: Tensor
    masked: Tensor
    eps: Tensor
    label: Tensor


def draw(tokens: Tensor, label: Tensor, *, mask_ratio: float, drop: float, null: int) -> Noise:
    """Dual timesteps, an exact count of masked tokens, dropped labels (arXiv 2603.06507)."""
    batch, count, _ = tokens.shape
    place = {"device": tokens.device}
    masked = torch.rand(batch, count, **place).argsort(1) < round(mask_ratio * count)
    dropped = torch.rand(batch, **place) < drop
    return Noise(torch.rand(batch, 2, **place), masked, torch.randn_like(tokens), torch.where(dropped, null, label))


def sit(weights: Weights, shape: Shape, tokens: Tensor, tau: Tensor, label: Tensor, tap: int) -> tuple[Tensor, Tensor]:
    """Velocity eps - x0 and the features after block `tap`, for tau [B] or [B, N]."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)

    batch, count, size = tokens.shape
    frequency = torch.exp(torch.arange(128, device=tokens.device) * (-math.log(10000.0) / 128))
    angle = (1 - tau)[..., None] * frequency
    time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()], -1))))
    time = time if tau.ndim == 2 else time[:, None].expand(batch, count, -1)
    condition = F.silu(time + F.embedding(label, weights["y_embedder.embedding_table.weight"])[:, None])

    x = linear("x_embedder.proj", tokens) + weights["pos_embed"]
    depth = sum(name.endswith("attn.qkv.weight") for name in weights)
    for i in range(depth):
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(f"blocks.{i}.adaLN_modulation.1", condition).chunk(6, -1)
        qkv = linear(f"blocks.{i}.attn.qkv", norm(x, shift1, scale1))
        q, k, v = qkv.unflatten(-1, (3, shape.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = torch.addcmul(x, gate1, linear(f"blocks.{i}.attn.proj", attended))
        hidden = F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(x, shift2, scale2)), approximate="tanh")
        x = torch.addcmul(x, gate2, linear(f"blocks.{i}.mlp.fc2", hidden))
        if i + 1 == tap:
            tapped = x
    out = linear("final_layer.linear", norm(x, *linear("final_layer.adaLN_modulation.1", condition).chunk(2, -1)))
    # (row, column, channel) of a patch, the channels followed by those not used, as (channel, row, column).
    channels = size // shape.patch**2
    out = out.unflatten(-1, (shape.patch, shape.patch, -1))[..., :channels].permute(0, 1, 4, 2, 3).flatten(2)
    return -out, tapped


def losses(weights: Weights, teacher: Weights, shape: Shape, tokens: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """Flow loss and alignment loss."""
    tau = torch.where(noise.masked, noise.levels[:, 1:], noise.levels[:, :1])
    velocity, features = sit(
        weights, shape, torch.lerp(tokens, noise.eps, tau[..., None]), tau, noise.label, shape.student_layer
    )
    flow = F.mse_loss(velocity, noise.eps - tokens)
    with torch.no_grad():
        clean = noise.levels.amin(1)
        seen = torch.lerp(tokens, noise.eps, clean[:, None, None])
        _, target = sit(teacher, shape, seen, clean, noise.label, shape.teacher_layer)
    hidden = F.silu(F.linear(features, weights["projector.linear1.weight"], weights["projector.linear1.bias"]))
    projected = F.linear(hidden, weights["projector.linear2.weight"], weights["projector.linear2.bias"])
    return flow, 1 - F.cosine_similarity(projected, target, dim=-1).mean()


class Step:
    """Weights, EMA and AdamW between two updates.

    Args:
      weights, teacher: by their released names; the teacher has no projector.
      shape: see `Shape`.
      gamma: weight of the alignment loss.
      compiled: whether torch.compile makes one program of forward and backward.
    """

    def __init__(
        self,
        weights: Weights,
        teacher: Weights,
        shape: Shape,
        *,
        learning_rate: float = 1e-4,
        ema_decay: float = 0.9999,
        gamma: float = 0.8,
        clip: float = 1.0,
        compiled: bool = False,
    ):
        self.weights = {name: x.requires_grad_(name != "pos_embed") for name, x in weights.items()}
        self.teacher, self.shape = teacher, shape
        self._rates = (gamma, clip, 1 - ema_decay)
        self._trained = [x for x in self.weights.values() if x.requires_grad]
        followed = [name for name in teacher if name != "pos_embed"]
        self._pairs = [teacher[name] for name in followed], [self.weights[name] for name in followed]
        self._optimizer = torch.optim.AdamW(self._trained, learning_rate, (0.9, 0.999), 1e-8, 0.0, fused=True)
        self._losses = torch.compile(losses) if compiled else losses

    def __call__(self, tokens: Tensor, noise: Noise) -> tuple[float, float]:
        """One update; returns the loss and the norm of its gradient before clipping."""
        gamma, clip, rate = self._rates
        flow, alignment = self._losses(self.weights, self.teacher, self.shape, tokens, noise)
        loss = flow + gamma * alignment
        self._optimizer.zero_grad()
        loss.backward()
        gradient_norm = torch.nn.utils.clip_grad_norm_(self._trained, clip, foreach=True)
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(*self._pairs, rate)
        return loss.item(), gradient_norm.item()
