"""Features on disk, and features of arrays of latents that are not the data of a run."""

import resource
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.representation.features.arrays import Arrays
from selfflow.representation.features.extract import features
from selfflow.representation.features.feature_files import LayerWriter, read_layer
from selfflow.run.run import open_run
from tests.conftest import mentions


def test_two_writers_of_the_same_layer_do_not_harm_each_other(tmp_path):
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    first, second, late = (LayerWriter(tmp_path / "f", 2) for _ in range(3))
    first.add({"video": rows[:1]})
    second.add({"video": rows})
    assert read_layer(tmp_path / "f", 2, ("video",)) is None
    first.add({"video": rows[1:]})
    for writer in (first, second):
        writer.finish({"ids": ["a", "b", "c"], "left_out": []})
    late.drop()
    stored = read_layer(tmp_path / "f", 2, ("video",))
    np.testing.assert_array_equal(stored.arrays["video"], rows)
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["layer_002"]


@pytest.mark.parametrize(
    "file, content", [("video.npy", b"\x93NUMPY"), ("metadata.json", b"{"), ("metadata.json", b"{}")]
)
def test_damaged_features_are_named(tmp_path, file, content):
    writer = LayerWriter(tmp_path, 1)
    writer.add({"video": np.ones((4, 2), np.float32)})
    writer.finish({"ids": list("abcd"), "left_out": []})
    (tmp_path / "layer_001" / file).write_bytes(content)
    with pytest.raises(UserError, match=mentions(tmp_path / "layer_001", "damaged")):
        read_layer(tmp_path, 1, ("video",))


def test_a_full_disk_is_named_and_nothing_stays(tmp_path):
    """A limit on the size of files has the same effect as a full disk: a write that fails."""
    writer = LayerWriter(tmp_path / "f", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(UserError, match=mentions(tmp_path / "f", "File too large cache=False")):
            for _ in range(100):
                writer.add({"video": np.ones((100, 100), np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.drop()
    assert not [*(tmp_path / "f").iterdir()]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(latents={}), "no latent"),
        (dict(latents={"video": np.zeros((2, 3)), "audio": np.zeros((3, 3))}), "audio 3 video 2"),
        (dict(latents={"video": np.zeros((2, 3))}, ids=["a"]), "ids 1 video 2"),
        (dict(latents={"video": np.zeros((2, 3))}, labels={"kind": [1, 2, 3]}), "labels kind 3 video 2"),
    ],
)
def test_arrays_that_do_not_fit_each_other(arguments, words):
    with pytest.raises(UserError, match=mentions("Arrays", words)):
        Arrays(**arguments)


def test_ids_depend_on_the_samples_and_not_on_their_places():
    x = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    one, other = Arrays({"audio": x[:2], "video": x[:2]}), Arrays({"video": x[1:], "audio": x[1:]})
    assert len({*one.ids, *other.ids}) == 4 and one.ids[1] == other.ids[0]
    assert Arrays({"audio": x}, range(4)).ids == ["0", "1", "2", "3"]


def test_an_imported_network_without_data(tmp_path):
    from selfflow.cli.importing import main
    from tests.interop.released import HEADS, PT

    main([str(PT), "--out", str(tmp_path / "sit"), "--num-heads", str(HEADS)])
    run = open_run(tmp_path / "sit")
    with pytest.raises(UserError, match=mentions(tmp_path / "sit", "no data imported")):
        features(run, "test")
    latents = np.random.default_rng(0).standard_normal((3, 8, 8, 4)).astype(np.float32)
    result = features(run, Arrays({"image": latents}), (2, 4), tau=0.0)
    model = run.model()
    levels, assignment = {"image": jnp.zeros((3, 1))}, {"image": jnp.zeros((3, 16), int)}
    tokens = {"image": model.modalities["image"].to_tokens(jnp.asarray(latents))}
    apply = jax.jit(partial(model.apply, taps=(2, 4)))
    taps = apply(model.params, tokens, levels, jnp.full(3, model.null_label), assignment).taps
    for layer in (2, 4):
        np.testing.assert_allclose(result.layers[layer]["image"], taps[layer]["image"].mean(axis=1), atol=1e-5)
