import jax.numpy as jnp
import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.modality import Modality
from tests.conftest import mentions


@pytest.mark.parametrize(
    "modality",
    [
        Modality((6, 4, 3), (3, 2)),
        Modality((6, 4, 8, 3), (2, 2, 4), period=8.0),
        Modality((10, 6), (5,), period=4.0),
        Modality((10, 6), (1,), period=4.0),
    ],
)
def test_tokens_and_back_is_the_identity(modality):
    latent = np.random.default_rng(0).standard_normal((2, *modality.latent)).astype(np.float32)
    tokens = modality.to_tokens(jnp.asarray(latent))
    assert tokens.shape == (2, modality.tokens, modality.token_size)
    np.testing.assert_array_equal(modality.from_tokens(tokens), latent)


def test_a_token_is_its_patch_with_the_channel_first():
    modality = Modality((2, 4, 4, 3), (1, 2, 2), period=8.0)
    latent = np.random.default_rng(0).standard_normal((1, *modality.latent)).astype(np.float32)
    tokens = np.asarray(modality.to_tokens(jnp.asarray(latent)))
    # frame 1, second row of patches, first column: token 4 + 2 + 0
    patch = latent[0, 1, 2:4, 0:2, :]
    np.testing.assert_array_equal(tokens[0, 6], patch.transpose(2, 0, 1).ravel())


def test_video_and_audio_tokens_of_one_time_support_share_t():
    video = Modality((25, 8, 8, 16), (1, 2, 2), period=8.0)  # 80 ms a frame
    audio = Modality((50, 128), (2,), period=4.0)  # two frames of 40 ms a token
    t_video = video.coordinates()[:, 0].reshape(25, 16)
    t_audio = audio.coordinates()[:, 0]
    assert (t_video == t_audio[:, None]).all()
    assert t_audio[0] == 4.0 and t_audio[-1] == 196.0  # centres, in units of 10 ms
    single = Modality((50, 128), (1,), period=4.0).coordinates()[:, 0]
    np.testing.assert_array_equal(single.reshape(25, 2).mean(axis=1), t_audio)


def test_coordinates_follow_the_order_of_the_tokens():
    modality = Modality((2, 4, 6, 1), (1, 2, 2), period=8.0)
    rows, columns = np.meshgrid(np.arange(4), np.arange(6), indexing="ij")
    place = np.broadcast_to(rows * 10 + columns, (2, 4, 6))[None, ..., None].astype(np.float32)
    corner = np.asarray(modality.to_tokens(jnp.asarray(place)))[0, :, 0]  # upper left position of each token
    _, h, w, index = modality.coordinates().T
    np.testing.assert_array_equal(corner, 20 * h + 2 * w)
    assert (index == 0).all()


@pytest.mark.parametrize("latent", [(0, 4, 3), (4, 4, 0), (4, -4, 3)])
def test_a_latent_without_elements_is_named(latent):
    with pytest.raises(UserError, match=mentions("latent shape", latent)):
        Modality(latent, (1, 1))


@pytest.mark.parametrize("patch", [(3, 2), (2,), (0, 2)])
def test_a_patch_that_does_not_fit_is_named(patch):
    with pytest.raises(UserError, match=mentions("patch", patch, "(4, 4, 3)")):
        Modality((4, 4, 3), patch)
