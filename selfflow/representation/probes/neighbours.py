"""The probe that fits nothing: weighted votes of nearest neighbours."""

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
_SIMILARITIES = 2**22  # held at a time


def knn_probe(train: Split, validation: Split, test: Split) -> Classified:
    """The k nearest neighbours by cosine vote with weight exp(cosine / 0.07).

    As in DINO (arXiv 2104.14294 and its released `eval_knn.py`), after Wu et al. (arXiv 1805.01978): k is 10, 20,
    100 or 200. DINO names the k that works best, usually 20; here the k of the best balanced accuracy on validation is
    `chosen`, the smallest of equal ones. A k beyond the number of train samples is that number. Memory does not grow
    with the product of the numbers of samples.

    Raises:
      UserError: see `checked_classes`.
    """
    train, validation, test = checked_classes(train=train, validation=validation, test=test)
    counts = sorted({min(k, len(train.y)) for k in NEIGHBOURS})
    on_validation = _voted(train, validation.x, counts)
    best = int(np.argmax([balanced_accuracy(validation.y, predicted) for predicted in on_validation]))
    (on_test,) = _voted(train, test.x, counts[best : best + 1])
    return classified(validation, test, (on_validation[best], on_test), counts[best])


def _voted(train: Split, x_ND: np.ndarray, counts: list[int]) -> list[np.ndarray]:
    """Classes [N] by number of neighbours."""
    classes, labels_n = np.unique(train.y, return_inverse=True)
    train_nD, most = unit_vectors(train.x), max(counts)
    rows = max(1, _SIMILARITIES // len(train_nD))
    found = [[] for _ in counts]
    for start in range(0, len(x_ND), rows):
        similarity_bn = unit_vectors(x_ND[start : start + rows]) @ train_nD.T
        nearest_bk = np.argpartition(similarity_bn, len(train_nD) - most, axis=1)[:, -most:]
        order_bk = np.argsort(-np.take_along_axis(similarity_bn, nearest_bk, axis=1), axis=1, kind="stable")
        nearest_bk = np.take_along_axis(nearest_bk, order_bk, axis=1)
        weights_bk = np.exp(np.take_along_axis(similarity_bn, nearest_bk, axis=1).astype(np.float64) / TEMPERATURE)
        # Where in votes [b, classes] each neighbour's goes.
        place_bk = np.arange(len(nearest_bk))[:, None] * len(classes) + labels_n[nearest_bk]
        for predicted, k in zip(found, counts):
            votes = np.bincount(place_bk[:, :k].ravel(), weights_bk[:, :k].ravel(), len(nearest_bk) * len(classes))
            predicted.append(classes[votes.reshape(-1, len(classes)).argmax(axis=1)])
    return [np.concatenate(predicted) for predicted in found]
