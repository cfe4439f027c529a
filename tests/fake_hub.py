"""A Hugging Face hub on this machine, as far as its client needs one to make and fill repositories.

Speaks the hub's protocol: create, pre-upload, LFS batch, PUT, commit, tree. Small files are
regular, others LFS. It may refuse uploads.
"""

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

LFS_BYTES = 4096  # larger files are LFS
TOKEN = "hf_right"


class FakeHub(ThreadingHTTPServer):
    """repos: {name: {"private": bool, "files": {path: bytes}}}. objects: LFS content by sha256.

    received: bytes of each LFS upload. break_after: uploads that are taken, None for all.
    owners: users whose repositories the token may write.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos, self.objects, self.received = {}, {}, []
        self.break_after, self.owners, self.cards = None, {"ann"}, []
        self.lock = Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Say nothing of connections that break off."""


@contextlib.contextmanager
def running() -> Iterator[FakeHub]:
    hub = FakeHub()
    Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = self._body()
        if not self._is_known():
            return
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            self._answer({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            self._preupload(self.server.repos[found[1]]["files"], json.loads(body)["files"])
        elif re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", self.path):
            self._batch(json.loads(body)["objects"])
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._answer({"error": self.path}, 404)

    def do_GET(self):
        if not self._is_known():
            return
        found = re.match(r"/api/models/([^/]+/[^/?]+)(/tree/main)?", self.path)
        repo = self.server.repos.get(found[1]) if found else None
        if repo is None:
            self._answer({"error": "Repository not found"}, 404, "RepoNotFound")
        elif found[2]:
            self._answer(
                [
                    {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
                    for path, data in repo["files"].items()
                ]
            )
        else:
            self._answer({"id": found[1], "sha": "1" * 40, "siblings": [], "tags": []})

    def do_PUT(self):
        oid, data = self.path.rpartition("/")[2], self._body()
        assert hashlib.sha256(data).hexdigest() == oid
        with self.server.lock:
            limit = self.server.break_after
            takes = limit is None or len(self.server.received) < limit
            if takes:
                self.server.objects[oid] = data
                self.server.received.append(len(data))
        self._answer({} if takes else {"error": "no room"}, 200 if takes else 400)

    def _create(self, content: dict):
        owner = content.get("organization") or "ann"
        name = f"{owner}/{content['name']}"
        if owner not in self.server.owners:
            self._answer({"error": f"You don't have the rights under {owner}"}, 403)
        elif name in self.server.repos:
            self._answer({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
        else:
            private = content.get("visibility") == "private" or bool(content.get("private"))
            self.server.repos[name] = {"private": private, "files": {}}
            self._answer({"url": f"{self.server.url}/{name}", "id": name})

    def _preupload(self, there: dict[str, bytes], asked: list[dict]):
        answers = []
        for one in asked:
            is_lfs = one["size"] > LFS_BYTES
            answer = {"path": one["path"], "shouldIgnore": False}
            answer["uploadMode"] = "lfs" if is_lfs else "regular"
            if (data := there.get(one["path"])) is not None:
                answer["oid"] = (
                    hashlib.sha256(data).hexdigest()
                    if is_lfs
                    else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                )
            answers.append(answer)
        self._answer({"files": answers})

    def _batch(self, objects: list[dict]):
        found = []
        for one in objects:
            answer = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.server.objects:
                href = f"{self.server.url}/lfs/{one['oid']}"
                answer["actions"] = {"upload": {"href": href, "header": {}}}
            found.append(answer)
        self._answer({"transfer": "basic", "objects": found})

    def _commit(self, repo: str, lines: list[dict]):
        content = self.server.repos[repo]["files"]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                content[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del content[value["path"]]
        address = f"{self.server.url}/{repo}/commit/{'2' * 40}"
        self._answer({"commitUrl": address, "commitOid": "2" * 40})

    def _is_known(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._answer({"error": "Invalid credentials"}, 401)
        return False

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, content, code: int = 200, error: str | None = None):
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        self.wfile.write(body)
