import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from selfflow.errors import UserError
from selfflow.interop import load_released_sit, released_sit_weights
from selfflow.modality import Modality
from tests.interop.released import HEADS, PT, SAFETENSORS, recorded, settings

# The original code was recorded in float32; a wrong convention gives errors above 1e-4.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def loaded():
    return load_released_sit(PT, num_heads=HEADS)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return load_file(SAFETENSORS)


def test_sizes_are_those_of_the_weights(loaded):
    model, config = loaded
    expected = settings()
    assert config.width == expected["hidden_size"] and config.depth == expected["depth"]
    assert config.heads == expected["num_heads"] and config.mlp_ratio == expected["mlp_ratio"]
    assert (config.input_size, config.patch_size, config.channels) == (8, 2, 4)
    assert config.labels == expected["num_classes"] - 1 and config.learn_sigma
    assert model.config == config and model.projector is not None


@pytest.mark.parametrize("tau, suffix", [("tau_per_token", ""), ("tau_uniform", "_uniform")])
def test_velocity_taps_and_projection_are_the_original_s(loaded, tau, suffix):
    model, _ = loaded
    student, teacher = settings()["student_layer"], settings()["teacher_layer"]
    golden = recorded()
    inputs = {"image": golden["x"]}, {"image": jnp.asarray(golden[tau])}, golden["labels"]
    out = nnx.jit(lambda model: model(*inputs, taps=(student, teacher)))(model)
    velocity = golden["velocity_uniform" if suffix else "velocity_per_token"]
    np.testing.assert_allclose(out.velocity["image"], velocity, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(out.taps[teacher]["image"], golden["raw_teacher" + suffix], rtol=0, atol=TOLERANCE)
    if not suffix:
        projected = model.projector(out.taps[student]["image"])
        np.testing.assert_allclose(projected, golden["projected_student"], rtol=0, atol=TOLERANCE)


def test_tokens_are_in_the_order_of_the_model():
    """A token is (channel, row, column); tokens are in row-major order."""
    latent = np.arange(8 * 8 * 4).reshape(1, 8, 8, 4)
    token = Modality((8, 8, 4), (2, 2)).to_tokens(latent)[0, 5]
    np.testing.assert_array_equal(token.reshape(4, 2, 2), latent[0, 2:4, 2:4].transpose(2, 0, 1))


def test_pickle_and_safetensors_give_equal_weights_and_the_way_back_is_exact(loaded, weights):
    other, config = load_released_sit(str(SAFETENSORS), num_heads=HEADS)
    assert config == loaded[1]
    jax.tree.map(
        np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(loaded[0])), nnx.to_pure_dict(nnx.state(other))
    )
    back = released_sit_weights(other)
    assert list(back) == sorted(weights)
    for key, value in weights.items():
        assert back[key].dtype == np.float32 and back[key].flags.c_contiguous
        assert back[key].tobytes() == value.tobytes() and back[key].shape == value.shape, key


