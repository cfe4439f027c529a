"""An object store in this process: s3:// as fsspec and etils see it, with faults on request."""

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry


class Bucket(MemoryFileSystem):
    """Files at s3://... faults: {part of a path: exceptions that its next reads raise}.

    asked: the paths of all reads of bytes, in order.
    """

    protocol = ("s3", "s3a")
    store, pseudo_dirs = {}, [""]
    faults: dict[str, list[Exception]] = {}
    asked: list[str] = []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).partition("://")[2] if "://" in path else path)

    def cat_file(self, path, version_id=None, start=None, end=None, **kwargs):  # as s3fs
        self.asked.append(self._strip_protocol(path))
        self._fail(path)
        return super().cat_file(path, start=start, end=end, **kwargs)

    def info(self, path, **kwargs):
        self._fail(path, "info:")
        return super().info(path, **kwargs)

    def ls(self, path, detail=True, **kwargs):
        self._fail(path, "ls:")
        return super().ls(path, detail, **kwargs)

    def _open(self, path, mode="rb", **kwargs):
        if "r" in mode:
            self.asked.append(self._strip_protocol(path))
            self._fail(path)
        return super()._open(path, mode, **kwargs)

    def _fail(self, path, kind: str = ""):
        for name, errors in self.faults.items():
            if name.startswith(kind) and name.removeprefix(kind) in str(path) and errors:
                raise errors.pop(0)


@pytest.fixture
def bucket(monkeypatch):
    """An empty `Bucket` behind s3://; pauses before further tries take no time."""
    from etils.epath import backend

    from ugc_jax import remote

    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    Bucket.faults.clear()
    Bucket.asked.clear()
    known = _registry.get("s3")
    fsspec.register_implementation("s3", Bucket, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.0)
    yield Bucket()
    backend.fsspec_backend._get_filesystem.cache_clear()
    if known is None:
        _registry.pop("s3", None)
    else:
        fsspec.register_implementation("s3", known, clobber=True)
