import os
import subprocess
import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from selfflow.errors import UserError
from selfflow.models.attention import _block, attention, implementation_for


def reference(q, k, v, seen_BM, g):
    """Attention and its gradients for the cotangent g, from the formulas, in float64."""
    q, k, v, g = (np.asarray(x, np.float64) for x in (q, k, v, g))
    scale = q.shape[-1] ** -0.5
    logits = np.einsum("bnah,bmah->banm", q, k) * scale
    if seen_BM is not None:
        logits = np.where(np.asarray(seen_BM)[:, None, None, :], logits, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    out = np.einsum("banm,bmah->bnah", p, v)
    dp = np.einsum("bnah,bmah->banm", g, v)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
    return (
        out,
        np.einsum("banm,bmah->bnah", ds, k),
        np.einsum("banm,bnah->bmah", ds, q),
        np.einsum("banm,bnah->bmah", p, g),
    )


def inputs(queries, keys, size, masked, dtype=jnp.float32, batch=2, heads=2):
    """q, k, v, which keys are seen (of each sample others, and at least one), and a cotangent."""
    random = np.random.default_rng(queries + 7 * keys + size)
    draw = lambda length: jnp.asarray(random.standard_normal((batch, length, heads, size)), dtype)
    seen_BM = random.random((batch, keys)) < 0.6
    seen_BM[np.arange(batch), random.integers(0, keys, batch)] = True
    return draw(queries), draw(keys), draw(keys), jnp.asarray(seen_BM) if masked else None, draw(queries)


@cache
def compiled(implementation, interpret=True):
    def both(q, k, v, seen_BM, g):
        call = lambda q, k, v: attention(q, k, v, seen_BM, implementation, interpret)
        out, back = jax.vjp(lambda *qkv: call(*qkv).reshape(g.shape), q, k, v)
        return out, *back(g)

    return jax.jit(both)


# Queries, keys, size of a head, whether some keys are unseen; only the last lengths fill the tiles of a TPU.
SHAPES = [(5, 5, 8, True), (130, 130, 64, False), (7, 130, 72, True), (130, 3, 8, True), (128, 128, 8, False)]


@pytest.mark.parametrize("implementation", ["xla", "splash"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients_are_those_of_the_formula(implementation, shape):
    arguments = inputs(*shape)
    for name, actual, expected in zip("oqkv", compiled(implementation)(*arguments), reference(*arguments)):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(5, 7, 12), (8, 6, 64)], ids=str)
def test_cudnn_is_asked_for_the_same(monkeypatch, masked, shape):
    """All but the kernel: XLA stands in for it, which takes lengths too."""
    compute = jax.nn.dot_product_attention

    def stand_in(q, k, v, *, scale, key_value_seq_lengths, implementation):
        assert implementation == "cudnn" and q.dtype == jnp.bfloat16
        assert q.shape[1] % 2 == k.shape[1] % 2 == q.shape[3] % 8 == 0
        return compute(q, k, v, scale=scale, key_value_seq_lengths=key_value_seq_lengths, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    arguments = inputs(*shape, masked, dtype=jnp.bfloat16)
    for name, actual, expected in zip("oqkv", compiled("cudnn")(*arguments), reference(*arguments)):
        assert actual.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(actual), expected, rtol=0.03, atol=0.03, err_msg=name)


def test_cudnn_is_never_given_a_sample_without_keys(monkeypatch):
    lengths = []

    def stand_in(q, k, v, *, key_value_seq_lengths, **rest):
        lengths.append(key_value_seq_lengths.tolist())
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    q, k, v, seen_BM, _ = inputs(5, 5, 8, True, dtype=jnp.bfloat16)
    attention(q, k, v, seen_BM.at[0].set(False), "cudnn")
    assert lengths == [[1, seen_BM[1].sum()]]


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_what_is_not_seen_changes_nothing(implementation):
    q, k, v, seen_BM, g = inputs(5, 5, 8, True)
    hidden = ~seen_BM[:, :, None, None]
    assert hidden.any()
    plain = compiled(implementation)(q, k, v, seen_BM, g)
    other = compiled(implementation)(q, jnp.where(hidden, 1e6, k), jnp.where(hidden, -1e6, v), seen_BM, g)
    jax.tree.map(np.testing.assert_array_equal, plain, other)
    for gradient in plain[2:]:
        np.testing.assert_array_equal(np.asarray(jnp.abs(gradient).sum((2, 3)) > 0), np.asarray(seen_BM))


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_a_sample_that_sees_nothing_is_finite_and_alone(implementation):
    q, k, v, seen_BM, g = inputs(5, 5, 8, True)
    blind = compiled(implementation)(q, k, v, seen_BM.at[0].set(False), g)
    assert all(bool(jnp.isfinite(x).all()) for x in blind)
    usual = compiled(implementation)(q, k, v, seen_BM, g)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), blind, usual)
    unused = compiled(implementation)(q, k, v, seen_BM.at[0].set(False), g.at[0].set(0))
    assert all(not x[0].any() for x in unused[1:])


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_softmax_is_in_float32_for_bfloat16(implementation):
    call = jax.jit(lambda *qkv: attention(*qkv, None, implementation, interpret=True))
    # Scores 100 and 100.25 are one number in bfloat16.
    heads = lambda *rows: jnp.pad(jnp.array(rows, jnp.bfloat16), ((0, 0), (0, 62)))[None, :, None]
    out = call(heads((8, 8)), heads((100, 0), (100, 0.25)), heads((0, 0), (1, 0)))
    assert out.dtype == jnp.bfloat16
    assert float(out[0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-0.25)), abs=2e-3)
    # And 600 ones cannot be added up in it.
    ones = [jnp.full((1, count, 1, 64), value, jnp.bfloat16) for count, value in ((1, 0), (600, 1), (600, 1))]
    np.testing.assert_allclose(np.float32(call(*ones)), 1, rtol=4e-3)


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_bfloat16_is_as_close_as_its_rounding(implementation):
    arguments = inputs(130, 130, 72, True, dtype=jnp.bfloat16)
    for name, actual, expected in zip("oqkv", compiled(implementation)(*arguments), reference(*arguments)):
        assert actual.dtype == jnp.bfloat16
        assert np.abs(np.float32(actual) - expected).max() < 0.02 * np.abs(expected).max(), name


