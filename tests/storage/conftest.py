"""A fake object store that the clients of this process and of those that it starts find."""

import pytest

from tests.storage.fake_store import FakeStore


@pytest.fixture(scope="session")
def served():
    with FakeStore() as store:
        yield store


@pytest.fixture
def store(served, monkeypatch, tmp_path) -> FakeStore:
    """An empty store, and an empty cache of copies."""
    served.clear()
    for name, value in served.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SELFFLOW_CACHE", str(tmp_path / "cache"))
    return served


@pytest.fixture(params=["s3", "gs"])
def bucket(request, store) -> str:
    """The URL of the store's bucket, through either protocol."""
    return f"{request.param}://bucket"
