"""The exceptions that `cli` prints as a single line: a user's mistake, a broken environment."""

import errno
import mmap
import os
import re

from ugc_jax import extras

FULL_DISK = "free disk space, then run again to resume"
_LIBRARY = "install it, or install ugc_jax again"
_MEMORY = "out of memory", "free memory or lower workers or batch_size, then run again to resume"
_THREADS = (
    "no thread or process can be started",
    "free memory, raise the limit (ulimit -u) or lower workers",
)
_HANDLES = "too many open files", "raise the limit (ulimit -n 65536) or lower workers"
# What is wrong and the remedy. Not EIO: it may be of one bad file, which must not stop a long job.
_ERRNO = {
    errno.ENOMEM: _MEMORY,
    errno.ENOSPC: ("the disk is full", FULL_DISK),
    errno.EDQUOT: ("the disk quota is used up", FULL_DISK),
    errno.EROFS: ("the disk is read-only", "choose another place, or mount it for writing"),
    errno.EMFILE: _HANDLES,
    errno.ENFILE: _HANDLES,
    errno.EAGAIN: _THREADS,
}
_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class UserError(ValueError):
    """Bad input (a file, a field, a flag). The message is one line: where, what, and the remedy."""


class UnreadableFile(UserError):
    """A file could not be read, and its content is not known to be the reason.

    It may be missing or forbidden, or its reader failed: another try may succeed.
    """


class EnvironmentFailure(Exception):
    """The machine cannot do the work: no library, memory, disk space, file handles or threads.

    The message is one line: what is wrong, and the remedy. Not a UserError: code that takes a
    UserError for the fault of one clip and goes on lets this one pass, and the job stops.
    """


class OutOfMemory(EnvironmentFailure):
    """No memory, or none for a further thread; a limit of the process may be the reason."""


def has_memory(size: int) -> bool:
    """Return whether this process can have `size` bytes more; they are not touched."""
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, MemoryError):
        return False
    return True


def require_extra(extra: str, who: str):
    """Raise EnvironmentFailure, with the command that installs it, if an extra is incomplete.

    who: what needs it, such as the name of a job. Nothing is imported.
    """
    if absent := extras.missing(extra):
        rest = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise EnvironmentFailure(
            f"{who} needs {', '.join(absent[:3])}{rest}, not installed; {extras.command(extra)}"
        )


def environment_failure(error: BaseException, path=None) -> EnvironmentFailure | None:
    """Return the failure of the environment that is `error` or made it; None for any other error.

    Follows the exceptions that a traceback of `error` shows. path: the file to name; None: the one
    of an error of the disk.
    """
    cause = error
    while cause is not None:
        if isinstance(cause, EnvironmentFailure):
            return cause
        if (found := _diagnosis(cause)) is not None:
            what, remedy = found
            of_disk = isinstance(cause, OSError) and cause.errno in _OF_A_DISK
            place = path or (cause.filename if of_disk else None)
            kind = OutOfMemory if found in (_MEMORY, _THREADS) else EnvironmentFailure
            return kind(f"{f'{place}: ' if place else ''}{what}; {remedy}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def _diagnosis(error: BaseException) -> tuple[str, str] | None:
    """Return what is wrong and the remedy, or None if it is not the environment."""
    if isinstance(error, MemoryError):
        return _MEMORY
    if isinstance(error, OSError) and error.errno is not None:
        return _ERRNO.get(error.errno)
    if not isinstance(error, ImportError | OSError | RuntimeError):
        return None
    # The dynamic linker and libraries in C++ pass the system's message on, without its number.
    text = " ".join(str(error).split())
    for code, found in _ERRNO.items():
        if os.strerror(code) in text:
            return found
    if isinstance(error, ModuleNotFoundError) and (extra := extras.extra_of(error.name or "")):
        return f"the library {error.name} is not installed", extras.command(extra)
    if isinstance(error, ImportError):
        # Of fsspec: "Install s3fs to access S3"
        for name in re.findall(r"[iI]nstall (\w+)", text):
            if (extra := extras.extra_of(name)) and extras.missing(extra):
                return f"the library {name} is not installed", extras.command(extra)
        name = (error.name or "").partition(".")[0]
        return f"{f'the library {name}' if name else 'a library'} does not load ({text})", _LIBRARY
    if isinstance(error, OSError):
        missing = "cannot open shared object file" in text or "dlopen(" in text
        return (f"a library does not load ({text})", _LIBRARY) if missing else None
    return _THREADS if text == "can't start new thread" else None
