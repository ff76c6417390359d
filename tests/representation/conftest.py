import jax
import pytest


@pytest.fixture(scope="module")
def compiled_quickly():
    """Most of the time of some tests is XLA's, on networks that run for milliseconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
