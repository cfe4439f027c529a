"""jobs/annotate.py as a process: accounts, kills, large bodies, backup; launch/annotate_load.py."""

import contextlib
import io
import re
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from annotating import PASSWORD, Person, add_account, command, running, write_clips
from fake_annotation import BOTH, SOUND, VALUES
from postgres import server

from ugc_jax import cli, files
from ugc_jax.annotate.store import Store
from ugc_jax.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "launch"))
import annotate_load  # noqa: E402


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("annotate") / "clips", 3)


@pytest.fixture(scope="module")
def served(clips):
    """(address, output) of a server with accounts."""
    output = clips.parent / "project"
    add_account(clips, output, "olga", "owner")
    add_account(clips, output, "anna", "annotator")
    with running(clips, output) as (address, _):
        yield address, output


def test_a_server_of_this_machine(served, clips, tmp_path):
    address, output = served
    anna = Person(address, "anna")
    work = anna.annotate(VALUES)
    assert anna.get(f"/media/works/{work}/both.mp4").headers["content-type"] == "video/mp4"
    part = anna.get(f"/media/works/{work}/sound.wav", headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"RIFF")
    # while it is served
    copied = command(clips, output, "--backup", str(tmp_path / "copy.sqlite"))
    assert re.search(r"copy\.sqlite: a copy of the database, \d+ rows", copied.stdout)
    store = Store(str(tmp_path / "copy.sqlite"))
    assert store.agreed()[0].both.caption == BOTH["caption"]
    store.close()
    exported = command(clips, output, "--export", str(tmp_path / "export"))
    assert exported.returncode == 0, exported.stderr
    assert "1 train.jsonl" in exported.stdout
    assert (tmp_path / "export/qa/tone.json").exists()
    (tmp_path / "said.jsonl").write_text('{"video_id": "clip-1", "predict": "neutral"}')
    result = str(tmp_path / "result.json")
    given = ["--qa", str(tmp_path / "export/qa"), "--predictions", str(tmp_path / "said.jsonl")]
    assert cli.run(["evaluate", "--task", "tone", *given, "--output", result]) == 0
    tone = files.read_json(Path(result), "")["tasks"]["tone"]
    assert (tone["n"], tone["score"]) == (1, 100.0)
    other = tmp_path / "other"
    loaded = command(clips, other, "--load", str(tmp_path / "export"))
    assert "1 clips, 3 stages" in loaded.stdout


def test_a_body_of_a_gigabyte(served):
    address, _ = served
    anna = Person(address, "anna")
    path = "/api/works/1/sound"
    headers = {"X-CSRF-Token": anna.csrf, "Content-Type": "application/json"}

    def gigabyte():
        for _ in range(1024):
            yield b" " * 2**20

    for length in ({}, {"Content-Length": str(2**30)}):
        try:
            answer = anna.client.post(path, content=gigabyte(), headers=headers | length)
            assert answer.status_code == 413
        except httpx2.TransportError:  # the server has closed the connection while we still sent
            pass
    assert anna.get("/").status_code == 200
    form = {"csrf": anna.csrf, "name": "x" * 2**21}
    assert anna.client.post("/login", data=form).status_code == 413


def raw(address: str, request: bytes) -> bytes:
    host, port = address.removeprefix("http://").split(":")
    found = b""
    with socket.create_connection((host, int(port)), timeout=2) as connection:
        connection.sendall(request)
        with contextlib.suppress(TimeoutError, ConnectionError):  # the server keeps it open
            while part := connection.recv(65536):
                found += part
    return found


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py", "/static/../../../../../../etc/passwd", "/static/..%2fapp.py",
        "/static/%2e%2e/app.py", "//etc/passwd", "/static//etc/passwd", "/media/works/1/../2/x",
        "http://evil.example/static/../app.py", "/static/annotate.js%00.html", "/static/",
        "/static",
    ],
)  # fmt: skip
def test_raw_paths(served, path):
    address, _ = served
    host = address.removeprefix("http://")
    found = raw(
        address, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    )
    status = int(found.split()[1])
    assert status in (303, 307, 400, 401, 404), found[:300]
    assert b"root:" not in found
    assert b"import " not in found


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /people HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01" + b"\0" * 200,
    ],
)  # fmt: skip
def test_raw_requests(served, request_):
    found = raw(served[0], request_)
    statuses = [int(one) for one in re.findall(rb"HTTP/1.1 (\d+)", found)]
    assert statuses
    assert min(statuses) >= 400
    assert Person(served[0]).get("/login").status_code == 200


def test_a_body_that_breaks_off(served):
    address, output = served
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST /login HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n\r\ncsrf=".encode()
        )
    time.sleep(0.5)
    assert Person(address).get("/login").status_code == 200
    log = output.with_name(f"{output.name}.log").read_text()
    assert "Traceback" not in log
    assert "ASGI" not in log


