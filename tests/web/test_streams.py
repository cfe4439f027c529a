"""ugc_jax.web.streams, server: nothing outside the folder; which addresses are this machine's."""

import pytest

from ugc_jax.errors import UserError
from ugc_jax.web.server import bind, is_loopback, serve
from ugc_jax.web.streams import Folder, Outside


def test_files_below_the_folder_only(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "in-other"
    (inside / "below").mkdir(parents=True)
    outside.mkdir()
    for file in (inside / "a.mp4", inside / "below/b.mp4", outside / "secret"):
        file.write_text(file.name)
    (inside / "link.mp4").symlink_to(inside / "a.mp4")
    (inside / "out.mp4").symlink_to(outside / "secret")
    (inside / "up").symlink_to(outside)
    (inside / "gone.mp4").symlink_to(inside / "nothing")
    folder = Folder(inside)
    assert folder.file("a.mp4").read_text() == "a.mp4"
    assert folder.file("below", "b.mp4") == folder.file("below/b.mp4")
    assert folder.file("link.mp4") == folder.file("a.mp4")
    for parts in (
        ("..", "in-other", "secret"), ("../in-other/secret",), (str(outside / "secret"),),
        ("below/../../in-other/secret",), ("out.mp4",), ("up", "secret"), ("up/secret",),
        ("gone.mp4",), ("below",), ("",), ("a.mp4", ""), ("a.mp4\0",), (".",),
        ("nothing",), ("a.mp4/x",),
    ):  # fmt: skip
        with pytest.raises(Outside):
            folder.file(*parts)


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("127.0.0.1", True), ("localhost", True), ("::1", True), ("[::1]", True),
        ("127.8.0.1", True), ("0.0.0.0", False), ("::", False), ("192.168.1.2", False),
        ("example.org", False), ("", False), ("localhost.example.org", False),
    ],
)  # fmt: skip
def test_loopback(host, is_own):
    assert is_loopback(host) == is_own


def test_a_port_that_is_taken():
    with (
        bind("127.0.0.1", 0) as taken,
        pytest.raises(UserError, match="choose another --port"),
    ):
        bind("127.0.0.1", taken.getsockname()[1])


def test_a_certificate_that_is_not_there(tmp_path):
    with bind("127.0.0.1", 0) as listening, pytest.raises(UserError, match="no such file"):
        serve(None, listening, (str(tmp_path / "x.pem"), str(tmp_path / "y.pem")))
