"""A small object store on 127.0.0.1 that speaks as much of S3 and of Google Cloud Storage as their clients ask for.

Objects lie in a dict. `failures` makes the next answers 503, `refused` all answers 403, `broken` hangs up in the middle
of the next objects, `truncated` gives less of an object than listings say; `requests` counts what was asked.
"""

import re
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.storage.fake_google import Google
from tests.storage.fake_listing import etag
from tests.storage.fake_s3 import S3


class FakeStore:
    """The store, with the one bucket `bucket`; a context manager that serves while it is open."""

    def __init__(self):
        self.lock = threading.RLock()
        self._generation = 0
        self.clear()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # clients hang up in the middle of answers that they need not hear
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def clear(self) -> None:
        """Forgets everything."""
        self.objects: dict[str, tuple[bytes, int]] = {}  # by "bucket/key": content, generation
        self.requests: Counter[tuple[str, str]] = Counter()  # by method and path
        self.failures, self.refused, self.broken = 0, False, 0
        self.truncated: dict[str, int] = {}
        self.parts: dict[str, dict[int, bytes]] = {}

    def __enter__(self) -> "FakeStore":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What makes the clients of S3 and of Google Cloud Storage ask here."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_CLOUD_PROJECT": "test",
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # which asks over gRPC
        }

    def upload(self, folder: Path, key: str) -> None:
        """Stores the files of a folder below a key of the bucket."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"bucket/{key}/{path.relative_to(folder)}", path.read_bytes())

    def read(self, key: str) -> bytes:
        """The content of an object of the bucket."""
        return self.objects[f"bucket/{key}"][0]

    def keys(self, prefix: str = "") -> list[str]:
        """Keys in the bucket that begin with a prefix."""
        names = (name.partition("/") for name in sorted(self.objects))
        return [key for bucket, _, key in names if bucket == "bucket" and key.startswith(prefix)]

    def put(self, name: str, content: bytes, fresh: bool = False, expected: str | None = None) -> bool:
        """Stores "bucket/key"; not if it must be `fresh` and is there, or is of another generation than expected."""
        with self.lock:
            now = self.objects.get(name)
            if fresh and now or expected is not None and str(now[1] if now else 0) != expected:
                return False
            self._generation += 1
            self.objects[name] = content, self._generation
            return True


class _Handler(S3, Google, BaseHTTPRequestHandler):
    store: FakeStore
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def _serve(self) -> None:
        where = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(where.query, keep_blank_values=True).items()}
        body = self._body()
        if self.store.failures > 0:
            self.store.failures -= 1
            return self._answer(503, b"<Error><Code>ServiceUnavailable</Code><Message>later</Message></Error>")
        if self.store.refused:
            return self._answer(403, b"<Error><Code>AccessDenied</Code><Message>AccessDenied</Message></Error>")
        self.store.requests[self.command, unquote(where.path)] += 1
        google = re.match("/(?:(upload|download|batch)/)?storage/v1(?:/b/([^/]+))?(?:/o)?(?:/(.+))?$", where.path)
        if google:
            kind, bucket, key = google.groups()
            return self.google(kind, unquote(bucket or ""), unquote(key or ""), key or "", query, body)
        bucket, _, key = unquote(where.path).lstrip("/").partition("/")
        self.s3(bucket, key, query, body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            found, rest = [], body
            while rest:
                head, _, rest = rest.partition(b"\r\n")
                if not (size := int(head.split(b";")[0], 16)):
                    break
                found.append(rest[:size])
                rest = rest[size + 2 :]
            body = b"".join(found)
        return body

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        sized = {"Content-Length": str(len(body))} | {name.replace("_", "-"): text for name, text in headers.items()}
        for name, text in sized.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _content(self, name: str, **headers: str) -> None:
        """An object, or the range of it that is asked for."""
        content, generation = self.store.objects[name]
        if self.command == "GET":
            content = content[: self.store.truncated.get(name, len(content))]
        about = {"ETag": etag(content), "Last_Modified": formatdate(time.time(), usegmt=True)} | headers
        about |= {"x_goog_generation": str(generation), "x_goog_stored_content_length": str(len(content))}
        if self.store.broken > 0 and self.command == "GET":
            self.store.broken -= 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        wanted = re.fullmatch("bytes=([0-9]*)-([0-9]*)", self.headers.get("Range", ""))
        if not wanted:
            return self._answer(200, content, **about)
        first, last = wanted.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(int(last) + 1 if first and last else len(content), len(content))
        if start >= len(content):
            return self._answer(416, Content_Range=f"bytes */{len(content)}")
        self._answer(206, content[start:stop], Content_Range=f"bytes {start}-{stop - 1}/{len(content)}", **about)

    def _missing(self, bucket: str, key: str) -> bool:
        return bucket != "bucket" or bool(key) and f"{bucket}/{key}" not in self.store.objects
