"""A judge without a model: a small HTTP server that speaks the chat-completions protocol.

It misbehaves on demand, dies, and comes back on the same port. `python tests/fake_judge.py PORT`
serves until it is killed.
"""

import contextlib
import dataclasses
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclasses.dataclass
class Reply:
    """One answer of the server: after `delay` seconds an error status, a raw body, or a text."""

    text: str | None = None  # what the judge says; None: what the server's `answer` gives
    status: int = 200
    delay: float = 0.0
    headers: dict = dataclasses.field(default_factory=dict)
    body: bytes | None = None  # instead of the protocol's JSON
    finish_reason: str = "stop"  # "length": cut off
    hang_up: bool = False  # close the connection without an answer


def fair(question: str) -> dict:
    """An answer that fits each of the shipped questions, made of the question's length."""
    keys = {str(number): number % 2 == 0 for number in range(1, 21)}
    rating = 1 + len(question) % 5
    rewards = {"score": rating, "points": ["a", "b", "c"], "answer": "A"}
    tasks = {"visual": rating, "audio": rating, "details": rating}
    tasks |= {"consistent": "yes" if rating > 2 else "no", "matched": rating, "total": 5}
    return keys | rewards | tasks


class FakeJudge:
    """Answers every question with `answer(question)`; the `script` of replies comes first."""

    def __init__(self, answer: Callable[[str], dict | str] = fair, port: int = 0):
        self.answer = answer
        self.script: list[Reply] = []  # taken from the front, one a request
        self.delay = 0.0  # seconds before every answer
        self.requests: list[dict] = []  # all that came, in their order
        self.times: list[float] = []  # when they came
        self.now, self.most = 0, 0  # requests in work, and the most of them at a time
        self._lock = threading.Lock()
        self._port, self._server, self._connections = port, None, set()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def questions(self) -> list[str]:
        """The user's first text of each request."""
        users = ([m for m in r["messages"] if m["role"] == "user"] for r in self.requests)
        return [messages[0]["content"] for messages in users]

    def start(self):
        """Serve (again), on the same port."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            judge = self

            def setup(self):
                super().setup()
                self.judge._connections.add(self.connection)

            def do_POST(self):
                self.judge._handle(self)

            def log_message(self, *_):
                pass

            def finish(self):
                self.judge._connections.discard(self.connection)
                with contextlib.suppress(OSError):
                    super().finish()

        self._server = _Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        """Die: connections break, new ones are refused."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _handle(self, handler: BaseHTTPRequestHandler):
        server = self._server
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.requests.append(request)
            self.times.append(time.monotonic())
            reply = self.script.pop(0) if self.script else Reply()
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            time.sleep(self.delay + reply.delay)
            if server is self._server and not reply.hang_up:
                _send(handler, reply, self._body(request, reply))
            else:
                handler.close_connection = True
        except OSError:  # who asked has gone
            handler.close_connection = True
        finally:
            with self._lock:
                self.now -= 1

    def _body(self, request: dict, reply: Reply) -> bytes:
        if reply.body is not None:
            return reply.body
        if reply.status != 200:
            return json.dumps({"error": {"message": "scripted", "code": None}}).encode()
        question = next(m["content"] for m in request["messages"] if m["role"] == "user")
        said = self.answer(question) if reply.text is None else reply.text
        text = said if isinstance(said, str) else json.dumps(said)
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        return json.dumps(
            {
                "id": "1", "object": "chat.completion", "created": 0, "model": request["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason}],
                "usage": usage,
            }
        ).encode()  # fmt: skip


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128


def _send(handler: BaseHTTPRequestHandler, reply: Reply, body: bytes):
    handler.send_response(reply.status)
    for name, value in {"Content-Type": "application/json", **reply.headers}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


if __name__ == "__main__":
    print(FakeJudge(port=int(sys.argv[1])).url, flush=True)
    threading.Event().wait()
