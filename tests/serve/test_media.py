"""ugc_jax.serve.media: local files only below the root, and broken data by its field."""

import threading

import pytest

from ugc_jax.errors import UserError
from ugc_jax.serve.media import Medium, Store, refusal_of
from ugc_jax.serve.protocol import Refusal


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root/below").mkdir(parents=True)
    (tmp_path / "root/below/a b.mp4").write_bytes(b"a")
    (tmp_path / "secret").write_bytes(b"s")
    (tmp_path / "root/link").symlink_to(tmp_path / "secret")
    (tmp_path / "root/inner").symlink_to(tmp_path / "root/below")
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2/x").write_bytes(b"x")
    return tmp_path / "root"


def file(store: Store, url: str, folder, type_: str = "video_url"):
    return store.file(Medium("messages[0]", type_, url), folder, 0, threading.Event())


@pytest.mark.parametrize("path", ["below/a%20b.mp4", "inner/a b.mp4", "below//a%20b.mp4"])
def test_files_below_the_root(root, tmp_path, path):
    for start in (f"file://{root}/", f"file://localhost{root}/", "file:"):
        assert file(Store(root), start + path, tmp_path).read_bytes() == b"a"


@pytest.mark.parametrize(
    "url",
    [
        "file://{0}/../secret", "file://{0}/%2e%2e/secret", "file://{0}/..%2fsecret",
        "file://{0}/link", "file:///etc/passwd", "file://{0}2/x", "file://{0}/below",
        "file://{0}/none.mp4", "file://host{0}/below/a%20b.mp4", "file://{0}/below/a%00b",
        "file:../secret", "file:", "file://{0}/below/a%2520b.mp4", "file:///proc/self/environ",
        "file://{0}/<script>alert(1)</script>.mp4",
    ],
)  # fmt: skip
def test_nothing_else(root, tmp_path, url):
    with pytest.raises(Refusal, match=r"^messages\[0\]: there is no such file below") as found:
        file(Store(root), url.format(root), tmp_path)
    assert (found.value.status, found.value.param) == (400, "messages[0]")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///etc/passwd", "reads no local files"),
        ("https://example.com/a.mp4", "fetches no URLs"),
        ("gopher://example.com", "not a URL"),
        ("/etc/passwd", "not a URL"),
        ("", "not a URL"),
        ("data:video/mp4,abc", "has to be written"),
        ("data:video/mp4;base64,a?b=", "base64 is broken"),
        ("data:video/mp4;base64,", "is empty"),
    ],
)
def test_refused_by_what_is_wrong(tmp_path, url, words):
    with pytest.raises(Refusal, match=words):
        file(Store(), url, tmp_path)


def test_data_of_the_request(tmp_path):
    assert file(Store(), "DATA:;BASE64,YQ==", tmp_path).read_bytes() == b"a"
    assert file(Store(), "data:video/mp4;base64,YQ%3D%3D", tmp_path).read_bytes() == b"a"
    assert file(Store(), "YQ==", tmp_path, "input_audio").read_bytes() == b"a"


@pytest.mark.parametrize("number", [1, 10, 11])
def test_the_field_of_many_media_that_cannot_be_read(tmp_path, number):
    media = [Medium(f"messages[0].content[{n}]", "video_url", "") for n in range(12)]
    files = [tmp_path / str(n) for n in range(12)]
    refusal = refusal_of(UserError(f"{files[number]}: not readable"), media, files)
    assert refusal.message == f"messages[0].content[{number}]: not readable"
    assert refusal.param == f"messages[0].content[{number}]"