def test_blocks_are_large_where_they_pad_little():
    lengths = {1: 128, 129: 256, 256: 256, 513: 384, 1100: 384, 1664: 512, 3250: 512}
    assert {length: _block(length) for length in lengths} == lengths


def test_auto_is_what_the_hardware_is_good_at():
    assert implementation_for("cpu", jnp.bfloat16) == implementation_for("gpu", jnp.float32) == "xla"
    assert implementation_for("gpu", jnp.bfloat16) == implementation_for("gpu", "float16") == "cudnn"
    assert implementation_for("tpu", jnp.float32) == implementation_for("tpu", jnp.bfloat16) == "splash"
    q, k, v, _, _ = inputs(5, 5, 8, False)
    np.testing.assert_array_equal(attention(q, k, v, None, "auto"), attention(q, k, v, None, "xla"))


def mesh_of(axes: dict[str, int], platform: str = "cpu"):
    device = AbstractDevice(device_kind="any", num_cores=None, platform=platform)
    mesh = AbstractMesh(
        tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes), abstract_device=device
    )
    return jax.sharding.use_abstract_mesh(mesh)


@pytest.mark.parametrize("implementation", ["auto", "splash"])
def test_on_a_mesh_of_tpus_auto_is_splash(implementation):
    q, k, v, seen_BM, _ = inputs(5, 5, 8, True)
    with mesh_of({"data": 2, "tensor": 2}, "tpu"):
        assert "pallas_call" in str(jax.make_jaxpr(lambda *x: attention(*x, implementation))(q, k, v, seen_BM))
    assert "pallas_call" not in str(jax.make_jaxpr(lambda *x: attention(*x, "auto"))(q, k, v, seen_BM))


@pytest.mark.parametrize(
    "axes, message",
    [
        ({"data": 2, "fsdp": 2}, "batch of 2 .* 4, the mesh's data x fsdp"),
        ({"fsdp": 4, "tensor": 1}, "batch of 2 .* 4, the mesh's fsdp;"),
        ({"data": 2, "tensor": 4}, "model.heads of 2 .* 4, the mesh's tensor"),
    ],
)
@pytest.mark.parametrize("implementation", ["cudnn", "splash"])
def test_what_does_not_divide_by_the_mesh_is_named(implementation, axes, message):
    q, k, v, _, _ = inputs(5, 5, 8, False, dtype=jnp.bfloat16)
    with mesh_of(axes), pytest.raises(UserError, match=f"model.execution.attention '{implementation}'.*{message}"):
        jax.eval_shape(lambda *x: attention(*x, None, implementation), q, k, v)


def test_cudnn_refuses_what_it_cannot_do():
    q, k, v, _, _ = inputs(5, 5, 8, False)
    with pytest.raises(UserError, match="model.execution.attention 'cudnn'.*model.dtype is float32"):
        attention(q, k, v, None, "cudnn")
    if jax.default_backend() == "cpu":
        with pytest.raises(UserError, match="model.execution.attention 'cudnn'.*'xla'"):
            attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)), None, "cudnn")


