"""ugc_jax.remote: what passes is tried again, what lasts is one line that names the file."""

import errno
import sys

import pytest
from fake_bucket import bucket  # noqa: F401 (fixture)
from fsspec.registry import _registry

from ugc_jax import files, remote
from ugc_jax.errors import EnvironmentFailure, UnreadableFile, UserError


class Answer(Exception):
    """An answer of a server, as clients raise it."""

    def __init__(self, status: int, text: str = "answer"):
        super().__init__(text)
        self.status = status


class NoCredentialsError(Exception):
    """As botocore names it."""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("gs://b/a.mp4", True), ("S3://b/a", True), ("memory://a", True), ("https://x.org/a", True),
        ("/data/a.mp4", False), ("a.mp4", False), ("file:///a.mp4", False), ("c:/a", False),
    ],
)  # fmt: skip
def test_urls(path, expected):
    assert remote.is_url(path) is expected


def test_a_path_of_etils_is_a_url_too():
    from etils import epath

    assert remote.is_url(epath.Path("gs://bucket/folder/a"))
    assert not remote.is_url(epath.Path("/tmp/a"))


@pytest.mark.parametrize(
    ("folder", "path", "expected"),
    [
        ("/data", "a/b.mp4", "/data/a/b.mp4"), ("/data", "/other/b.mp4", "/other/b.mp4"),
        ("gs://b/clips/", "a/b.mp4", "gs://b/clips/a/b.mp4"), ("gs://b", "/x.mp4", "/x.mp4"),
        ("/data", "s3://b/x.mp4", "s3://b/x.mp4"), ("gs://b", "s3://c/x.mp4", "s3://c/x.mp4"),
    ],
)  # fmt: skip
def test_paths_below_a_folder(folder, path, expected):
    assert remote.join(folder, path) == expected


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("reset"), TimeoutError("slow"), OSError(errno.EAGAIN, "busy"),
        OSError("s3 says: internal"), Answer(503), Answer(429), RuntimeError("broken pipe"),
    ],
)  # fmt: skip
def test_what_passes_is_tried_again_with_growing_pauses(error):
    errors, pauses = [error] * 3, []

    def read():
        if errors:
            raise errors.pop()
        return "content"

    assert remote.retried(read, "s3://b/a", pause=pauses.append) == "content"
    assert len(pauses) == 3
    for pause, expected in zip(pauses, (0.5, 1.0, 2.0), strict=True):
        assert 0.75 * expected <= pause <= 1.25 * expected


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (FileNotFoundError("s3"), UnreadableFile, "s3://b/a: no such file; check its name"),
        (Answer(404), UnreadableFile, "s3://b/a: no such file"),
        (OSError("An error occurred (NoSuchBucket)"), UnreadableFile, "cannot be read (An er"),
        (Answer(403, "Forbidden"), UnreadableFile, "access is refused (Forbidden); set AWS_"),
        (PermissionError("Access Denied"), UnreadableFile, "access is refused (Access Denied)"),
        (NoCredentialsError("Unable to locate credentials"), EnvironmentFailure,
         "s3://b/a: no valid credentials for s3:// (Unable to locate credentials); set AWS_"),
        (Answer(401, "Anonymous caller does not have access"), EnvironmentFailure, "no valid cred"),
        (OSError(errno.ENOSPC, "No space"), EnvironmentFailure, "the disk is full"),
        (UserError("a: is wrong; right it"), UserError, "a: is wrong; right it"),
    ],
)  # fmt: skip
def test_what_lasts_is_one_line_at_once(error, kind, line):
    def read():
        raise error

    def pause(_):
        raise AssertionError("it would not pass")

    with pytest.raises(kind) as caught:
        remote.retried(read, "s3://b/a", pause=pause)
    assert type(caught.value) is kind
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_does_not_pass_is_told_with_the_number_of_tries():
    pauses = []

    def read():
        raise ConnectionResetError("reset\nby peer")

    with pytest.raises(UnreadableFile) as caught:
        remote.retried(read, "gs://b/a", pause=pauses.append)
    assert str(caught.value) == (
        "gs://b/a: cannot be read after 6 tries (reset by peer); run again when it can be reached"
    )
    assert len(pauses) == remote.TRIES - 1


