"""Nearest-neighbour classification: weighted votes of the k nearest train samples."""

import numpy as np

from selfflow.representation.probes.split import (
    Classified,
    Split,
    balanced_accuracy,
    checked_classes,
    classified,
    unit_vectors,
)

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
_SIMILARITIES = 2**22  # computed at once


def knn_probe(train: Split, validation: Split, test: Split) -> Classified:
    """The k nearest neighbours by cosine vote with weight exp(cosine / 0.07).

    As in DINO (arXiv 2104.14294 and its released `eval_knn.py`), after Wu et al. (arXiv 1805.01978): k is 10, 20,
    100 or 200. DINO reports the best k, usually 20; here `chosen` is the k with the best balanced accuracy on
    validation, the smallest in case of ties, and at most the number of train samples. Memory does not grow with the
    product of the numbers of samples.

    Raises:
      UserError: see `checked_classes`.
    """
    train, validation, test = checked_classes(train=train, validation=validation, test=test)
    counts = sorted({min(k, len(train.y)) for k in NEIGHBOURS})
    on_validation = _voted(train, validation.x, counts)
    scores = [balanced_accuracy(validation.y, predicted) for predicted in on_validation]
    best = int(np.argmax(scores))  # the first of equal scores
    (on_test,) = _voted(train, test.x, counts[best : best + 1])
    return classified(validation, test, (on_validation[best], on_test), counts[best])


def _voted(train: Split, x_ND: np.ndarray, counts: list[int]) -> list[np.ndarray]:
    """Predicted classes [N] for each number of neighbours k; n train samples, b rows at a time."""
    classes, labels_n = np.unique(train.y, return_inverse=True)
    train_nD, largest = unit_vectors(train.x), max(counts)
    rows = max(1, _SIMILARITIES // len(train_nD))
    predictions: list[list[np.ndarray]] = [[] for _ in counts]
    for start in range(0, len(x_ND), rows):
        similarity_bn = unit_vectors(x_ND[start : start + rows]) @ train_nD.T
        # A partition takes O(n) per row, and only the largest k must be sorted.
        nearest_bk = np.argpartition(similarity_bn, len(train_nD) - largest, axis=1)[:, -largest:]
        order_bk = np.argsort(-np.take_along_axis(similarity_bn, nearest_bk, axis=1), axis=1, kind="stable")
        nearest_bk = np.take_along_axis(nearest_bk, order_bk, axis=1)
        weights_bk = np.exp(np.take_along_axis(similarity_bn, nearest_bk, axis=1).astype(np.float64) / TEMPERATURE)
        # Flat index of each neighbour's class in votes [b, classes].
        index_bk = np.arange(len(nearest_bk))[:, None] * len(classes) + labels_n[nearest_bk]
        # The columns are in order, so that the k nearest of every smaller k are the first ones.
        for of_k, k in zip(predictions, counts):
            votes = np.bincount(index_bk[:, :k].ravel(), weights_bk[:, :k].ravel(), len(nearest_bk) * len(classes))
            of_k.append(classes[votes.reshape(-1, len(classes)).argmax(axis=1)])
    return [np.concatenate(of_k) for of_k in predictions]
