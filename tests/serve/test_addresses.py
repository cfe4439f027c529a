"""ugc_jax.serve.addresses: no URL reaches what is not public, by whatever way."""

import contextlib
import http.server
import ipaddress
import socket
import threading
import time

import pytest

from ugc_jax.errors import UserError
from ugc_jax.serve.addresses import Fetching, Gone, is_public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1",
        "100.100.100.200", "169.254.169.254", "168.63.129.16", "192.0.0.192", "198.18.0.1",
        "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1",
        "2001:db8::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:a9fe:a9fe", "::7f00:1",
        "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "localhost", "0177.0.0.1", "2130706433", "",
    ],
)  # fmt: skip
def test_what_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.215.14", "2606:4700:4700::1111"])
def test_what_is_public(address):
    assert is_public(address)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append((self.path, self.headers["Host"]))
        name = self.path.strip("/")
        if name.startswith("to/"):
            self.send_response(302)
            self.send_header("Location", name.removeprefix("to/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if name == "missing":
            return self.send_error(404)
        content = b"x" * (5000 if name == "large" else 1000)
        self.send_response(200)
        if name == "packed":
            self.send_header("Content-Encoding", "gzip")
        if name not in ("large-unsaid", "slow"):
            announced = 2000 if name == "short" else len(content)
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(40 if name == "slow" else 5 if name == "large-unsaid" else 1):
                self.wfile.write(content[:10] if name == "slow" else content)
                time.sleep(0.1 if name == "slow" else 0)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    """A server on this machine that stands for one of the internet."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.seen = []
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def fetching(site):
    """example.com and www.example.com lead to it, evil.test to a private address."""
    site.seen.clear()
    port = site.server_address[1]
    names = {
        "example.com": ["127.0.0.1"], "www.example.com": ["127.0.0.1"], "evil.test": ["10.0.0.1"],
        "both.test": ["127.0.0.1", "10.0.0.1"],
    }  # fmt: skip

    def resolve(host: str, _: int) -> list[str]:
        if host in names:
            return names[host]
        with contextlib.suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        raise socket.gaierror

    # 127.0.0.1 is public here, and nothing else is.
    return Fetching(
        size=4000, seconds=1.5, ports=(port, 80), resolve=resolve, allowed="127.0.0.1".__eq__
    )


def fetch(fetching, url: str, target, gone=None):
    fetching.fetch(url, target, gone or threading.Event())
    return target.read_bytes()


def test_a_file_is_fetched(fetching, site, tmp_path):
    port = site.server_address[1]
    url = f"http://example.com:{port}/a?b=c"
    assert fetch(fetching, url, tmp_path / "a") == b"x" * 1000
    assert site.seen == [("/a?b=c", f"example.com:{port}")]
    moved = f"http://example.com:{port}/to/http://www.example.com:{port}/b"
    assert fetch(fetching, moved, tmp_path / "a") == b"x" * 1000


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("to/http://evil.test/x", "not one of the public internet"),
        ("to/http://10.0.0.1/x", "not one of the public internet"),
        ("to/http://[::1]/x", "not one of the public internet"),
        ("to/http://169.254.169.254/latest", "not one of the public internet"),
        ("to/file:///etc/passwd", "only http and https"),
        ("to/http://example.com:22/", "port 22 is not fetched from"),
        ("to/to/to/to/to/to/x", "leads on more than 3 times"),
        ("missing", "status 404"),
        ("large", "more than 0 MB"),
        ("large-unsaid", "more than 0 MB"),
        ("short", "ended before"),
        ("packed", "compresses"),
        ("slow", "not fetched within 1.5 s"),
    ],
)
def test_where_it_leads_is_checked(fetching, site, tmp_path, path, words):
    base = f"http://example.com:{site.server_address[1]}"
    path = path.replace("to/to/", f"to/{base}/to/{base}/to/{base}/to/{base}/")
    start = time.monotonic()
    with pytest.raises(UserError, match=words):
        fetch(fetching, f"{base}/{path}", tmp_path / "a")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://example.com/a", "only http and https"),
        ("http://user:pw@example.com/a", "user name"),
        ("http://example.com\\@evil.test/", "malformed|user name"),
        ("http:///a", "malformed"),
        ("http://example.com:99999/", "malformed"),
        ("http://example.com:8080/", "port 8080"),
        ("https://example.com/", "port 443"),
        ("http://example.com/a b", "characters"),
        ("http://example.com/\r\nHost: evil", "characters"),
        ("http://exämple.com/", "characters"),
        ("http://evil.test/", "public"),
        ("http://both.test/", "public"),
        ("http://[::ffff:10.0.0.1]/", "public"),
        ("http://unknown.test/", "not known"),
        ("http://" + "a" * 5000, "more than 4096"),
    ],
)
def test_urls_that_are_not_fetched(fetching, site, tmp_path, url, words):
    with pytest.raises(UserError, match=words):
        fetch(fetching, url, tmp_path / "a")
    assert site.seen == []


def test_a_name_is_resolved_once(fetching, site, tmp_path):
    """A second answer, to another address, is never asked for."""
    answers = [["127.0.0.1"], ["10.0.0.1"]]
    once = fetching._replace(resolve=lambda host, port: answers.pop(0))
    fetch(once, f"http://rebinding.test:{site.server_address[1]}/a", tmp_path / "a")
    assert answers == [["10.0.0.1"]]


def test_only_the_hosts_of_the_setting(fetching, site, tmp_path):
    port = site.server_address[1]
    only = fetching._replace(hosts=("example.com",))
    fetch(only, f"http://www.example.com:{port}/a", tmp_path / "a")
    with pytest.raises(UserError, match="none of those"):
        fetch(only, f"http://notexample.com:{port}/a", tmp_path / "a")


def test_nobody_waits(fetching, site, tmp_path):
    gone = threading.Event()
    gone.set()
    with pytest.raises(Gone):
        fetch(fetching, f"http://example.com:{site.server_address[1]}/slow", tmp_path / "a", gone)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_silent_server_is_left_when_nobody_waits(fetching, tmp_path, scheme):
    """Also in the handshake of https, which has no answer here either."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port, gone = silent.getsockname()[1], threading.Event()
        patient = fetching._replace(seconds=30, ports=(port,))
        threading.Timer(0.1, gone.set).start()
        start = time.monotonic()
        with pytest.raises(Gone):
            fetch(patient, f"{scheme}://example.com:{port}/a", tmp_path / "a", gone)
        assert time.monotonic() - start < 5
        brief = patient._replace(seconds=0.3)
        with pytest.raises(UserError, match=r"not fetched within 0\.3 s"):
            fetch(brief, f"{scheme}://example.com:{port}/a", tmp_path / "a")


def test_further_addresses_of_a_name_are_tried(fetching, site, tmp_path):
    port = site.server_address[1]
    several = fetching._replace(
        resolve=lambda host, port: ["127.0.0.9", "127.0.0.1"], allowed=lambda address: True
    )
    assert fetch(several, f"http://example.com:{port}/a", tmp_path / "a") == b"x" * 1000
    none = several._replace(resolve=lambda host, port: ["127.0.0.8", "127.0.0.9"])
    with pytest.raises(UserError, match="cannot be reached"):
        fetch(none, f"http://example.com:{port}/a", tmp_path / "a")
