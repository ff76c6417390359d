"""A small object store on 127.0.0.1 that speaks as much of S3 and of Google Cloud Storage as their clients ask for.

Objects lie in a dict. `failures` makes the next answers 503, `refused` all answers 403, `broken` hangs up in the middle
of the next objects, `truncated` gives less of an object than listings say; `requests` counts what was asked.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


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


class _Handler(BaseHTTPRequestHandler):
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
            return self._google(kind, unquote(bucket or ""), unquote(key or ""), key or "", query, body)
        bucket, _, key = unquote(where.path).lstrip("/").partition("/")
        self._s3(bucket, key, query, body)

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
        about = {"ETag": _etag(content), "Last_Modified": formatdate(time.time(), usegmt=True)} | headers
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

    # S3

    def _s3(self, bucket: str, key: str, query: dict[str, str], body: bytes) -> None:
        store, name = self.store, f"{bucket}/{key}"
        if bucket != "bucket":
            return self._s3_error(404, "NoSuchBucket")
        if self.command == "PUT" and "uploadId" in query:
            store.parts[query["uploadId"]][int(query["partNumber"])] = body
            return self._answer(200, ETag=_etag(body))
        if self.command == "PUT":
            if "x-amz-copy-source" in self.headers:
                store.put(name, store.objects[unquote(self.headers["x-amz-copy-source"]).lstrip("/")][0])
                return self._xml("<CopyObjectResult>", "<ETag>&quot;copied&quot;</ETag>")
            if not store.put(name, body, fresh=self.headers.get("If-None-Match") == "*"):
                return self._s3_error(412, "PreconditionFailed")
            return self._answer(200, ETag=_etag(body))
        if self.command == "POST" and "uploads" in query:
            store.parts[upload := f"upload-{len(store.parts)}"] = {}
            return self._xml(f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId>", "")
        if self.command == "POST" and "uploadId" in query:
            parts = store.parts[query["uploadId"]]
            store.put(name, b"".join(parts[number] for number in sorted(parts)))
            return self._xml("<CompleteMultipartUploadResult><ETag>&quot;joined&quot;</ETag>", "")
        if self.command == "POST" and "delete" in query:
            for gone in re.findall("<Key>(.*?)</Key>", body.decode()):
                store.objects.pop(f"{bucket}/{gone}", None)
            return self._xml("<DeleteResult>", "")
        if self.command == "DELETE":
            store.objects.pop(name, None)
            return self._answer(204)
        if not key:
            return self._s3_list(query) if self.command == "GET" else self._answer(200)
        if self._missing(bucket, key):
            return self._s3_error(404, "NoSuchKey")
        self._content(name)

    def _s3_list(self, query: dict[str, str]) -> None:
        keys, folders = _level(self.store.keys(query.get("prefix", "")), query)
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.store.objects['bucket/' + key][0])}</Size>"
            f"<ETag>{escape(_etag(self.store.objects['bucket/' + key][0]))}</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
        )
        contents += "".join(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders)
        count = len(keys) + len(folders)
        self._xml("<ListBucketResult>", f"{contents}<KeyCount>{count}</KeyCount><IsTruncated>false</IsTruncated>")

    def _xml(self, opened: str, content: str) -> None:
        name = re.match("<([A-Za-z]+)", opened)[1]
        self._answer(200, f"{opened}{content}</{name}>".encode(), Content_Type="application/xml")

    def _s3_error(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    # Google Cloud Storage

    def _google(self, kind, bucket: str, key: str, raw: str, query: dict[str, str], body: bytes) -> None:
        store = self.store
        if kind == "batch":
            return self._google_batch(body)
        if bucket != "bucket":
            return self._json(404, {"error": {"code": 404, "message": "The specified bucket does not exist."}})
        if kind == "upload":
            return self._google_upload(query, body)
        copied = re.match("(.+)/(?:rewriteTo/b/[^/]+|moveTo)/o/(.+)$", raw)
        if copied and self.command == "POST":
            source, target = (f"{bucket}/{unquote(part)}" for part in copied.groups())
            if source not in store.objects:
                return self._json(404, {"error": {"code": 404, "message": "not found"}})
            store.put(target, store.objects[source][0])
            if "/moveTo/" in raw:
                del store.objects[source]
            return self._json(200, _resource(store, target) | {"done": True, "resource": _resource(store, target)})
        if self._missing(bucket, key):
            return self._json(404, {"error": {"code": 404, "message": "not found"}})
        if self.command == "DELETE":
            del store.objects[f"{bucket}/{key}"]
            return self._answer(204)
        if key and query.get("alt") == "media":
            return self._content(f"{bucket}/{key}", x_goog_hash="")
        if key:
            return self._json(200, _resource(store, f"{bucket}/{key}"))
        if not re.search("/o/?$", urlsplit(self.path).path):
            return self._json(200, {"kind": "storage#bucket", "name": bucket, "id": bucket})
        start, end = query.get("startOffset", ""), query.get("endOffset", "")
        found = [k for k in store.keys(query.get("prefix", "")) if k >= start and (not end or k < end)]
        keys, folders = _level(found, query)
        self._json(200, {"items": [_resource(store, f"{bucket}/{k}") for k in keys], "prefixes": folders})

    def _google_upload(self, query: dict[str, str], body: bytes) -> None:
        store, kind = self.store, query.get("uploadType")
        name, expected = query.get("name", ""), query.get("ifGenerationMatch")
        if kind == "multipart":
            boundary = re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            _, about, content = body.split(b"--" + boundary)[:3]
            name = json.loads(re.split(rb"\r?\n\r?\n", about, maxsplit=1)[1])["name"]
            body = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[1].removesuffix(b"\r\n").removesuffix(b"\n")
        elif kind == "resumable" and "upload_id" not in query:
            store.parts[upload := f"upload-{len(store.parts)}"] = {}
            where = f"{store.url}{self.path}&upload_id={upload}"
            return self._answer(200, Location=where)
        elif kind == "resumable":
            parts = store.parts[query["upload_id"]]
            first, last, total = re.match(r"bytes (\d+|\*)-?(\d*)/(\d+|\*)", self.headers["Content-Range"]).groups()
            if first != "*":
                parts[int(first)] = body
            body = b"".join(parts[number] for number in sorted(parts))
            if total == "*" or len(body) < int(total):
                return self._answer(308, Range=f"bytes=0-{len(body) - 1}")
        if not store.put(f"bucket/{name}", body, expected=expected):
            return self._json(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        self._json(200, _resource(store, f"bucket/{name}"))

    def _google_batch(self, body: bytes) -> None:
        parts = []
        for gone in re.findall("DELETE /storage/v1/b/[^/]+/o/([^ ?]+)", body.decode()):
            found = self.store.objects.pop(f"bucket/{unquote(gone)}", None)
            parts.append(f"--batch\r\n\r\nHTTP/1.1 {404 if found is None else 204} Done\r\n\r\n")
        self._answer(200, ("".join(parts) + "--batch--").encode(), Content_Type="multipart/mixed; boundary=batch")

    def _json(self, status: int, told: dict) -> None:
        self._answer(status, json.dumps(told).encode(), Content_Type="application/json")


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _resource(store: FakeStore, name: str) -> dict[str, str]:
    content, generation = store.objects[name]
    bucket, _, key = name.partition("/")
    md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
    about = {"kind": "storage#object", "name": key, "bucket": bucket, "size": str(len(content)), "md5Hash": md5}
    when = "2026-01-01T00:00:00.000Z"
    return about | {"generation": str(generation), "etag": f"g{generation}", "timeCreated": when, "updated": when}


def _level(keys: list[str], query: dict[str, str]) -> tuple[list[str], list[str]]:
    """Keys and folders of a listing, which a delimiter cuts at the next level."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    if not delimiter:
        return keys, []
    rest = {key: key[len(prefix) :] for key in keys}
    folders = sorted({prefix + r.split(delimiter)[0] + delimiter for r in rest.values() if delimiter in r})
    return [key for key in keys if delimiter not in rest[key]], folders