def test_an_unknown_implementation_is_refused():
    q, k, v, _, _ = inputs(5, 5, 8, False)
    with pytest.raises(ValueError, match="flash.*xla"):
        attention(q, k, v, None, "flash")


def loss_and_gradients(implementation):
    loss = lambda q, k, v, seen: jnp.square(attention(q, k, v, seen, implementation).astype(jnp.float32)).sum()
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


def test_lowered_for_a_tpu_splash_is_its_kernel():
    """Without a TPU and without libtpu; and never the interpreter in disguise."""
    q, k, v, seen_BM, _ = inputs(5, 130, 72, True, dtype=jnp.bfloat16)
    traced = loss_and_gradients("splash").trace(q, k, v, seen_BM)
    assert traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call") == 3
    with pytest.raises(ValueError, match="interpret"):
        traced.lower(lowering_platforms=("cpu",))


ON_A_MESH = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from selfflow.models.attention import attention

q, k, v = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 5, 2, 8)), jnp.float32)
seen = jnp.arange(5) < jnp.array([[5], [3], [1], [2]])

def both(implementation):
    loss = lambda *x: jnp.square(attention(*x, seen, implementation, interpret=True)).sum()
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))

expected = both("xla")(q, k, v)
for names, sizes, spec in (
    (("data", "fsdp", "tensor"), (2, 2, 2), P(("data", "fsdp"), None, "tensor", None)),
    (("tensor", "other"), (2, 4), P(None, None, "tensor", None)),
):
    mesh = jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(names))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x in (q, k, v)]
        found = both("splash")(*placed)
        assert found[1][0].sharding.spec == spec, found[1][0].sharding
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)
    print(names)
"""


@pytest.mark.resilience
def test_on_a_mesh_of_eight_devices_splash_computes_the_same():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
    }
    done = subprocess.run([sys.executable, "-c", ON_A_MESH], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


# The cache of the tests takes a program for another machine, and cannot load it again on this one.
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry")
@pytest.mark.tpu
@pytest.mark.parametrize("masked", [False, True])
def test_splash_compiles_for_a_slice_of_v5e_and_holds_no_scores(monkeypatch, masked):
    pytest.importorskip("libtpu", reason="no libtpu: pip install 'selfflow[tpu]'")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    mesh = Mesh(np.reshape(devices, (2, 2, 2)), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    place = lambda shape, dtype, *spec: jax.ShapeDtypeStruct(
        shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec))
    )
    batch, tokens, heads, size = 8, 3250, 16, 72
    x = place((batch, tokens, heads, size), jnp.bfloat16, ("data", "fsdp"), None, "tensor", None)
    seen_BM = place((batch, tokens), bool, ("data", "fsdp"), None) if masked else None
    with jax.set_mesh(mesh):
        program = loss_and_gradients("auto").trace(x, x, x, seen_BM).lower(lowering_platforms=("tpu",)).compile()
    text = program.as_text()
    assert text.count("tpu_custom_call") == 3 and "all-gather" not in text
    scores = batch // 4 * heads // 2 * tokens**2
    assert program.memory_analysis().temp_size_in_bytes < scores


def on_hardware(platform: str) -> None:
    if jax.default_backend() != platform:
        pytest.skip(f"no {platform}: JAX runs on {jax.default_backend()}, see JAX_PLATFORMS")


def assert_equals_xla(implementation, arguments):
    """To the rounding of bfloat16."""
    actual, expected = (compiled(name, interpret=False)(*arguments) for name in (implementation, "xla"))
    for name, a, b in zip("oqkv", actual, expected):
        a, b = np.float32(a), np.float32(b)
        assert np.abs(a - b).max() < 0.03 * np.abs(b).max(), name


@pytest.mark.tpu
@pytest.mark.parametrize("shape", [(3250, 3250, 72, True), (7, 130, 64, True), (256, 256, 128, False)], ids=str)
def test_splash_equals_xla_on_a_tpu(shape):
    on_hardware("tpu")
    assert_equals_xla("splash", inputs(*shape, dtype=jnp.bfloat16))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1025, 1025, 72, True), (1089, 1089, 64, False), (7, 130, 12, True)], ids=str)
def test_cudnn_equals_xla_on_a_gpu(shape):
    on_hardware("gpu")
    arguments = inputs(*shape, dtype=jnp.bfloat16)
    assert_equals_xla("cudnn", arguments)
    q, k, v, seen_BM, g = arguments
    blind = compiled("cudnn")(q, k, v, jnp.zeros(k.shape[:2], bool), g)
    assert all(bool(jnp.isfinite(x).all()) for x in blind)
    with jax.set_mesh(jax.make_mesh((1, 1), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)):
        assert_equals_xla("auto", arguments)
