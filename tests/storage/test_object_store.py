"""What is object_store of a store, through the clients of S3 and of Google Cloud Storage."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfflow.errors import UserError
from selfflow.storage import object_store as objects
from selfflow.storage.paths import bucket_url, local_path, url_of_copy
from tests.conftest import mentions

pytestmark = pytest.mark.resilience


def test_paths_are_urls_even_after_pathlib_has_collapsed_their_slashes(store, tmp_path):
    assert bucket_url("gs://b/runs/x/") == bucket_url(Path("gs://b/runs/x")) == "gs://b/runs/x"
    assert bucket_url("s3://b") == bucket_url(Path("s3://b")) == "s3://b"
    assert bucket_url("runs/x") is None and bucket_url("/gs/x") is None and bucket_url("gs:") is None
    assert (
        url_of_copy(local_path("gs://b/x") / "y") == "gs://b/x/y"
        and url_of_copy(local_path("s3://b", "read-1")) == "s3://b"
    )
    assert (
        url_of_copy(tmp_path) is None
        and local_path("runs/x") == Path("runs/x")
        and local_path("~/x") == Path.home() / "x"
    )


def test_objects_go_in_and_out(store, bucket, tmp_path):
    (tmp_path / "sent").write_bytes(content := os.urandom(300_000))
    objects.upload(tmp_path / "sent", f"{bucket}/a/b/big")
    assert objects.write_object(f"{bucket}/a/small", b"1") and objects.read_object(f"{bucket}/a/small") == b"1"
    found = objects.list_objects(f"{bucket}/a")
    assert {name: about.size for name, about in found.items()} == {"b/big": 300_000, "small": 1}
    objects.download(f"{bucket}/a/b/big", tmp_path / "got" / "big", 300_000)
    assert (tmp_path / "got" / "big").read_bytes() == content and os.listdir(tmp_path / "got") == ["big"]
    assert objects.write_object(f"{bucket}/a/small", b"2")
    assert objects.object_info(f"{bucket}/a/small").tag != found["small"].tag
    objects.delete_objects([f"{bucket}/a/small", f"{bucket}/a/never"])
    assert store.keys() == ["a/b/big"] and objects.read_object(f"{bucket}/a/small") is None
    assert objects.list_objects(f"{bucket}/a/b") == {"big": found["b/big"]}
    assert objects.list_objects(f"{bucket}/other") == {}
    with pytest.raises(objects.MissingObject, match=mentions(f"{bucket}/a/small")):
        objects.object_info(f"{bucket}/a/small")


def test_one_of_two_makes_an_object_that_must_be_fresh(store, bucket):
    assert objects.write_object(f"{bucket}/lease", b"mine", fresh=True)
    assert not objects.write_object(f"{bucket}/lease", b"theirs", fresh=True)
    assert objects.write_object(f"{bucket}/lease", b"mine", fresh=True)  # the answer to a first try was lost
    assert store.read("lease") == b"mine"


def test_requests_are_repeated_while_a_store_answers_503(store, bucket, tmp_path):
    store.failures = 1
    assert objects.write_object(f"{bucket}/x", b"1")
    store.failures = 1
    objects.download(f"{bucket}/x", tmp_path / "x", 1)
    assert (tmp_path / "x").read_bytes() == b"1" and store.failures == 0


def test_a_store_that_stays_unreachable_is_named_with_the_remedy(store, bucket, monkeypatch, capsys):
    class Client:
        def cat_file(self, url):
            raise TimeoutError("the wire is cut")

    monkeypatch.setattr(objects, "client_of", lambda url: Client())
    monkeypatch.setattr(objects, "_WAITS", (0.01, 0.02))
    with pytest.raises(UserError, match=mentions(bucket, "(the wire is cut) same command")):
        objects.read_object(f"{bucket}/x")
    assert len(capsys.readouterr().err.splitlines()) == 2  # one for each repetition


def test_a_connection_that_breaks_in_the_middle_costs_nothing(store, bucket, tmp_path):
    store.put("bucket/x", content := os.urandom(200_000))
    store.broken = 1
    objects.download(f"{bucket}/x", tmp_path / "x", len(content))
    assert store.broken == 0 and (tmp_path / "x").read_bytes() == content


def test_a_truncated_download_never_takes_the_name(store, bucket, tmp_path):
    store.put("bucket/x", b"12345678")
    store.truncated["bucket/x"] = 5
    with pytest.raises(objects.IncompleteObject, match=mentions(f"{bucket}/x", "8 bytes 5")):
        objects.download(f"{bucket}/x", tmp_path / "x", 8)
    assert list(tmp_path.iterdir()) == []


def test_missing_buckets_and_missing_rights_are_named(store, bucket, tmp_path):
    other = bucket.replace("bucket", "nowhere")
    for call in (lambda: objects.list_objects(f"{other}/x"), lambda: objects.write_object(f"{other}/x", b"")):
        with pytest.raises(UserError, match=mentions(other, "no bucket")):
            call()
    store.refused = True
    for call in (lambda: objects.list_objects(f"{bucket}/x"), lambda: objects.write_object(f"{bucket}/x", b"")):
        with pytest.raises(UserError, match=mentions(bucket, "account")):
            call()


def test_missing_credentials_and_a_missing_client_are_named(store, tmp_path):
    code = "from selfflow.cli import main; main()"
    command = [sys.executable, "-c", code, "export", "s3://bucket/run", "--out", str(tmp_path / "out")]
    environment = {k: v for k, v in os.environ.items() if k not in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    environment |= {"HOME": str(tmp_path), "AWS_CONFIG_FILE": str(tmp_path / "none")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert mentions("s3://bucket (Unable to locate credentials)").search(done.stderr)
    command[2] = f"import sys; sys.modules['s3fs'] = None; {code}"
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 2 and mentions("pip selfflow[s3]").search(done.stderr)


def test_local_paths_import_no_client():
    code = (
        "import sys, selfflow.tasks.train, selfflow.run.folder, selfflow.run.prepare_data, selfflow.cli.data\n"
        "from selfflow.storage.runs import open_for_training, upload_changes\n"
        "with open_for_training('.') as folder: upload_changes(folder)\n"
        "assert not {'fsspec', 'gcsfs', 's3fs', 'aiohttp', 'botocore'} & set(sys.modules), set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
