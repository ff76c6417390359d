"""Two hosts must not train into one run of a bucket."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from selfflow.errors import UserError
from selfflow.storage import lease as leases
from selfflow.storage.lease import leased
from tests.conftest import mentions

pytestmark = pytest.mark.resilience


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(leases, "_RENEWAL_SECONDS", 0.2)
    monkeypatch.setattr(leases, "_EXPIRY_SECONDS", 1.5)


def of_another_host(**changed) -> bytes:
    told = {"holder": "x", "host": "elsewhere", "pid": 7, "where": "another start", "renewed": time.time()}
    return json.dumps(told | changed).encode()


def test_a_lease_is_held_renewed_and_released(store, bucket):
    with leased(f"{bucket}/run/lease.json") as lease:
        content = json.loads(store.read("run/lease.json"))
        assert content["pid"] == os.getpid() and content["host"]
        deadline = time.monotonic() + 20
        while json.loads(store.read("run/lease.json"))["renewed"] == content["renewed"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        lease.check()
    assert store.keys() == []


def test_a_lease_that_is_renewed_is_respected_and_named(store, bucket):
    done = threading.Event()

    def renew():
        while not done.wait(0.05):
            store.put("bucket/run/lease.json", of_another_host(renewed=time.time()))

    store.put("bucket/run/lease.json", of_another_host())
    threading.Thread(target=renew).start()
    try:
        with pytest.raises(UserError, match=mentions(f"{bucket}/run/lease.json", "elsewhere process 7 --workdir")):
            with leased(f"{bucket}/run/lease.json"):
                pass
    finally:
        done.set()
    assert json.loads(store.read("run/lease.json"))["host"] == "elsewhere"


@pytest.mark.parametrize("left", [of_another_host(renewed=0), b"", b"[1]", b"\xff"])
def test_a_lease_whose_holder_is_gone_is_taken_over_with_a_message(store, left, capsys):
    store.put("bucket/run/lease.json", left)
    started = time.monotonic()
    with leased("s3://bucket/run/lease.json"):
        assert json.loads(store.read("run/lease.json"))["pid"] == os.getpid()
    assert time.monotonic() - started >= 1.5
    assert mentions("s3://bucket/run/lease.json taking over").search(capsys.readouterr().err)


def test_a_lease_of_a_process_that_ended_on_this_host_is_taken_over_at_once(store, monkeypatch):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    monkeypatch.setattr(leases, "_EXPIRY_SECONDS", 1000.0)
    store.put("bucket/run/lease.json", of_another_host(where=leases._namespace(), pid=process.pid))
    with leased("s3://bucket/run/lease.json"):
        assert json.loads(store.read("run/lease.json"))["pid"] == os.getpid()


def test_a_process_that_lost_its_lease_stops_and_leaves_it_to_the_new_holder(store, bucket):
    with leased(f"{bucket}/run/lease.json") as lease:
        store.put("bucket/run/lease.json", theirs := of_another_host())
        lost = mentions(f"{bucket}/run/lease.json", "elsewhere process 7 stops")
        with pytest.raises(UserError, match=lost):
            lease.check()
        time.sleep(0.5)
        with pytest.raises(UserError, match=lost):
            lease.check()
    assert store.read("run/lease.json") == theirs
