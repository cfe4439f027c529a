"""Tar files of clips (the shards of webdataset): clips are read at their places, none is unpacked.

Members with one key are a row: 000123.mp4, 000123.json (its columns) or 000123.txt (its caption).
A member's path is that of the tar file, a slash and its name: shards/000.tar/000123.mp4. A manifest
of any form may have such paths. Those of `embedded` are read alike.
"""

import functools
import glob
import mimetypes
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, NamedTuple

from ugc_jax import remote
from ugc_jax.data import embedded
from ugc_jax.data.prompt import KINDS
from ugc_jax.errors import UnreadableFile, UserError, environment_failure
from ugc_jax.media.find import VIDEO_SUFFIXES

SUFFIX = ".tar"
_READERS = 8  # tar files whose headers are read at a time
_BLOCK = 1 << 16  # bytes of a request for a header of a remote tar file
_MOST_TEXT = 1 << 24  # bytes of a .json or .txt
_PACKED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")


class Member(NamedTuple):
    """A file within a tar file, or an Arrow file. offset, size: bytes of its content."""

    tar: str
    offset: int
    size: int


class Sample(NamedTuple):
    """The members of one key. media: their names. text: of the .json or .txt, None without.

    is_json: which of both. fault: why it is no row, or "".
    """

    key: str
    media: list[str]
    text: str | None
    is_json: bool
    fault: str


class _Scan(NamedTuple):
    """What the headers of a tar file say.

    members: {name: (offset, size)}. texts: of .json and .txt, None for no text. twice: names that
    several members have. fault: what is wrong with the rest of the file, or "".
    """

    members: dict[str, tuple[int, int]]
    texts: dict[str, str | None]
    twice: set[str]
    fault: str


def is_tars(path: str) -> bool:
    """Whether a manifest's name is one of tar files: *.tar, shard-{000..127}.tar."""
    return path.lower().endswith((SUFFIX, *_PACKED))


def tars_in(folder: str) -> list[str]:
    """Return the tar files right in a local folder, sorted."""
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(SUFFIX))
    return [os.path.join(folder, name) for name in names]


def expand(path: str) -> list[str]:
    """Return the tar files of a name with {000..127}, * or ?, in order; local or a URL.

    Raises UserError if there is none, and for packed ones, whose clips have no places.
    """
    if path.lower().endswith(_PACKED):
        raise UserError(f"{path}: is packed, so that no clip can be read alone; unpack it to .tar")
    if part := _RANGE.search(path):
        first, last = part.groups()
        return [
            one
            for number in range(int(first), int(last) + 1)
            for one in expand(f"{path[: part.start()]}{number:0{len(first)}}{path[part.end() :]}")
        ]
    if not glob.has_magic(path) or (not remote.is_url(path) and os.path.exists(path)):
        return [path]
    if remote.is_url(path):
        fs = remote.file_system(path)
        found = remote.retried(lambda: fs.glob(path), path)
        start = f"{remote.protocol(path)}://"
        matches = [one if "://" in one else start + one.lstrip("/") for one in found]
    else:
        matches = glob.glob(path, recursive=True)
    if not matches:
        raise UserError(f"{path}: matches no file")
    return sorted(matches)


def samples(tars: Sequence[str]) -> Iterator[tuple[str, Sample]]:
    """Yield (tar file, sample) of each key, in the order of the files.

    Raises UserError for a file that is missing or no tar file. What is wrong with one member is
    told by its sample; a file that was cut off ends with a sample of its fault.
    """
    with ThreadPoolExecutor(_READERS, "read-tar") as pool:
        for tar, scan in zip(tars, pool.map(_scan, tars), strict=True):
            groups: dict[str, list[str]] = {}
            for name in scan.members:
                found = _KEY.fullmatch(name)
                if not os.path.basename(name).startswith("."):  # of the system
                    groups.setdefault(found[1] if found else name, []).append(name)
            for key, names in groups.items():
                yield tar, _sample(key, names, scan)
            if scan.fault:
                yield tar, Sample("", [], None, False, scan.fault)