def test_a_fetch_goes_on_where_it_broke_off(bucket, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(remote, "_PART", 10)
    content = bytes(range(35))
    bucket.pipe_file("s3://b/a.bin", content)
    parts = []
    cat_file = type(bucket).cat_file

    def seen(self, path, start=None, end=None, **kwargs):
        parts.append((start, end))
        if parts.count((start, end)) == 1 and start == 20:
            raise ConnectionResetError
        return cat_file(self, path, start=start, end=end, **kwargs)

    monkeypatch.setattr(type(bucket), "cat_file", seen)
    remote.fetch("s3://b/a.bin", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == content
    assert parts == [(0, 10), (10, 20), (20, 30), (20, 30), (30, 35)]
    remote.fetch("s3://b/a.bin", tmp_path / "a", 5, 12)
    assert (tmp_path / "a").read_bytes() == content[5:17]
    with pytest.raises(UnreadableFile, match=r"s3://b/a.bin: .*after 6 tries \(it was cut off\)"):
        remote.fetch("s3://b/a.bin", tmp_path / "a", 30, 12)


def test_a_server_that_knows_no_ranges(bucket, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(remote, "_PART", 10)
    content = bytes(range(35))
    bucket.pipe_file("s3://b/a.bin", content)
    cat_file = type(bucket).cat_file
    monkeypatch.setattr(type(bucket), "cat_file", lambda self, path, **_: cat_file(self, path))
    remote.fetch("s3://b/a.bin", tmp_path / "a", 5, 25)
    assert (tmp_path / "a").read_bytes() == content[5:30]


def test_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(_registry, "gs", raising=False)
    with pytest.raises(EnvironmentFailure) as caught:
        remote.file_system("gs://b/a")
    line = "gs://b/a: the library for gs:// is not installed; pip install 'ugc_jax[gcs]'"
    assert str(caught.value) == line
    with pytest.raises(UserError, match="nope://a: Protocol not known: nope; give gs://, s3://"):
        remote.file_system("nope://a")
    assert remote.is_known("gs")
    assert not remote.is_known("nope")


def test_access_is_checked_by_several_files(bucket):  # noqa: F811
    bucket.pipe_file("s3://b/c", b"1")
    refused = PermissionError("Access Denied")
    bucket.faults |= {"info:b/a": [refused] * 2, "info:b/d": [refused]}
    remote.check_access(["s3://b/a", "s3://b/c"])  # one of them may be read
    remote.check_access(["s3://b/none"])
    with pytest.raises(EnvironmentFailure, match=r"s3://b/a: access is refused \(Access Denied\)"):
        remote.check_access(["s3://b/a", "s3://b/d"])


def test_small_files_are_read_with_further_tries(bucket):  # noqa: F811
    from etils import epath

    bucket.pipe_file("s3://b/a.json", b'{"a": 1}')
    bucket.faults["a.json"] = [ConnectionResetError("reset")] * 2
    assert files.read_json(epath.Path("s3://b/a.json"), "correct it") == {"a": 1}
    assert len(bucket.asked) == 3
    with pytest.raises(UnreadableFile, match="^s3://b/none: no such file; name another$"):
        files.read_bytes(epath.Path("s3://b/none"), "name another")


def test_any_fault_that_fsspec_calls_absence_is_tried_again():
    errors = [FileNotFoundError("http://x/a"), FileNotFoundError("http://x/a")]
    errors[0].__cause__ = Answer(503)
    errors[1].__cause__ = KeyError("a")  # as of a store in memory, or of botocore
    pauses = []

    def read():
        raise errors.pop(0)

    with pytest.raises(UnreadableFile, match="^http://x/a: no such file"):
        remote.retried(read, "http://x/a", pause=pauses.append)
    assert len(pauses) == 1
