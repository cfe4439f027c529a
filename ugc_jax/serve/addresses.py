"""Fetching media by URL, so that no URL reaches what only this machine or its network reaches.

A name is resolved once; each of its addresses has to be one of the public internet, and the
connection is made to the address that was checked (no rebinding). Redirects are followed by hand,
and each is checked alike. Proxies of the environment are not used: they would resolve the name
again.
"""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

from ugc_jax.errors import UserError

PORTS = {"http": 80, "https": 443}
MOST_REDIRECTS = 3
LONGEST = 4096  # characters of a URL
_BLOCK = 1 << 16
_GLANCE = 0.2  # seconds between two looks at whether somebody waits
# Clouds' own services outside the private ranges, some of which older Pythons do not know either.
METADATA = (ipaddress.ip_network("168.63.129.16"), ipaddress.ip_network("192.0.0.0/24"))
# IPv6 prefixes with an IPv4 address inside, at this bit from the right.
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))

Resolve = Callable[[str, int], Sequence[str]]


class Gone(Exception):
    """Nobody waits for what is being fetched."""


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet, whatever form it has."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # also: with a zone of a link
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None or any(ip in network for network in _NAT64):
            return False
        # An IPv4 address in another form is reached by way of some translator.
        if ip.ipv4_mapped or ip.sixtofour or ip.teredo or int(ip) >> 32 == 0:
            return False
        if ip.is_site_local:
            return False
    return (
        ip.is_global
        and not ip.is_multicast
        and not ip.is_reserved
        and not any(ip in network for network in METADATA)
    )


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


class Fetching(NamedTuple):
    """How URLs are fetched.

    hosts: names that may be asked; (): all. size: most bytes. seconds: for all of it. ports,
    resolve, allowed: others only for tests.
    """

    hosts: tuple[str, ...] = ()
    size: int = 100 << 20
    seconds: float = 30.0
    ports: tuple[int, ...] = tuple(PORTS.values())
    resolve: Resolve = resolve
    allowed: Callable[[str], bool] = is_public

    def fetch(self, url: str, target: Path, gone: threading.Event):
        """Write what a URL leads to into a file. Blocks.

        Raises UserError for a URL that may not be fetched, leads to nothing, or to more than the
        limits; Gone after `gone` is set.
        """
        end = time.monotonic() + self.seconds
        for _ in range(MOST_REDIRECTS + 1):
            parts = self._check(url)
            connection, link = self._connect(parts, end)
            done = threading.Event()
            # A server may send a byte at a time, each within the socket's time limit, or nothing
            # while nobody waits any more.
            threading.Thread(
                target=_watch, args=(link, done, gone, end), name="fetch", daemon=True
            ).start()
            try:
                if isinstance(link, ssl.SSLSocket):
                    link.do_handshake()
                path = parts.path or "/"
                path += f"?{parts.query}" if parts.query else ""
                headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                if answer.status in (301, 302, 303, 307, 308):
                    url = urljoin(url, answer.headers.get("Location", ""))
                    continue
                if answer.status != 200:
                    raise UserError(f"the server answers with status {answer.status}")
                if answer.headers.get("Content-Encoding", "identity") != "identity":
                    raise UserError("the server compresses the content, which was not asked for")
                return self._write(answer, target, end, gone)
            except UserError:
                raise
            except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
                if gone.is_set():
                    raise Gone from None
                _seconds_left(end, self.seconds)
                raise UserError(f"it cannot be fetched ({_reason(error)})") from None
            finally:
                done.set()
                connection.close()
                link.close()
        raise UserError(f"it leads on more than {MOST_REDIRECTS} times")

    def _check(self, url: str) -> SplitResult:
        """Return the parts of a URL that may be fetched as far as its text tells."""
        if len(url) > LONGEST:
            raise UserError(f"its URL has more than {LONGEST} characters")
        if not url.isascii() or not url.isprintable() or " " in url:
            raise UserError("its URL has characters that have to be written as %XX")
        try:
            parts = urlsplit(url)
            port = parts.port or PORTS.get(parts.scheme)
        except ValueError:
            raise UserError("its URL is malformed") from None
        if parts.scheme not in PORTS:
            raise UserError("only http and https are fetched")
        if parts.username is not None or parts.password is not None:
            raise UserError("its URL has a user name; leave it out")
        if not parts.hostname or "\\" in url:
            raise UserError("its URL is malformed")
        if port not in self.ports:
            raise UserError(f"port {port} is not fetched from")
        name = parts.hostname.rstrip(".")
        if self.hosts and not any(name == one or name.endswith(f".{one}") for one in self.hosts):
            raise UserError("its host is none of those that this server fetches from")
        return parts

    def _connect(
        self, parts: SplitResult, end: float
    ) -> tuple[http.client.HTTPConnection, socket.socket]:
        """Return a connection to a checked address of the host, and its socket."""
        host, port = parts.hostname, parts.port or PORTS[parts.scheme]
        try:
            addresses = self.resolve(host, port)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise UserError("its host is not known")
        if not all(map(self.allowed, addresses)):
            raise UserError("its host is not one of the public internet")
        for last, address in enumerate(addresses, 1 - len(addresses)):  # 0: the last one
            try:
                link = socket.create_connection(
                    (address, port), timeout=_seconds_left(end, self.seconds)
                )
                break
            except OSError as error:
                _seconds_left(end, self.seconds)
                if last == 0:
                    raise UserError(f"its host cannot be reached ({_reason(error)})") from None
        kind = http.client.HTTPConnection
        if parts.scheme == "https":
            kind, context = http.client.HTTPSConnection, ssl.create_default_context()
            link = context.wrap_socket(link, server_hostname=host, do_handshake_on_connect=False)
        connection = kind(host, port)
        connection.sock = link
        return connection, link

    def _write(
        self, answer: http.client.HTTPResponse, target: Path, end: float, gone: threading.Event
    ):
        limit = f"it has more than {self.size >> 20} MB"
        if (answer.length or 0) > self.size:
            raise UserError(limit)
        count = 0
        with target.open("wb") as file:
            while block := answer.read1(_BLOCK):
                count += len(block)
                if count > self.size:
                    raise UserError(limit)
                file.write(block)
                if gone.is_set():
                    raise Gone
                _seconds_left(end, self.seconds)
        if gone.is_set():
            raise Gone
        # Else the connection was cut, and nothing tells of the rest.
        _seconds_left(end, self.seconds)
        if answer.length:
            raise UserError("the server ended before it had sent all")


def _watch(link: socket.socket, done: threading.Event, gone: threading.Event, end: float):
    """End a connection that another thread reads from: at its end, or when nobody waits."""
    while not (done.wait(min(_GLANCE, max(0.0, end - time.monotonic()))) or gone.is_set()):
        if time.monotonic() >= end:
            break
    with contextlib.suppress(OSError):  # it is closed
        link.shutdown(socket.SHUT_RDWR)


def _seconds_left(end: float, seconds: float) -> float:
    """Seconds until the end. Raises UserError where there are none."""
    if (left := end - time.monotonic()) <= 0:
        raise UserError(f"it was not fetched within {seconds:g} s")
    return left


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