def locate(path: str) -> Member | None:
    """Return where the content of a path is, if it is that of a member; None for any other path.

    The headers of each tar file are read once. Raises UnreadableFile for a tar file that cannot be
    read, UserError for a name that it does not have.
    """
    tar, name = split(path)
    if not tar:
        return None
    is_tar = tar.endswith(SUFFIX)
    place = _members(tar).get(name) if is_tar else embedded.place(name)
    if place is None:
        raise UserError(f"{path}: {tar} has no member of this name; check the name")
    return Member(tar, *place)


def split(path: str) -> tuple[str, str]:
    """Return (tar file, name) of a member's path; ("", path) of any other path.

    Also of (Arrow file, place).
    """
    for suffix in (SUFFIX, embedded.SUFFIX):
        head, found, name = path.partition(f"{suffix}/")
        tar = head + suffix
        if found and name and (remote.is_url(tar) or os.path.isfile(tar)):
            return tar, name
    return "", path


def copy(member: Member, target: str) -> None:
    """Write a member's content to a local file. Raises UnreadableFile."""
    if remote.is_url(member.tar):
        remote.fetch(member.tar, target, member.offset, member.size)
        return
    try:
        with open(member.tar, "rb") as file, open(target, "wb") as new:
            file.seek(member.offset)
            left = member.size
            while left and (part := file.read(min(left, 1 << 22))):
                new.write(part)
                left -= len(part)
    except OSError as error:
        fault = f"{member.tar}: cannot be read ({error.strerror or error}); copy it again"
        raise environment_failure(error, target) or UnreadableFile(fault) from None
    if left:
        raise UnreadableFile(f"{member.tar}: is cut off; copy it again")


def _sample(key: str, names: list[str], scan: _Scan) -> Sample:
    media = [name for name in names if _is_media(name)]
    said = [name for name in names if name in scan.texts]
    is_json = any(name.endswith(".json") for name in said)
    if is_json:  # a caption beside the columns is another tool's copy of one of them
        said = [name for name in said if name.endswith(".json")]
    fault = ""
    if twice := [name for name in names if name in scan.twice]:
        fault = f"{twice[0]} is there twice; give each a name of its own"
    elif not media:
        fault = f"there is no clip with {' and '.join(names)}; give both the same key"
    elif len(said) > 1:
        fault = f"has {' and '.join(said)}; keep one of them"
    elif said and scan.texts[said[0]] is None:
        fault = f"{said[0]} is not UTF-8 text of at most {_MOST_TEXT >> 20} MiB; write it again"
    return Sample(key, media, scan.texts[said[0]] if said and not fault else None, is_json, fault)


def _is_media(name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    kind = (mimetypes.guess_type(name)[0] or "").partition("/")[0]
    return suffix in VIDEO_SUFFIXES or kind in KINDS


@functools.cache
def _members(tar: str) -> dict[str, tuple[int, int]]:
    """Return {name: (offset, size)} of a tar file, as far as it can be read."""
    return _scan(tar).members


def _scan(tar: str) -> _Scan:
    if not remote.is_url(tar):
        try:
            with open(tar, "rb") as file:
                return _read_headers(tar, file, os.fstat(file.fileno()).st_size)
        except FileNotFoundError:
            raise UnreadableFile(f"{tar}: no such file; check its name") from None
        except OSError as error:
            fault = f"{tar}: cannot be read ({error.strerror or error}); copy it again"
            raise environment_failure(error) or UnreadableFile(fault) from None

    def read():
        fs = remote.file_system(tar)
        with fs.open(tar, "rb", block_size=_BLOCK, cache_type="readahead") as file:
            return _read_headers(tar, file, file.size)

    return remote.retried(read, tar)


def _read_headers(tar: str, file: IO[bytes], size: int) -> _Scan:
    members, texts, twice = scan = {}, {}, set()
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for one in archive:
                if not one.isreg() or one.issparse():
                    continue
                if one.offset_data + one.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                name = one.name.removeprefix("./")
                if name in members:
                    twice.add(name)
                members[name] = one.offset_data, one.size
                if name.endswith((".json", ".txt")):
                    texts[name] = _text(archive, one)
    except tarfile.ReadError as error:
        if not members:
            raise UserError(f"{tar}: is no tar file ({error}); write or copy it again") from None
        last = next(reversed(members))
        return _Scan(*scan, f"cannot be read behind {last} ({error}); copy it again")
    return _Scan(*scan, "")


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    if member.size > _MOST_TEXT:
        return None
    try:
        return archive.extractfile(member).read().decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
