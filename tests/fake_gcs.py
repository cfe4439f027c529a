"""Google Cloud Storage on this machine, as far as gcsfs and tensorstore ask for it: its JSON API.

    with serve() as gcs: ...     gcs.url for STORAGE_EMULATOR_HOST
    server (fixture)             the same, with gcsfs and its worker processes set to it

Objects, listings with a delimiter, ranges, uploads in one request and in parts, copies, moves,
deletions one by one and in a batch. Buckets exist. Faults on request.
"""

import base64
import contextlib
import hashlib
import json
import re
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

import pytest

TIME = "2025-01-02T03:04:05.678Z"
MESSAGES = {
    401: "Anonymous caller does not have storage.objects.get access to the object.",
    403: "ann@example.com does not have storage.objects.get access to the object.",
    503: "We encountered an internal error. Please try again.",
}


class FakeGcs(ThreadingHTTPServer):
    """objects: {(bucket, name): bytes}. faults: {part of a name: statuses of its next requests}.

    asked: (method, name of the object or the prefix) of all requests, in order.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.objects: dict[tuple[str, str], bytes] = {}
        self.faults: dict[str, list[int]] = {}
        self.asked: list[tuple[str, str]] = []
        self.generations: dict[tuple[str, str], int] = {}  # of an object; 1 without
        self.writes = 1
        self.uploads: dict[str, tuple[str, str, bytes]] = {}  # in parts: bucket, name, so far
        self.lock = Lock()

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """Return the names of the objects of a bucket, sorted."""
        return sorted(
            name for own, name in self.objects if own == bucket and name.startswith(prefix)
        )

    def handle_error(self, request, client_address):
        """Say nothing of connections that break off."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeGcs

    def log_message(self, *_):
        pass

    def _serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        with self.server.lock:
            self._answer(*self._of(self.command, url.path, query, body))

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    def _answer(self, status: int, content=b"", headers: dict | None = None):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(content)

    def _of(self, method: str, path: str, query: dict, body: bytes) -> tuple:
        """Return status, content and headers of a request."""
        server, (*parts,) = self.server, map(urllib.parse.unquote, path.strip("/").split("/"))
        if path.startswith("/batch/"):
            return self._batch(body)
        upload, parts = parts[0] == "upload", parts[3 + (parts[0] in ("upload", "download")) :]
        if upload and query.get("upload_id"):
            return self._part(query["upload_id"], body)
        bucket, name = parts[0], parts[2] if len(parts) > 2 else query.get("name", "")
        server.asked.append((method, name or query.get("prefix", "")))
        for part, statuses in server.faults.items():
            if part in (name or query.get("prefix", "")) and statuses:
                status = statuses.pop(0)
                return status, {"error": {"code": status, "message": MESSAGES[status]}}
        if upload:
            return self._upload(bucket, name, query, body)
        match [method, *parts]:
            case ["GET", _]:
                return 200, {"kind": "storage#bucket", "name": bucket}
            case ["GET", _, "o"]:
                return 200, self._list(bucket, query)
            case ["GET", _, "o", _]:
                return self._get(bucket, name, query)
            case ["DELETE", _, "o", _]:
                gone = server.objects.pop((bucket, name), None)
                return (404, _absent(name)) if gone is None else (204,)
            case ["POST", _, "o", _, "rewriteTo", "b", target, "o", other]:
                return self._copy((bucket, name), (target, other), "resource")
            case ["POST", _, "o", _, "moveTo", "o", other]:
                found = self._copy((bucket, name), (bucket, other), None)
                server.objects.pop((bucket, name), None)
                return found
        return 501, {"error": {"code": 501, "message": f"{method} {path}"}}

    def _resource(self, bucket: str, name: str) -> dict:
        content = self.server.objects[bucket, name]
        digest = base64.b64encode(hashlib.md5(content).digest()).decode()
        return {
            "kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(content)),
            "md5Hash": digest, "updated": TIME, "timeCreated": TIME,
            "generation": str(self.server.generations.get((bucket, name), 1)),
            "metageneration": "1", "etag": digest,
        }  # fmt: skip

    def _list(self, bucket: str, query: dict) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], {}
        for name in self.server.names(bucket, prefix):
            head, found, _ = name[len(prefix) :].partition(delimiter or "\0")
            if found:
                prefixes[prefix + head + delimiter] = None
            else:
                items.append(self._resource(bucket, name))
        most = int(query.get("maxResults", 1000))
        return {"kind": "storage#objects", "items": items[:most], "prefixes": [*prefixes]}

    def _get(self, bucket: str, name: str, query: dict) -> tuple:
        if (content := self.server.objects.get((bucket, name))) is None:
            return 404, _absent(name)
        resource = self._resource(bucket, name)
        if query.get("alt") != "media":
            return 200, resource
        told = {"x-goog-generation": resource["generation"]}
        if query.get("ifGenerationNotMatch") == resource["generation"]:
            return 304, b"", told
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not found:
            return 200, content, told
        first, last = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
        if first >= len(content):
            return 416, b"", {"Content-Range": f"bytes */{len(content)}"}
        place = f"bytes {first}-{last}/{len(content)}"
        return 206, content[first : last + 1], told | {"Content-Range": place}

    def _upload(self, bucket: str, name: str, query: dict, body: bytes) -> tuple:
        if query["uploadType"] == "multipart":
            boundary = (
                b"--" + self.headers["Content-Type"].partition("boundary=")[2].strip('"').encode()
            )
            _, described, content, _ = (body + b"\n").split(boundary)
            name = json.loads(described.partition(b"\n\n")[2])["name"]
            content = content.partition(b"\n\n")[2][:-1]
            return self._put(bucket, name, content, query)
        if query["uploadType"] == "media":
            return self._put(bucket, name, body, query)
        number = str(len(self.server.uploads) + 1)
        self.server.uploads[number] = bucket, name or json.loads(body)["name"], b""
        place = f"{self.server.url}/upload/storage/v1/b/{bucket}/o?upload_id={number}"
        return 200, b"", {"Location": place}

    def _part(self, number: str, body: bytes) -> tuple:
        bucket, name, content = self.server.uploads[number]
        content += body
        self.server.uploads[number] = bucket, name, content
        total = self.headers["Content-Range"].rpartition("/")[2]
        if total == "*" or len(content) < int(total):
            return 308, b"", {"Range": f"bytes=0-{len(content) - 1}"}
        return self._put(bucket, name, content, {})

    def _put(self, bucket: str, name: str, content: bytes, query: dict) -> tuple:
        server, key = self.server, (bucket, name)
        now = server.generations.get(key, 1) if key in server.objects else 0
        if query.get("ifGenerationMatch", str(now)) != str(now):
            return 412, {"error": {"code": 412, "message": "conditionNotMet"}}
        server.writes += 1
        server.objects[key], server.generations[key] = content, server.writes
        return 200, self._resource(bucket, name)

    def _copy(self, source: tuple[str, str], target: tuple[str, str], key: str | None) -> tuple:
        if source not in self.server.objects:
            return 404, _absent(source[1])
        self._put(*target, self.server.objects[source], {})
        resource = self._resource(*target)
        return 200, {"done": True, "resource": resource} if key else resource

    def _batch(self, body: bytes) -> tuple:
        """Deletions, the only thing for which gcsfs has batches."""
        lines = []
        for path in re.findall(r"DELETE (\S+) HTTP", body.decode()):
            parts = [urllib.parse.unquote(part) for part in path.split("/")]
            self.server.asked.append(("DELETE", parts[6]))
            gone = self.server.objects.pop((parts[4], parts[6]), None)
            lines.append("HTTP/1.1 404 Not Found" if gone is None else "HTTP/1.1 204 No Content")
        text = "".join(
            f"--batch\r\nContent-Type: application/http\r\n\r\n{one}\r\n\r\n" for one in lines
        )
        return 200, f"{text}--batch--".encode(), {"Content-Type": "multipart/mixed; boundary=batch"}


def _absent(name: str) -> dict:
    return {"error": {"code": 404, "message": f"No such object: {name}"}}


@contextlib.contextmanager
def serve() -> Iterator[FakeGcs]:
    """Serve in the block."""
    server = FakeGcs()
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server(monkeypatch) -> Iterator[FakeGcs]:
    """The real gcsfs asks an empty store, without an account; so do processes that are started."""
    from fsspec.config import conf
    from fsspec.registry import _registry

    with serve() as gcs:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", gcs.url)
        monkeypatch.setenv("FSSPEC_GS_TOKEN", "anon")
        # Its gRPC client for other kinds of buckets, which would wait for an answer of gRPC.
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        monkeypatch.setitem(conf, "gs", conf.get("gs", {}) | {"token": "anon"})
        core = pytest.importorskip("gcsfs.core")
        for name in ("gs", "gcs"):  # it may have been imported before
            monkeypatch.setitem(_registry, name, core.GCSFileSystem)
        core.GCSFileSystem.clear_instance_cache()
        yield gcs
        core.GCSFileSystem.clear_instance_cache()
