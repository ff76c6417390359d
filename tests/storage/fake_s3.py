"""The part of S3's protocol that `FakeStore` speaks: objects by path, whole or in parts, and listings in XML."""

import re
from urllib.parse import unquote
from xml.sax.saxutils import escape

from tests.storage.fake_listing import etag, level


class S3:
    """Answers of a handler to the clients of S3."""

    def s3(self, bucket: str, key: str, query: dict[str, str], body: bytes) -> None:
        store, name = self.store, f"{bucket}/{key}"
        if bucket != "bucket":
            return self._s3_error(404, "NoSuchBucket")
        if self.command == "PUT" and "uploadId" in query:
            store.parts[query["uploadId"]][int(query["partNumber"])] = body
            return self._answer(200, ETag=etag(body))
        if self.command == "PUT":
            if "x-amz-copy-source" in self.headers:
                store.put(name, store.objects[unquote(self.headers["x-amz-copy-source"]).lstrip("/")][0])
                return self._xml("<CopyObjectResult>", "<ETag>&quot;copied&quot;</ETag>")
            if not store.put(name, body, fresh=self.headers.get("If-None-Match") == "*"):
                return self._s3_error(412, "PreconditionFailed")
            return self._answer(200, ETag=etag(body))
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
        keys, folders = level(self.store.keys(query.get("prefix", "")), query)
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.store.objects['bucket/' + key][0])}</Size>"
            f"<ETag>{escape(etag(self.store.objects['bucket/' + key][0]))}</ETag>"
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
