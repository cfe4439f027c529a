"""Temporary folders that do not outlive their process, not even one that was killed."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path

_LOCK = ".lock"


class ScratchFolder:
    """A new folder for temporary files, removed by `close`, or else with the process.

    A process that is killed (SIGKILL) leaves it behind; the next ScratchFolder of this prefix and
    user removes it. What is in use is known by a lock, which the kernel lifts when its process
    ends: ids of processes are given to others.
    """

    def __init__(self, prefix: str):
        """prefix: of the folder's name, below the system's temporary folder. Raises OSError."""
        _remove_abandoned(prefix)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=prefix))
            lock = open(self.path / _LOCK, "wb")  # noqa: SIM115 - held until the end
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            if (self.path / _LOCK).exists():  # else it was taken for abandoned before it was locked
                break
            lock.close()
        self._end = weakref.finalize(self, _remove, self.path, lock)

    def close(self):
        """Remove the folder and what is in it."""
        self._end()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_):
        self.close()


def _remove(path: Path, lock):
    shutil.rmtree(path, ignore_errors=True)
    lock.close()


def _remove_abandoned(prefix: str):
    """Remove this user's folders whose processes have ended; those without a lock stay."""
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # it is gone, of another user, or in use
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            with open(path / _LOCK, "rb+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
