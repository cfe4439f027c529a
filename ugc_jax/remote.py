"""Files behind URLs (gs://, s3://, https:// and all that fsspec knows): fetched, and tried again.

What fails for a moment (a connection, a busy server) is tried again after growing pauses. What
lasts is one line that names the file. A library or credentials that are missing stop the job: they
are no file's fault. fsspec is imported when the first URL is met.
"""

import errno
import logging
import os
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ugc_jax import extras
from ugc_jax.errors import EnvironmentFailure, UnreadableFile, UserError, environment_failure

TRIES = 6  # of a read, in all
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 16.0  # seconds before a further try: 0.5, 1, 2, ... (and jitter)
_PART = 1 << 22  # bytes that are fetched at a time
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_LIBRARIES = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}  # protocol -> extra
_REFUSED = (401, 403)  # statuses of HTTP
_FOR_A_MOMENT = (408, 425, 429)  # these, and 500 and above
# gcsfs raises these with the status in the text alone: an OSError, a ValueError.
_OF_GCSFS = {"Forbidden: ": 403, "Bad Request: ": 400}
_NO_CREDENTIALS = re.compile(r"credential|invalid_grant|anonymous caller|not log", re.IGNORECASE)
_LASTING = (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError,
    NotImplementedError, ImportError, MemoryError, TypeError, AttributeError,
)  # fmt: skip

T = TypeVar("T")

# gcsfs and s3fs keep a folder's listing for as long as the process lives, and would not see what
# other processes write: the shards of other hosts, a request for a profile. etils, too, takes its
# file systems with what fsspec finds there.
for _name in ("gs", "s3"):
    os.environ.setdefault(f"FSSPEC_{_name.upper()}_USE_LISTINGS_CACHE", "false")
    if "fsspec" in sys.modules:  # it has read them before
        _conf = sys.modules["fsspec"].config.conf.setdefault(_name, {})
        _conf.setdefault("use_listings_cache", False)


def is_url(path: object) -> bool:
    """Whether a path is the URL of a remote file: gs://..., s3://..., https://..., memory://..."""
    return protocol(path) not in ("", "file", "local")


def protocol(path: object) -> str:
    """Return the protocol of a URL in small letters; "" for a path."""
    found = _URL.match(os.fspath(path) if isinstance(path, os.PathLike) else str(path))
    return found[1].lower() if found else ""


def is_known(name: str) -> bool:
    """Whether fsspec has a file system of a protocol; its library may not be installed."""
    import fsspec

    return name in fsspec.available_protocols()


def join(folder: str | os.PathLike, path: str) -> str:
    """Return a path below a folder, either of which may be a URL; an absolute path stays."""
    if is_url(path) or not is_url(folder):
        return path if is_url(path) else os.path.join(folder, path)
    return path if path.startswith("/") else f"{str(folder).rstrip('/')}/{path}"


def file_system(url: str):
    """Return fsspec's file system of a URL.

    Raises EnvironmentFailure, with the command that installs it, if its library is missing;
    UserError for a protocol that fsspec does not know.
    """
    import fsspec

    name = protocol(url)
    if _LIBRARIES.get(name) == "gcs" and not (log := logging.getLogger("gcsfs")).level:
        log.setLevel(logging.CRITICAL)  # it logs what it raises, with a traceback
    try:
        return fsspec.filesystem(name)
    except ImportError as error:
        remedy = f"install what it names ({' '.join(str(error).split()):.120})"
        if name in _LIBRARIES:
            remedy = extras.command(_LIBRARIES[name])
        raise EnvironmentFailure(
            f"{url}: the library for {name}:// is not installed; {remedy}"
        ) from None
    except ValueError as error:
        known = "give gs://, s3://, https:// or another that fsspec knows"
        raise UserError(f"{url}: {error!s:.120}; {known}") from None
    except Exception as error:  # credentials that do not load
        raise _lasting_failure(url, error) from None


def retried(
    read: Callable[[], T], url: object, *, pause: Callable[[float], None] | None = None
) -> T:
    """Return read(); tried again after pauses while it fails for a reason that may pass.

    url: of messages. pause: waits so many seconds; None: sleeps. Raises UnreadableFile that names
    the URL if it is absent, refused, or still fails at the last try; EnvironmentFailure without
    credentials and for what is wrong with this machine. An error of the user's passes unchanged.
    """
    for left in reversed(range(TRIES)):
        try:
            return read()
        except (UserError, EnvironmentFailure):
            raise
        except Exception as error:
            if is_lasting(error) or not left:
                raise _lasting_failure(url, error, 0 if is_lasting(error) else TRIES) from error
            wait = min(FIRST_PAUSE * 2 ** (TRIES - 1 - left), LONGEST_PAUSE)
            (pause or time.sleep)(wait * random.uniform(0.75, 1.25))
    raise AssertionError("unreachable")


