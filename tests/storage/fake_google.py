"""The part of Google Cloud Storage's JSON protocol that `FakeStore` speaks: objects with generations, uploads."""

import base64
import hashlib
import json
import re
from urllib.parse import unquote, urlsplit

from tests.storage.fake_listing import level


class Google:
    """Answers of a handler to the clients of Google Cloud Storage."""

    def google(self, kind, bucket: str, key: str, raw: str, query: dict[str, str], body: bytes) -> None:
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
        keys, folders = level(found, query)
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


def _resource(store, name: str) -> dict[str, str]:
    content, generation = store.objects[name]
    bucket, _, key = name.partition("/")
    md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
    about = {"kind": "storage#object", "name": key, "bucket": bucket, "size": str(len(content)), "md5Hash": md5}
    when = "2026-01-01T00:00:00.000Z"
    return about | {"generation": str(generation), "etag": f"g{generation}", "timeCreated": when, "updated": when}
