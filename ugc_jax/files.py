"""Reading and atomic writing of small files: text, JSON and JSON Lines.

A path is local, or remote (gs://...) if it is an `epath.Path` of etils; what a remote read fails at
for a moment is tried again (`remote`). Errors of the disk or in
the content become a UserError: "PATH: what is wrong (reason); remedy". A full disk and the like are
not the file's: EnvironmentFailure.
"""

import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ugc_jax import remote
from ugc_jax.errors import FULL_DISK, UnreadableFile, UserError, environment_failure


class JsonLine(NamedTuple):
    """One line of a JSON Lines file that is not blank.

    number: from 1. text: of the line, without its end. value: its content, or None if it is not
    JSON, with the reason in `error`. whole: false for a last line without an end, which an
    interrupted writer may have left incomplete.
    """

    number: int
    text: str
    value: Any
    error: str | None
    whole: bool


def read_bytes(path, remedy: str) -> bytes:
    """Return the content of a file. remedy: ends messages, as in "name a .jsonl manifest".

    Raises UnreadableFile (a UserError) if it is absent or unreadable.
    """
    if remote.is_url(path):
        try:
            return remote.retried(path.read_bytes, path)
        except UnreadableFile as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise UnreadableFile(f"{path}: no such file; {remedy}") from None
            raise
    try:
        if _is_device(_local(path)):  # /dev/zero and /dev/full have no end
            raise UnreadableFile(f"{path}: is a device; {remedy}")
        return _local(path).read_bytes()
    except FileNotFoundError:
        raise UnreadableFile(f"{path}: no such file; {remedy}") from None
    except OSError as error:
        fault = f"{path}: cannot be read ({error.strerror or error}); {remedy}"
        raise environment_failure(error, path) or UnreadableFile(fault) from None


def read_text(path, remedy: str, *, encoding: str = "utf-8-sig", errors: str = "strict") -> str:
    """Return the text of a file, without a byte order mark and with its line ends.

    errors: as of bytes.decode. Raises UserError as `read_bytes`, and if the file is not text.
    """
    raw = read_bytes(path, remedy)
    try:
        return raw.decode(encoding, errors)
    except UnicodeDecodeError:
        raise UserError(f"{path}: cannot be read (not UTF-8 text); {remedy}") from None


def read_json(
    path, remedy: str, kind: type | tuple[type, ...] = dict, *, object_pairs_hook=None
) -> Any:
    """Return the content of a JSON file of type `kind` (dict: a JSON object; object: anything).

    object_pairs_hook: as of json.loads. Raises UserError as `read_text`, and if the file is not
    JSON or of another type.
    """
    text = read_text(path, remedy)
    try:
        content = json.loads(text, object_pairs_hook=object_pairs_hook)
    except UserError:  # from the hook
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); {remedy}") from None
    if not isinstance(content, kind):
        expected = "a JSON object" if kind is dict else f"JSON of {kind}"
        raise UserError(f"{path}: expected {expected}, got {type(content).__name__}; {remedy}")
    return content


def read_lines(path, remedy: str, *, errors: str = "strict") -> Iterator[JsonLine]:
    """Return the lines of a JSON Lines file, each parsed alone. Raises UserError as `read_text`."""
    return parse_lines(read_text(path, remedy, errors=errors))


def parse_lines(text: str, *, object_pairs_hook=None) -> Iterator[JsonLine]:
    """Yield the lines of JSON Lines that are not blank. Only "\\n" ends a line; U+2028 is text.

    object_pairs_hook: as of json.loads.
    """
    *lines, tail = text.split("\n")
    for number, line in enumerate([*lines, tail], 1):
        if not line.strip():
            continue
        value, error = None, None
        try:
            value = json.loads(line, object_pairs_hook=object_pairs_hook)
        except (ValueError, RecursionError) as failure:
            error = str(failure)
        yield JsonLine(number, line, value, error, number <= len(lines))


def write_text(
    path, text: str, remedy: str = FULL_DISK, *, errors: str = "strict", sync: bool = False
):
    """Write a UTF-8 file atomically, and create its folder; a device is written to, and stays one.

    sync: a local file is on the disk when this returns, also if the machine fails then.
    Raises UserError if that fails, EnvironmentFailure if the disk is full; then an existing file
    stays unchanged.
    """
    path = _local(path)
    with replaced(path, remedy) as new:
        if _is_device(path):  # as root, a rename would put a file in its place
            path.write_bytes(text.encode("utf-8", errors))
            return
        new.write_bytes(text.encode("utf-8", errors))
        if sync:
            with new.open("rb+") as file:
                os.fsync(file.fileno())


@contextlib.contextmanager
def replaced(path, remedy: str = FULL_DISK):
    """Yield a path beside `path`, whose folder is created; a file written there takes its place.

    Raises UserError if that fails, EnvironmentFailure if the disk is full; then an existing file
    stays unchanged. Without a file there at the end, nothing happens.
    """
    # Processes of several machines may write the same file, and may have the same number.
    new = path.parent / f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.new"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield new
            if new.exists():
                new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        fault = f"{path}: cannot be written ({error}); {remedy}"
        raise environment_failure(error, path) or UserError(fault) from None


def write_json(path, content: Any, remedy: str = FULL_DISK, *, indent: int | None = 1):
    """Write JSON as `write_text` does. ValueError for NaN, which is not standard JSON."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n", remedy, errors="backslashreplace")


def to_lines(rows) -> str:
    """Return rows as JSON Lines."""
    return "".join(to_json(row) + "\n" for row in rows)


def to_json(value) -> str:
    """Return a value as one line of JSON that UTF-8 can encode (see `escaped`)."""
    return escaped(json.dumps(value, ensure_ascii=False))


def escaped(text: str) -> str:
    r"""Return text with its lone surrogates as escapes, which are also those of JSON.

    The name of a file may have bytes that are not UTF-8. Python reads the byte E9 as the surrogate
    U+DCE9, which cannot be written as UTF-8; as \udce9 in JSON it is read back as that byte.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def encodable(text: str) -> str:
    """Return text with � for halves of surrogate pairs, which JSON can have but UTF-8 cannot."""
    return re.sub("[\ud800-\udfff]", "�", text)


def _local(path):
    """The path, a local one if given as text."""
    return Path(path) if isinstance(path, str) else path


def _is_device(path) -> bool:
    return isinstance(path, Path) and path.is_char_device()