def is_lasting(error: BaseException) -> bool:
    """Whether another try would fail alike: the file is absent or refused, the machine is full."""
    error = _root(error)
    if (status := _status(error)) is not None:
        return not (status in _FOR_A_MOMENT or status >= 500)
    if isinstance(error, _LASTING) or _lacks_credentials(error) or "NoSuchBucket" in str(error):
        return True
    # A full disk and the like; EAGAIN is of a socket here.
    failure = environment_failure(error)
    return failure is not None and getattr(error, "errno", None) != errno.EAGAIN


def size(url: str) -> int | None:
    """Return the bytes of a remote file; None if its server does not tell. Raises as `retried`."""
    found = retried(lambda: file_system(url).info(url).get("size"), url)
    return None if found is None else int(found)


def sizes(folder: str) -> dict[str, int]:
    """Return {name: bytes} of the files right in a remote folder. Raises as `retried`."""
    fs = file_system(folder)
    found = retried(lambda: fs.ls(folder, detail=True, refresh=True), folder)
    return {
        one["name"].rstrip("/").rpartition("/")[2]: int(one["size"] or 0)
        for one in found
        if one["type"] == "file"
    }


def read_bytes(url: str, start: int = 0, end: int | None = None) -> bytes:
    """Return the content of a remote file, or its bytes start:end. Raises as `retried`."""
    fs = file_system(url)
    return retried(lambda: fs.cat_file(url, start=start or None, end=end), url)


def fetch(url: str, target: str | os.PathLike, start: int = 0, size: int | None = None) -> None:
    """Store a remote file, or `size` bytes of it from `start` on, as a local file.

    A try goes on where the one before it broke off. Raises as `retried`; also if fewer bytes come
    than the server told.
    """
    fs = file_system(url)

    def read():
        length = size if size is not None else fs.info(url).get("size")
        with open(target, "ab") as file:
            if length is None:  # a server that tells no size: from the beginning, in one go
                file.truncate(0)
                file.write(fs.cat_file(url))
                return
            while (done := file.tell()) < length:
                first, last = start + done, min(start + done + _PART, start + length)
                part = fs.cat_file(url, start=first, end=last)
                if not part:
                    raise OSError("it was cut off")
                if len(part) > last - first:  # all of it, from a server that knows no ranges
                    part = part[first : start + length]
                file.write(part)

    Path(target).unlink(missing_ok=True)
    retried(read, url)


def check_access(urls: list[str]) -> None:
    """Raise EnvironmentFailure if none of some URLs of a bucket may be asked for.

    A file that is absent says that the bucket can be reached. Raises as `file_system`.
    """
    refusals = []
    for url in urls:
        try:
            size(url)
        except EnvironmentFailure:
            raise
        except UserError as error:
            if isinstance(error.__cause__, PermissionError) or _status(error.__cause__) in _REFUSED:
                refusals.append(str(error))
                continue
        return
    if refusals:
        raise EnvironmentFailure(refusals[0])


def _lasting_failure(url: object, error: BaseException, tries: int = 0) -> Exception:
    """Return what to raise for an error of a read that is not tried again."""
    error = _root(error)
    text = " ".join(str(error).split()) or type(error).__name__
    if _lacks_credentials(error):
        return EnvironmentFailure(
            f"{url}: no valid credentials for {protocol(url)}:// ({text:.160}); {_login(url)}"
        )
    if (failure := environment_failure(error)) is not None and is_lasting(error):
        return failure
    if isinstance(error, FileNotFoundError) or _status(error) in (404, 410):
        return UnreadableFile(f"{url}: no such file; check its name and bucket")
    if isinstance(error, PermissionError) or _status(error) in _REFUSED:
        return UnreadableFile(f"{url}: access is refused ({text:.160}); {_login(url)}")
    after = f" after {tries} tries" if tries else ""
    return UnreadableFile(
        f"{url}: cannot be read{after} ({text:.160}); run again when it can be reached"
    )


def _root(error: BaseException) -> BaseException:
    """Return the reason of a FileNotFoundError, which fsspec makes of any fault of a web server."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause is not None:
        is_of_server = _status(cause) is not None or type(cause).__module__.startswith("aiohttp")
        if is_of_server or isinstance(cause, ConnectionError | TimeoutError):
            return cause
    return error


def _login(url: object) -> str:
    return {
        "gcs": "log in with gcloud auth application-default login, or grant this account the right",
        "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, of an account",
    }.get(_LIBRARIES.get(protocol(url), ""), "give this machine the right to read it")


def _lacks_credentials(error: BaseException) -> bool:
    """Whether a client has no account to ask with; its libraries need not be installed here."""
    name = type(error).__name__
    if "Credential" in name or name in ("RefreshError", "TokenRetrievalError"):
        return True
    refused = isinstance(error, PermissionError) or _status(error) == 401
    return refused and _NO_CREDENTIALS.search(str(error)) is not None


def _status(error: BaseException | None) -> int | None:
    """Return the status of HTTP that an error of a client has, or None."""
    for name in ("status", "code", "status_code"):
        value = getattr(error, name, None)
        if isinstance(value, str) and value.isdigit():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600:
            return value
    if type(error) in (OSError, ValueError):
        return next((_OF_GCSFS[one] for one in _OF_GCSFS if str(error).startswith(one)), None)
    return None
