"""The attentive probe: one learned query reads all tokens."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from selfflow.representation.probes.split import Classified, Split, checked_classes, classified

_EPOCHS, _BATCH, _LEARNING_RATE, _WEIGHT_DECAY = 20, 256, 1e-3, 0.01
_STEPS_PER_EPOCH, _LEAST_BATCH, _LEAST_STEPS = 100, 16, 2000
_HEADS, _MLP_RATIO, _STD = 12, 4, 0.02

Params = dict[str, Any]


def attentive_probe(train: Split, validation: Split, test: Split, seed: int = 0) -> Classified:
    """Cross-attention of one learned query over all tokens [n, N, D], an MLP and a linear layer, trained by AdamW.

    As in V-JEPA (arXiv 2404.08471, section 4.3 and the table of its frozen evaluation), after CAE (arXiv 2202.03026):
    20 epochs in batches of 256, AdamW with weight decay 0.01, cosine decay from 0.001 to 0, no warm-up; 12 heads. The
    architecture is that of its released `attentive_pooler.py`: tokens are normalised, the query is added to the output
    of the attention, then an MLP of ratio 4 with its own norm and residual, then the linear layer; weights are
    initialised with standard deviation 0.02, reduced by sqrt(2) for the last two projections. Biases and norms do
    not decay. V-JEPA also augments the clips, which is impossible for features; and if 12 heads do not divide D, the
    number of heads is the largest below 12 that does.

    V-JEPA makes hundreds of steps an epoch. With fewer than 25 600 samples the batch is 1/100 of them, at least
    16 (or all), and epochs are added to 20 until there are 2000 steps: with fewer steps the attention does not
    converge, and the probe is no better than a probe of the mean. Nothing is selected on validation. Tokens are read as
    a set: the position of a token matters only as far as its features encode it.

    Args:
      seed: seed of the initial weights and the order of samples.

    Raises:
      UserError: see `checked_classes`; or if features are not tokens.
    """
    train, validation, test = checked_classes(tokens=True, train=train, validation=validation, test=test)
    classes, labels_n = np.unique(train.y, return_inverse=True)
    n, width = len(labels_n), train.x.shape[-1]
    batch = min(n, max(_LEAST_BATCH, min(_BATCH, n // _STEPS_PER_EPOCH)))
    # Heads have an equal number of channels.
    heads = max(h for h in range(1, _HEADS + 1) if width % h == 0)
    steps = n // batch
    epochs = max(_EPOCHS, -(-_LEAST_STEPS // steps))  # rounded up
    params = _initial(jax.random.key(seed), width, len(classes))
    moments = _adam(epochs * steps).init(params)
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        # Batches are gathered on the host: all tokens of a split may be more than a device holds.
        for rows_B in random.permutation(n)[: steps * batch].reshape(steps, batch):
            x_BND, y_B = train.x[rows_B], labels_n[rows_B]
            params, moments = _step(params, moments, x_BND, y_B, heads=heads, steps=epochs * steps)
    predictions = classes[_predict(params, validation.x, heads)], classes[_predict(params, test.x, heads)]
    return classified(validation, test, predictions)


def _initial(key: Array, width: int, classes: int) -> Params:
    keys = iter(jax.random.split(key, 7))
    small = _STD / np.sqrt(2)

    def normal(*shape: int, std: float = _STD) -> Array:
        return std * jax.random.truncated_normal(next(keys), -2, 2, shape)

    def linear(inputs: int, outputs: int, std: float = _STD) -> Params:
        return {"weight": normal(inputs, outputs, std=std), "bias": jnp.zeros(outputs)}

    def norm() -> Params:
        return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}

    return {
        "query": normal(1, width),
        "token_norm": norm(),
        "to_query": linear(width, width),
        "to_key_value": linear(width, 2 * width),
        "out": linear(width, width, small),
        "mlp_norm": norm(),
        "mlp_in": linear(width, _MLP_RATIO * width),
        "mlp_out": linear(_MLP_RATIO * width, width, small),
        "classes": linear(width, classes),
    }


@partial(jax.jit, static_argnames="heads")
def _logits(params: Params, x_BND: Float[Array, "B N D"], heads: int) -> Float[Array, "B C"]:
    def split(x: Array) -> Array:
        """Channels into heads, [..., H, K]."""
        return x.reshape(*x.shape[:-1], heads, -1)

    # One query for all samples, with D channels in H heads of K.
    query_HK = split(_linear(params["to_query"], params["query"][0]))
    key_BND, value_BND = jnp.split(_linear(params["to_key_value"], _norm(params["token_norm"], x_BND)), 2, -1)
    key_BNHK, value_BNHK = split(key_BND), split(value_BND)
    attention_BHN = jax.nn.softmax(
        jnp.einsum("hk,bnhk->bhn", query_HK, key_BNHK) / np.sqrt(query_HK.shape[-1]), axis=-1
    )
    read_BD = jnp.einsum("bhn,bnhk->bhk", attention_BHN, value_BNHK).reshape(len(x_BND), -1)
    # Residual: the query is the input that the output of the attention is added to.
    pooled_BD = params["query"] + _linear(params["out"], read_BD)
    hidden_BF = jax.nn.gelu(_linear(params["mlp_in"], _norm(params["mlp_norm"], pooled_BD)), approximate=False)
    return _linear(params["classes"], pooled_BD + _linear(params["mlp_out"], hidden_BF))


def _loss(params: Params, x_BND: Float[Array, "B N D"], y_B: Int[Array, "B"], heads: int) -> Float[Array, ""]:
    return optax.softmax_cross_entropy_with_integer_labels(_logits(params, x_BND, heads), y_B).mean()


def _adam(steps: int) -> optax.GradientTransformation:
    # Weights have two axes; biases and norms have one and do not decay.
    return optax.adamw(
        optax.cosine_decay_schedule(_LEARNING_RATE, steps),
        weight_decay=_WEIGHT_DECAY,
        mask=partial(jax.tree.map, lambda leaf: leaf.ndim > 1),
    )


# At the top of the module, so that probes of many layers compile it once.
@partial(jax.jit, static_argnames=("heads", "steps"))
def _step(params: Params, moments, x_BND: Float[Array, "B N D"], y_B: Int[Array, "B"], *, heads: int, steps: int):
    update, moments = _adam(steps).update(jax.grad(_loss)(params, x_BND, y_B, heads), moments, params)
    return optax.apply_updates(params, update), moments


def _predict(params: Params, x_nND: np.ndarray, heads: int) -> np.ndarray:
    """Predicts indices of classes, [n]."""
    predicted = []
    for start in range(0, len(x_nND), _BATCH):
        # The last batch is filled up with the first samples, so that one shape is compiled.
        rows_B = np.arange(start, start + _BATCH) % len(x_nND)
        predicted.append(np.asarray(_logits(params, x_nND[rows_B], heads)).argmax(axis=1))
    return np.concatenate(predicted)[: len(x_nND)]


def _linear(layer: Params, x: Array) -> Array:
    return x @ layer["weight"] + layer["bias"]


def _norm(layer: Params, x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return (
        centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5) * layer["scale"]
        + layer["bias"]
    )
