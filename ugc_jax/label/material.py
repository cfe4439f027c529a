"""What a teacher gets of a clip: sound, picture, both, stills. Worker processes read it."""

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

from ugc_jax.data.workers import allow
from ugc_jax.errors import UserError
from ugc_jax.media.clip import Source, probe
from ugc_jax.media.streams import Part, picture_part, sound_part, stills, whole_part


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to read of a clip. stills: pictures of `side` pixels; 0: the video itself."""

    stills: int = 0
    side: int = 0


_SUFFIXES = {"audio/wav": ".wav", "video/mp4": ".mp4", "video/x-matroska": ".mkv"}


class Material(NamedTuple):
    """digest: of the file's bytes. seconds: of the clip. sound, picture, both: None without it.

    stills: of the picture, where a teacher takes no video.
    """

    digest: str
    seconds: float
    sound: Part | None
    picture: Part | None
    both: Part | None
    stills: tuple[Part, ...] = ()


class Length(NamedTuple):
    """What an estimate needs of a clip: seconds of sound and picture, 0 without, and the digest."""

    digest: str
    sound: float
    picture: float


def measure(path: str) -> Length:
    """Return the lengths of a clip. Raises UserError as `read`."""
    source = _probe(path)
    return Length(digest_of(path), source.audio_seconds if source.has_audio else 0, source.seconds)


def read(path: str, wanted: Wanted) -> Material:
    """Return the parts of a clip. Raises UserError for one that cannot be read, or is an image."""
    source = _probe(path)
    allow(source.length)
    sound = sound_part(source)
    picture = picture_part(source)
    if picture is None:
        return Material(digest_of(path), source.length, sound, None, sound)
    pictures = tuple(stills(source, wanted.stills, wanted.side)) if wanted.stills else ()
    both = picture if sound is None else whole_part(source)
    return Material(digest_of(path), source.length, sound, picture, both, pictures)


def _probe(path: str) -> Source:
    source = probe(path)
    if source.kind == "image":
        raise UserError(f"{path}: is an image, without time or sound; name a video")
    return source


def digest_of(path: str) -> str:
    """Return 32 hexadecimal digits of a file's bytes: the same for its copies."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def write_part(path: Path, part: Part) -> Path:
    """Write a part into a file that has the path with the suffix of its kind; return that."""
    path = path.with_suffix(_SUFFIXES[part.kind])
    path.write_bytes(part.data)
    return path
