"""An application -> a running server."""

import asyncio
import ipaddress
import logging
import math
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from ugc_jax.errors import UserError
from ugc_jax.web.headers import SecurityHeaders
from ugc_jax.web.limits import BodyLimit

logger = logging.getLogger(__name__)

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server that is bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def protected(
    app: ASGIApp,
    host: str,
    body_limit: int,
    name: str | None = None,
    answer: Callable[..., Response] = PlainTextResponse,
) -> ASGIApp:
    """Return the application within its limits and headers.

    body_limit: bytes of a request. name: of a proxy before the server. answer: makes the response
    to a larger body (`limits.BodyLimit`). A server of this machine
    answers to its names only: else a page elsewhere whose name leads to 127.0.0.1 could read it
    (DNS rebinding).
    """
    guarded: ASGIApp = BodyLimit(app, body_limit, answer)
    if is_loopback(host):
        names = [*LOOPBACK_NAMES, host, *filter(None, [name])]
        guarded = TrustedHostMiddleware(guarded, allowed_hosts=names, www_redirect=False)
    return SecurityHeaders(guarded)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. port: 0 for a free one. UserError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host.strip("[]"), port))
        listening.listen(1024)
    except OSError as error:
        raise UserError(
            f"port {port} of {host}: cannot be used ({error.strerror or error}); choose another "
            "--port, or end the program that has it"
        ) from None
    return listening


def serve(
    app: ASGIApp,
    listening: socket.socket,
    certificate: Sequence[str] | None = None,
    *,
    shutdown: float = 5,
    header_timeout: float = 60,
    on_exit: Callable[[], None] = lambda: None,
):
    """Serve until Ctrl-C or SIGTERM; requests under way are answered.

    certificate: files of the certificate and of its key, for https. shutdown: seconds for requests
    under way at the end. header_timeout: seconds in which a client has to send the header of a
    request, from the connection or the answer before on. on_exit: called in the event loop when the
    end begins. UserError if the certificate's files are unusable.
    """
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        """Closes connections on which no request comes."""

        _patience = None

        def connection_made(self, transport):
            super().connection_made(transport)
            self._wait()

        def data_received(self, data):
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._patience.cancel()

        def on_response_complete(self):
            super().on_response_complete()
            self._wait()

        def connection_lost(self, exc):
            self._patience.cancel()
            super().connection_lost(exc)

        def _wait(self):
            if self._patience is not None:
                self._patience.cancel()
            self._patience = self.loop.call_later(header_timeout, self._end)

        def _end(self):
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    class Server(uvicorn.Server):
        def handle_exit(self, sig, frame):
            if not self.should_exit:
                loop.call_soon_threadsafe(on_exit)
            super().handle_exit(sig, frame)

        async def serve(self, sockets=None):
            nonlocal loop
            loop = asyncio.get_running_loop()
            await super().serve(sockets)

    loop = None
    for name in certificate or ():
        if not Path(name).is_file():
            raise UserError(f"{name}: no such file; give the certificate and its key as PEM files")
    files = dict(zip(("ssl_certfile", "ssl_keyfile"), certificate or (), strict=False))
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
        http=Protocol, ws="none", timeout_graceful_shutdown=math.ceil(shutdown), **files,
    )  # fmt: skip
    Server(config).run(sockets=[listening])