def test_without_projector_and_without_sigma(tmp_path, weights):
    bare = {key: value for key, value in weights.items() if not key.startswith("projector")}
    # The head's rows are (row, column, channel x 2).
    for name in ("weight", "bias"):
        head = bare[f"final_layer.linear.{name}"]
        bare[f"final_layer.linear.{name}"] = head.reshape(2, 2, 8, -1)[:, :, :4].reshape(16, *head.shape[1:]).copy()
    save_file(bare, tmp_path / "bare.safetensors")
    model, config = load_released_sit(tmp_path / "bare.safetensors", num_heads=HEADS)
    assert model.projector is None and not config.learn_sigma
    back = released_sit_weights(model)
    assert list(back) == sorted(bare) and all(back[key].tobytes() == bare[key].tobytes() for key in bare)
    golden = recorded()
    inputs = {"image": golden["x"]}, {"image": jnp.asarray(golden["tau_uniform"])}, golden["labels"]
    velocity = nnx.jit(lambda model: model(*inputs).velocity)(model)
    np.testing.assert_allclose(velocity["image"], golden["velocity_uniform"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_is_read_as_float32(tmp_path, weights, dtype):
    rounded = {f"module.{key}": value.astype(dtype) for key, value in weights.items()}
    save_file(rounded, tmp_path / "half.safetensors")
    model, _ = load_released_sit(tmp_path / "half.safetensors", num_heads=HEADS)
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    back = released_sit_weights(model)
    for key in set(weights) - {"pos_embed"}:  # computed, not read
        np.testing.assert_array_equal(back[key], rounded[f"module.{key}"].astype(np.float32))


def without(key):
    return lambda weights: weights.pop(key)


def replaced(key, change):
    return lambda weights: weights.update({key: np.ascontiguousarray(change(weights[key]))})


@pytest.mark.parametrize(
    "change, error",
    [
        (without("blocks.2.attn.qkv.bias"), "lacks blocks.2.attn.qkv.bias"),
        (without("pos_embed"), "lacks pos_embed"),
        (without("projector.linear2.bias"), "lacks projector.linear2.bias"),
        (without("y_embedder.embedding_table.weight"), "lacks y_embedder"),
        (lambda w: w.update({"extra.bias": np.zeros(3, np.float32)}), "has extra.bias"),
        (lambda w: [w.pop(key) for key in list(w) if key.startswith("blocks.1.")], "lacks blocks.1.* and 9 more"),
        (lambda w: w.update({"blocks.9.attn.qkv.bias": np.zeros(144, np.float32)}), "lacks blocks.4.* and 9 more"),
        (
            replaced("blocks.1.mlp.fc2.weight", np.transpose),
            r"blocks.1.mlp.fc2.weight has shape \(192, 48\), .* \(48, 192\)",
        ),
        (replaced("t_embedder.mlp.0.weight", lambda x: x[:, :128]), "t_embedder.mlp.0.weight has shape"),
        (
            replaced("y_embedder.embedding_table.weight", lambda x: x[:, 0]),
            "y_embedder.embedding_table.weight has shape",
        ),
        (replaced("final_layer.linear.weight", lambda x: x[:24]), "final_layer.linear.weight has 24 rows"),
        (replaced("pos_embed", lambda x: x[:, :15]), "pos_embed has 15 tokens"),
        (replaced("pos_embed", lambda x: np.roll(x, 24, axis=-1)), "pos_embed is not the sine-cosine"),
        (replaced("blocks.3.attn.proj.bias", lambda x: x * np.nan), "blocks.3.attn.proj.bias holds NaN"),
        (replaced("x_embedder.proj.bias", lambda x: x / 0), "x_embedder.proj.bias holds NaN or infinity"),
        (replaced("x_embedder.proj.bias", lambda x: x.astype(np.float64)), "x_embedder.proj.bias is float64"),
        (replaced("x_embedder.proj.bias", lambda x: x.astype(np.int32)), "x_embedder.proj.bias is int32"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_an_unfit_weight_is_named(tmp_path, weights, change, error):
    changed = dict(weights)
    change(changed)
    save_file(changed, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match=f"odd.safetensors:? {error}"):
        load_released_sit(tmp_path / "odd.safetensors", num_heads=HEADS)


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"num_heads": 5}, "num_heads 5"),
        ({"num_heads": 0}, "num_heads 0"),
        ({"num_heads": 4, "patch_size": 3}, "patch_size is 3"),
        ({"num_heads": 4, "patch_size": 8}, "patch_size 8"),
    ],
)
def test_sizes_that_do_not_fit_the_weights_are_named(arguments, error):
    with pytest.raises(UserError, match=error):
        load_released_sit(SAFETENSORS, **arguments)


def test_files_that_cannot_be_read_are_named(tmp_path):
    path, whole = tmp_path / "cut.safetensors", SAFETENSORS.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    lies = [(length + more).to_bytes(8, "little") + whole[8:] for more in (-7, 1, len(whole))]
    lies.append((1 << 63).to_bytes(8, "little") + whole[8:])  # a header of 8 exabytes
    longer = whole.replace(b'"shape":[1,16,48]', b'"shape":[9,16,48]', 1)
    for damaged in (b"", whole[:4], whole[:1000], whole[:-1], longer, *lies):
        assert damaged != whole
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cut.safetensors is damaged or cut short"):
            load_released_sit(path, num_heads=HEADS)
    with pytest.raises(UserError, match="none.pt is not a file"):
        load_released_sit(tmp_path / "none.pt", num_heads=HEADS)
    with pytest.raises(UserError, match="is not a file"):
        load_released_sit(tmp_path, num_heads=HEADS)
    shutil.copy(PT, tmp_path / "weights.npz")
    with pytest.raises(UserError, match="weights.npz is neither .safetensors nor .pt"):
        load_released_sit(tmp_path / "weights.npz", num_heads=HEADS)
