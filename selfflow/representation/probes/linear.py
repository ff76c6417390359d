"""The linear probe of REPA and Self-Flow: batch normalisation without parameters, and a linear layer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from selfflow.representation.probes.split import Classified, Split, checked_classes, classified

_EPOCHS, _BATCH, _LEARNING_RATE = 90, 16_384, 1e-3
_STEPS_PER_EPOCH = 78  # ImageNet's 1 281 167 samples in batches of 16 384
_LEAST_BATCH, _LEAST_STEPS = 128, 2000
_EPSILON, _MOMENTUM = 1e-6, 0.1


def linear_probe(train: Split, validation: Split, test: Split, seed: int = 0) -> Classified:
    """Batch normalisation without affine parameters and a linear layer, trained by Adam.

    As in REPA (arXiv 2410.06940, appendix C.1): 90 epochs in batches of 16 384, Adam, cosine decay from 0.001, no
    augmentation, tokens averaged, the model without a class label; Self-Flow (arXiv 2603.06507) uses BatchNorm and a
    linear layer likewise. REPA names l-DAE (arXiv 2401.14404) as its source. What it leaves open follows MAE's
    released `main_linprobe.py` (arXiv 2111.06377): epsilon 1e-6, running statistics with momentum 0.1 at test, no
    weight decay, the incomplete last batch dropped. Weights start at zero, as the loss is convex.

    A batch of 16 384 is 1/78 of ImageNet. With fewer samples the batch is 1/78 of them, so that the number of steps
    stays that of the source, but at least 128 (or all), since statistics of smaller batches are noisy. Epochs are added
    to 90 until there are 2000 steps, since Adam moves a weight by little more than its learning rate per step, and
    fewer steps do not converge. Nothing is selected on validation, and there is no regularisation: with many features
    of few samples the logistic probe scores higher.

    Args:
      seed: seed of the order of samples.

    Raises:
      UserError: see `checked_classes`.
    """
    train, validation, test = checked_classes(train=train, validation=validation, test=test)
    classes, labels_n = np.unique(train.y, return_inverse=True)
    n = len(labels_n)
    batch = min(n, max(_LEAST_BATCH, min(_BATCH, n // _STEPS_PER_EPOCH)))
    epochs = max(_EPOCHS, -(-_LEAST_STEPS // (n // batch)))
    key = jax.random.key(seed)
    weights = _fit(jnp.asarray(train.x), jnp.asarray(labels_n), key, classes=len(classes), batch=batch, epochs=epochs)
    on_validation = classes[np.asarray(_logits(weights, validation.x)).argmax(axis=1)]
    on_test = classes[np.asarray(_logits(weights, test.x)).argmax(axis=1)]
    return classified(validation, test, (on_validation, on_test))


@partial(jax.jit, static_argnames=("classes", "batch", "epochs"))
def _fit(x_nD: Float[Array, "n D"], y_n: Int[Array, "n"], key: Array, *, classes: int, batch: int, epochs: int):
    # The whole training is one program, a scan over epochs of scans over batches, so that no step returns to the host.
    n, width = x_nD.shape
    steps = n // batch
    adam = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, epochs * steps))

    def loss(layer, x_BD, y_B):
        logits_BC = x_BD @ layer["weight"] + layer["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits_BC, y_B).mean()

    def step(carry, rows_B):
        layer, moments, (mean_D, variance_D) = carry
        x_BD = x_nD[rows_B]
        batch_mean_D, batch_variance_D = x_BD.mean(axis=0), x_BD.var(axis=0)
        x_BD = (x_BD - batch_mean_D) * jax.lax.rsqrt(batch_variance_D + _EPSILON)
        update, moments = adam.update(jax.grad(loss)(layer, x_BD, y_n[rows_B]), moments)
        # As in PyTorch: batches are normalised by the biased variance, the running one is unbiased.
        running = (
            (1 - _MOMENTUM) * mean_D + _MOMENTUM * batch_mean_D,
            (1 - _MOMENTUM) * variance_D + _MOMENTUM * batch_variance_D * (batch / (batch - 1)),
        )
        return (optax.apply_updates(layer, update), moments, running), None

    def epoch(carry, key):
        rows_SB = jax.random.permutation(key, n)[: steps * batch].reshape(steps, batch)
        return jax.lax.scan(step, carry, rows_SB)[0], None

    layer = {"weight": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}
    start = layer, adam.init(layer), (jnp.zeros(width), jnp.ones(width))
    (layer, _, running), _ = jax.lax.scan(epoch, start, jax.random.split(key, epochs))
    return layer, running


@jax.jit
def _logits(weights, x_ND: Float[Array, "N D"]) -> Float[Array, "N C"]:
    # At test the running statistics of training, as PyTorch's BatchNorm in evaluation mode.
    layer, (mean_D, variance_D) = weights
    return (x_ND - mean_D) * jax.lax.rsqrt(variance_D + _EPSILON) @ layer["weight"] + layer["bias"]
