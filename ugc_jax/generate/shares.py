"""Several processes that share the clips of a job and write one file of results.

They do not talk to each other, so that none waits for one that is dead: which clips are a process's
own follows from its number, and what it has done is in its part, a file of its own in a folder
beside the results. A part becomes lines of the results when its process ends or, if it was killed,
with the next start (results.py). That, and who writes a part, is settled by locks of the file
system (flock), which a killed process loses.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import jax

from ugc_jax.errors import UserError

logger = logging.getLogger(__name__)

LOCK_SECONDS = 120.0  # that a merge of another process may take
# Of launch scripts, where no cluster says them.
PROCESSES, PROCESS = "UGC_JAX_PROCESSES", "UGC_JAX_PROCESS"
_LOCK = "lock"


class Share(NamedTuple):
    """The clips of process `number` of `count` processes, 0 <= number < count."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}-of-{self.count}"

    def has(self, clip: str) -> bool:
        """Return whether a clip, by its path as given, is this process's."""
        digest = hashlib.sha256(clip.encode(errors="surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number

    def of(self, clips: Iterable[str]) -> list[str]:
        """Return those of `clips` that are this process's."""
        return [clip for clip in clips if self.has(clip)]


def find_share() -> Share:
    """Return this process's share, from the launcher that started it, as training finds it.

    Nothing is connected: `jax.distributed.initialize` would end all processes with one of them.
    Raises UserError if no launcher names the processes.
    """
    from jax._src import clusters  # what jax.distributed asks; jax has no public form of it

    found = local = None
    if PROCESSES in os.environ:
        with contextlib.suppress(ValueError):
            found = Share(int(os.environ.get(PROCESS, "")), int(os.environ[PROCESSES]))
        if found is None or not 0 <= found.number < found.count:
            raise _no_launcher(f"{PROCESS} is not a number below {PROCESSES}")
    try:
        for cluster in clusters.ClusterEnv._cluster_types:
            if found is None and not cluster.opt_in_only_method and cluster.is_env_present():
                found = Share(cluster.get_process_id(), cluster.get_process_count())
                local = cluster.get_local_process_id()
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise _no_launcher(str(error).partition("\n")[0] or type(error).__name__) from None
    if found is None:
        raise _no_launcher("no launcher has named them")
    # As of training: the GPUs that the launcher names, or else one for each process of a host.
    devices = os.environ.get("JAX_LOCAL_DEVICE_IDS") or local
    if devices is not None:
        for platform in ("cuda", "rocm"):
            jax.config.update(f"jax_{platform}_visible_devices", str(devices))
    return found


def _no_launcher(reason: str) -> UserError:
    return UserError(
        f"distributed: the other processes are not found ({reason}); start it with a script of "
        "launch/, or leave distributed out"
    )


class Parts:
    """The parts of the files of one run, in a folder that is there as long as any part is."""

    def __init__(self, folder: Path, share: Share | None):
        """share: of this process; None if it is the only one, and writes no part."""
        self.folder, self.share = folder, share
        self._held: IO | None = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from merging parts; within another `locked` it does nothing.

        Raises UserError if a process keeps the lock for LOCK_SECONDS.
        """
        if self._held is not None or (self.share is None and not self.folder.exists()):
            yield
            return
        with locked(self.folder / _LOCK, LOCK_SECONDS) as self._held:
            try:
                yield
            finally:
                self._held = None
                if os.listdir(self.folder) == [_LOCK]:  # a process that waits for it looks again
                    (self.folder / _LOCK).unlink()
                    self.folder.rmdir()

    def own(self, path: Path) -> Path:
        """Return this process's part of a file."""
        return self.folder / f"{path.name}.{self.share}"

    def of(self, path: Path) -> list[Path]:
        """Return all parts of a file that are there."""
        if not self.folder.exists():
            return []
        part = re.compile(re.escape(path.name) + r"\.\d+-of-\d+")
        return sorted(one for one in self.folder.iterdir() if part.fullmatch(one.name))

    def left(self, path: Path) -> list[Path]:
        """Return the parts that processes of earlier runs have left: to be merged.

        These are this process's own, and those of another number of processes. Of as many as now,
        each takes its own. Raises UserError if a process still writes one of them.
        """
        number = None if self.share is None else f"-of-{self.share.count}"
        parts = self.of(path)
        parts = [one for one in parts if number is None or not one.name.endswith(number)]
        if self.share is not None and self.own(path).exists():
            parts.append(self.own(path))
        for part in parts:
            if is_locked(part):
                raise UserError(
                    f"{part}: another process writes it; end that one, or choose another output"
                )
        return parts

    def open(self, path: Path) -> IO[str]:
        """Open this process's part of a file to append, as its only writer."""
        file = self.own(path).open("a", encoding="utf-8")
        _take(file)  # under `locked`, after `left` has seen that nobody has it
        return file


@contextlib.contextmanager
def locked(path: Path, seconds: float | None = None) -> Iterator[IO]:
    """Hold the lock of a file, which is created; waits for it `seconds`, None: for ever.

    Raises UserError if that is not enough, OSError if the file system has no locks.
    """
    start, told = time.monotonic(), False
    while True:
        with contextlib.suppress(FileNotFoundError):  # who held it has removed file or folder
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                if _take(file) and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    yield file
                    return
        waited = time.monotonic() - start
        if seconds is not None and waited > seconds:
            raise UserError(
                f"{path}: another process has kept it locked for {seconds:.0f} s; end that process "
                "if it is stopped, then run again to go on"
            )
        if waited > 5 and not told:
            told = True
            logger.info("%s: waiting for the process that has locked it", path)
        time.sleep(0.05)


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of an existing file."""
    with path.open("a") as file:
        return not _take(file)


def _take(file: IO) -> bool:
    """Take the lock of a file, until it is closed; return whether nobody has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
