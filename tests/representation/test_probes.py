import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.representation.probes import attentive, neighbours
from selfflow.representation.probes.attentive import attentive_probe
from selfflow.representation.probes.linear import linear_probe
from selfflow.representation.probes.logistic import STRENGTHS, few_shot, logistic_probe, tree_probe
from selfflow.representation.probes.neighbours import NEIGHBOURS, knn_probe
from selfflow.representation.probes.split import Split, balanced_accuracy
from tests.conftest import mentions

VECTOR_PROBES = [logistic_probe, tree_probe, linear_probe, knn_probe]


def splits(make, sizes=(400, 200, 1000)):
    random = np.random.default_rng(0)
    return [Split(*make(random, n)) for n in sizes]


def separable(random, n):
    y = random.integers(0, 3, n)
    return np.eye(3)[y] * 4 + random.standard_normal((n, 3)), y


def cut(x, y, sizes):
    order = np.random.default_rng(0).permutation(len(y))
    return [Split(x[rows], y[rows]) for rows in np.split(order, np.cumsum(sizes))[: len(sizes)]]


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return cut(loaded.data, loaded.target, (797, 400, 600))


def mnist(*sizes):
    from selfflow.data.mnist5k.builder import read

    images, labels = read()
    return cut(images.reshape(len(images), -1), labels, sizes)


@pytest.mark.parametrize("probe", VECTOR_PROBES)
def test_probes_find_what_is_there(probe):
    train, validation, test = splits(separable)
    found = probe(train, validation, test)
    assert found.balanced.test > 0.93 and found.balanced.validation > 0.93
    assert found.plain.test == np.mean(found.predicted == test.y)
    assert found.balanced.test == pytest.approx(balanced_accuracy(test.y, found.predicted))


@pytest.mark.parametrize("probe", VECTOR_PROBES)
def test_probes_find_nothing_where_there_is_nothing(probe):
    noise = lambda random, n: (random.standard_normal((n, 50)), random.integers(0, 4, n))
    found = probe(*splits(noise)).plain.test
    assert abs(found - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 1000)


def test_accuracy_is_balanced():
    """A probe that always names the common class is no better than chance."""
    rare = lambda random, n: (random.standard_normal((n, 2)), (random.random(n) < 0.05).astype(int))
    found = logistic_probe(*splits(rare))
    assert found.balanced.test == pytest.approx(0.5, abs=0.05) and found.plain.test > 0.9


def test_balanced_accuracy_is_that_of_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score

    random = np.random.default_rng(0)
    y, predicted = random.choice(["a", "b", "c"], 100, p=[0.7, 0.2, 0.1]), random.choice(["a", "b", "c"], 100)
    assert balanced_accuracy(y, predicted) == pytest.approx(balanced_accuracy_score(y, predicted))


def test_classes_have_any_names():
    train, validation, test = (
        s._replace(y=np.array(["rubber", "steel", "wood"])[s.y]) for s in splits(separable, (300, 100, 100))
    )
    for probe in VECTOR_PROBES:
        assert set(probe(train, validation, test).predicted) == {"rubber", "steel", "wood"}


