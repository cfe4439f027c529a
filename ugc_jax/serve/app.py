"""The routes of a server: /v1/chat/completions, /v1/inputs, /v1/models, /health, /metrics, /."""

import hashlib
import hmac
import os
import time
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ugc_jax.errors import UserError
from ugc_jax.serve import page
from ugc_jax.serve.answering import Answering
from ugc_jax.serve.protocol import Refusal

KEY_VARIABLE = "UGC_JAX_API_KEY"
SHORTEST_KEY = 16  # characters
_OPEN = ("/health",)


def read_keys(file: str | None) -> list[str]:
    """Return the keys of a file, one a line, or the one of UGC_JAX_API_KEY; [] without either.

    Raises UserError for a file that cannot be read or has none, and for a short key.
    """
    if file is None:
        where, text = KEY_VARIABLE, os.environ.get(KEY_VARIABLE, "")
    else:
        where = f"api_key_file: {file}"
        try:
            text = Path(file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is not text"
            raise UserError(f"{where}: {reason}; write one key a line into it") from None
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if file is not None and not keys:
        raise UserError(f"{where}: has no key; write one a line into it")
    if any(len(key) < SHORTEST_KEY or not key.isascii() for key in keys):
        raise UserError(
            f"{where}: a key has at least {SHORTEST_KEY} ASCII characters; make one with: "
            "openssl rand -hex 24"
        )
    return keys


class Keys:
    """ASGI middleware that asks for one of some keys, but for /health and the page to try it."""

    def __init__(self, app, keys: Sequence[str]):
        self._app, self._digests = app, [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        is_open = scope["type"] != "http" or scope["path"] in _OPEN or page.is_open(scope["path"])
        if is_open or not self._digests:
            return await self._app(scope, receive, send)
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, key = given.decode("latin-1").partition(" ")
        digest = _digest(key.strip())
        # All of them, so that the time does not tell which.
        known = [hmac.compare_digest(digest, one) for one in self._digests]
        if kind.lower() == "bearer" and any(known):
            return await self._app(scope, receive, send)
        refusal = Refusal(
            401, "this server needs its key: send Authorization: Bearer KEY",
            code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
        await refusal.response()(scope, receive, send)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


class _Post:
    """The ASGI application of a route that answers requests with a body."""

    def __init__(self, answering: Answering, answer):
        self._answering, self._answer = answering, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        await self._answering.handle(scope, receive, send, self._answer)


def create(answering: Answering) -> FastAPI:
    """Return the application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    started = int(time.time())
    model = {
        "id": answering.model.name,
        "object": "model",
        "created": started,
        "owned_by": "ugc_jax",
        "ugc_jax": answering.takes(),
    }

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict:
        if name != model["id"]:
            raise HTTPException(404, "there is no such model; see /v1/models")
        return model

    @app.get("/health")
    async def health() -> Response:
        """200 while requests are accepted."""
        error = answering.live.stats().error
        state = "shutting down" if answering.stopping else error or "ok"
        return JSONResponse({"status": state}, 200 if state == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(answering.metrics.text(), media_type="text/plain; version=0.0.4")

    for path, answer in (
        ("/v1/chat/completions", answering.complete),
        ("/v1/inputs", answering.show),
    ):
        app.router.routes.append(Route(path, _Post(answering, answer), methods=["POST"]))
    app.router.routes.extend(page.routes())

    @app.exception_handler(HTTPException)
    async def fault(_: Request, error: HTTPException) -> Response:
        return Refusal(error.status_code, str(error.detail), headers=error.headers).response()

    return app
