"""An application -> a running server."""

import ipaddress
import logging
import socket
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware
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


def protected(app: FastAPI, host: str, body_limit: int, name: str | None = None) -> ASGIApp:
    """Return the application within its limits and headers.

    body_limit: bytes of a request. name: of a proxy before the server. A server of this machine
    answers to its names only: else a page elsewhere whose name leads to 127.0.0.1 could read it
    (DNS rebinding).
    """
    guarded: ASGIApp = BodyLimit(app, body_limit)
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


def serve(app: ASGIApp, listening: socket.socket, certificate: Sequence[str] | None = None):
    """Serve until Ctrl-C or SIGTERM; requests under way are answered.

    certificate: files of the certificate and of its key, for https. UserError if they are unusable.
    """
    import uvicorn

    for name in certificate or ():
        if not Path(name).is_file():
            raise UserError(f"{name}: no such file; give the certificate and its key as PEM files")
    files = dict(zip(("ssl_certfile", "ssl_keyfile"), certificate or (), strict=False))
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=5, **files,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listening])