def reference(fitted, train, validation, test):
    """Accuracy on test of the model that is best on validation."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        chosen = max((f(train.x, train.y) for f in fitted), key=lambda m: m.score(validation.x, validation.y))
        return chosen.score(test.x, test.y)


def logistic_reference(*given):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    models = [make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)) for c in STRENGTHS]
    return reference([m.fit for m in models], *given)


def knn_reference(*given):
    from sklearn.neighbors import KNeighborsClassifier

    votes = lambda distance: np.exp((1 - distance) / 0.07)
    models = [KNeighborsClassifier(k, metric="cosine", weights=votes) for k in NEIGHBOURS]
    return reference([m.fit for m in models], *given)


def test_pixels_of_digits_are_read_as_scikit_learn_reads_them(digits):
    logistic = logistic_probe(*digits).plain.test
    assert logistic > 0.95 and logistic == pytest.approx(logistic_reference(*digits), abs=0.005)
    assert knn_probe(*digits).plain.test == pytest.approx(knn_reference(*digits), abs=0.005)
    assert linear_probe(*digits).plain.test == pytest.approx(logistic, abs=0.02)


def test_pixels_of_mnist_are_read_as_scikit_learn_reads_them():
    given = mnist(400, 200, 600)
    assert logistic_probe(*given).plain.test == pytest.approx(logistic_reference(*given), abs=0.005)
    assert knn_probe(*given).plain.test == pytest.approx(knn_reference(*given), abs=0.005)


@pytest.mark.slow
def test_all_pixels_of_mnist5k_are_read_as_scikit_learn_reads_them():
    given = mnist(3000, 1000, 1000)
    logistic, knn, linear = (probe(*given).plain.test for probe in (logistic_probe, knn_probe, linear_probe))
    references = logistic_reference(*given), knn_reference(*given)
    print(f"logistic {logistic}, k-NN {knn}, linear {linear}; scikit-learn {references}")
    assert (logistic, knn) == pytest.approx(references, abs=0.005)
    assert linear == pytest.approx(logistic, abs=0.02)


def test_linear_probe_normalises_by_what_it_saw_in_training(digits):
    """Neither the scale of features nor the other test samples change what it finds."""
    train, validation, test = (Split(s.x[:300], s.y[:300]) for s in digits)
    found = linear_probe(train, validation, test).predicted
    moved = [s._replace(x=s.x * 100 - 7) for s in (train, validation, test)]
    assert np.mean(linear_probe(*moved).predicted == found) > 0.98
    few = Split(test.x[:50], test.y[:50])
    np.testing.assert_array_equal(linear_probe(train, validation, few).predicted, found[:50])


def test_neighbours_vote_by_weight():
    """Ten neighbours: two very close ones of class 1 outvote eight of class 0."""
    angles = np.concatenate([np.full(2, 0.01), np.full(8, 0.7), np.full(190, 2.5), [0.7, 0.01]])
    x = np.stack([np.cos(angles), np.sin(angles)], -1)
    train = Split(x[:200], np.repeat([1, 0, 2], [2, 8, 190]))
    query = Split(np.array([[1.0, 0.0], [-1.0, 0.7], [-1.0, 0.6]]), np.array([1, 2, 2]))
    spread = Split(x[[0, 50, 60, 2, 3]], np.array([1, 2, 2, 0, 0]))
    found = knn_probe(train, spread, query)
    assert found.chosen == 10 and found.predicted.tolist() == [1, 2, 2] and found.plain.test == 1.0


def test_memory_of_neighbours_does_not_grow_with_the_test_split(monkeypatch):
    monkeypatch.setattr(neighbours, "_SIMILARITIES", 2**16)
    train, validation, test = splits(separable, (500, 100, 8000))
    tracemalloc.start()
    knn_probe(train, validation, test)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6  # all similarities are 16 MB


def marked(random, n, tokens=6, width=12, classes=3):
    """Each token shows a class; that of the one that is marked counts."""
    shown, place = random.integers(0, classes, (n, tokens)), random.integers(0, tokens, n)
    x = 0.3 * random.standard_normal((n, tokens, width))
    x[..., :classes] += 3 * np.eye(classes)[shown]
    x[np.arange(n), place, classes] += 3
    return x, shown[np.arange(n), place]


def test_attentive_probe_finds_what_the_mean_hides():
    given = splits(marked, (300, 100, 300))
    assert attentive_probe(*given).balanced.test > 0.95
    assert logistic_probe(*given).balanced.test < 0.65


def test_attention_reads_every_token_and_no_order():
    shapes = attentive._initial(jax.random.key(0), 24, 5)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * random.standard_normal(leaf.shape), jnp.float32), shapes)
    x = jnp.asarray(random.standard_normal((3, 7, 24)), jnp.float32)
    logits = jax.jit(lambda x: attentive._logits(params, x, 6))
    np.testing.assert_allclose(logits(x), logits(x[:, ::-1]), atol=1e-4)
    gradient = np.asarray(jax.jit(jax.grad(lambda x: logits(x)[0, 0]))(x))
    assert (np.abs(gradient[0]).max(-1) > 1e-5).all() and not gradient[1:].any()

    @jax.jit
    def reference(x):
        linear = lambda name, x: x @ params[name]["weight"] + params[name]["bias"]
        norm = lambda name, x: jax.nn.standardize(x, epsilon=1e-5) * params[name]["scale"] + params[name]["bias"]
        keys, values = jnp.split(linear("to_key_value", norm("token_norm", x)), 2, -1)
        heads = lambda x: x.reshape(3, -1, 6, 4)
        query = jnp.broadcast_to(linear("to_query", params["query"]), (3, 1, 24))
        read = jax.nn.dot_product_attention(heads(query), heads(keys), heads(values)).reshape(3, 24)
        pooled = params["query"] + linear("out", read)
        hidden = jax.nn.gelu(linear("mlp_in", norm("mlp_norm", pooled)), approximate=False)
        return linear("classes", pooled + linear("mlp_out", hidden))

    np.testing.assert_allclose(logits(x), reference(x), rtol=1e-3, atol=1e-4)


def test_few_shots(digits):
    train, _, test = digits
    found = few_shot(train, test, shots=(1, 5), draws=4)
    assert 0.4 < found[1].mean < 0.75 < found[5].mean < 0.95
    assert found[1].deviation == pytest.approx(np.std(found[1].balanced, ddof=1)) and found[1].deviation > 0
    assert len(found[5].plain) == 4
    again = few_shot(train, test, shots=(1,), draws=4)
    np.testing.assert_array_equal(again[1].balanced, found[1].balanced)
    assert (few_shot(train, test, shots=(1,), draws=4, seed=1)[1].balanced != found[1].balanced).any()
    assert np.isnan(few_shot(train, test, shots=(1,), draws=1)[1].deviation)
    with pytest.raises(UserError, match=mentions("train class 2 72 100 shots")):
        few_shot(train, test, shots=(1, 100))
    with pytest.raises(UserError, match=mentions("shots (0, 1) 10")):
        few_shot(train, test, shots=(0, 1))