def test_mistakes_of_users(clips, tmp_path, monkeypatch, capsys):
    output = tmp_path / "project"
    for flags, words in (
        (["--host", "0.0.0.0"], "host 0.0.0.0 is reached by others; first add an account"),
        (["--account", "anna:annotator"], "the first one has to be an owner's"),
        (["--account", "olga:queen"], "the first one has to be an owner's; write NAME:owner"),
        (["--export", str(tmp_path / "export")], "nothing is agreed yet"),
        (["--load", str(tmp_path / "nothing")], "nothing"),
        (["--database", "mysql://x"], "mysql is not supported"),
        (["--guidelines", str(clips / "none.txt")], "no such file"),
        (["--certificate", "x.pem"], "certificate and certificate_key belong together"),
        (["--annotators", "0"], "annotators is 0; give 1 or more"),
        (["--threshold", "2"], "threshold is 2.0; give a number from 0 to 1"),
        (["--proxy", "annotate"], "proxy is annotate; give an address such as https://"),
        (["--proxy", "https://annotate.example.org"], "is reached by others; first add an account"),
        (["--lock", "0"], "give minutes above 0"),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PASSWORD}\n"))
        with pytest.raises(UserError, match=re.escape(words)):
            cli.run(["annotate", str(clips), "--output", str(output), *flags])
    ended = command(tmp_path / "none", output)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("ugc-jax annotate: ")
    assert "Traceback" not in ended.stderr
    assert "not a folder; name the folder of the clips" in ended.stderr
    add = ["annotate", str(clips), "--output", str(output), "--account", "olga:owner"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("short\n"))
    with pytest.raises(UserError, match="has 5 characters; use at least 10"):
        cli.run(add)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PASSWORD}\n"))
    assert cli.run(add) == 0
    assert capsys.readouterr().out == "olga has an account as owner\n"
    with running(clips, output) as (address, _):
        port = address.rpartition(":")[2]
        ended = command(clips, output, "--port", port)
        assert f"port {port} of 127.0.0.1: cannot be used" in ended.stderr


def test_https(clips, tmp_path):
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out",
         "cert.pem", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        cwd=tmp_path, capture_output=True,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("openssl makes no certificate here")
    files = [
        "--certificate",
        str(tmp_path / "cert.pem"),
        "--certificate_key",
        str(tmp_path / "key.pem"),
    ]
    output = tmp_path / "project"
    add_account(clips, output, "olga", "owner")
    with running(clips, output, *files) as (address, _):
        assert address.startswith("https://")
        trusted = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        olga = Person(address, "olga", verify=trusted)
        assert olga.get("/people").status_code == 200
        assert list(olga.client.cookies) == ["__Host-ugc_jax"]


def test_behind_a_proxy(clips, tmp_path):
    output = tmp_path / "project"
    add_account(clips, output, "olga", "owner")
    name = "annotate.example.org"
    with running(clips, output, "--proxy", f"https://{name}") as (address, _):
        olga = Person(address, headers={"Host": name, "Origin": f"https://{name}"})
        assert "Secure" in olga.get("/login").headers["set-cookie"]
        token = olga.client.cookies["__Host-ugc_jax"]
        olga.client.headers["Cookie"] = f"__Host-ugc_jax={token}"  # https is the proxy's
        assert olga.form("/login", name="olga", password=PASSWORD).status_code == 303
        other = Person(address, headers={"Host": "evil.example"})
        assert other.get("/login").status_code == 400


@pytest.mark.parametrize("kills", [0, 3])
def test_every_acknowledged_save_is_there(tmp_path, kills):
    result = annotate_load.load(
        tmp_path, people=5, saves=100, seconds=6 if kills else 2, kills=kills
    )
    assert (result.saves, result.lost, result.foreign) == (100, 0, 0)
    print(result.line())


def test_on_postgres(tmp_path):
    with server() as url:
        result = annotate_load.load(tmp_path, people=5, saves=100, seconds=2, database=url)
    assert (result.saves, result.lost, result.foreign) == (100, 0, 0)
    print(result.line())


def test_a_lock_of_a_moment(clips, tmp_path):
    output = tmp_path / "project"
    for name, role in (("olga", "owner"), ("anna", "annotator"), ("bert", "annotator")):
        add_account(clips, output, name, role)
    with running(clips, output, "--lock", "0.01") as (address, _):
        anna, bert = Person(address, "anna"), Person(address, "bert")
        work = anna.next()
        anna.get(f"/works/{work}/sound")
        assert anna.save(work, "sound", 0, {"caption": "a"}).status_code == 200
        time.sleep(0.8)
        assert bert.next() == 2  # the same clip, another work
        late = anna.save(work, "sound", 1, SOUND)
        assert late.status_code == 409
        assert "given to another annotator" in late.json()["error"]
