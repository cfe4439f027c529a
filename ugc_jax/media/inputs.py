"""What stands for a clip in a call: a file, a Clip, or a URL that is fetched while it is read."""

import contextlib
import dataclasses
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ugc_jax.errors import UnreadableFile, UserError, environment_failure
from ugc_jax.media.clip import probe
from ugc_jax.media.memory import Clip
from ugc_jax.media.presets import ClipSettings
from ugc_jax.media.timeline import Source

FETCH_SECONDS = 30.0  # without an answer, or without a byte
# Seconds: less than any frame lasts, and less than half a sample of sound.
JUST_BEFORE = 1e-7
_PART = 1 << 20  # bytes that are fetched at a time


class Remote(NamedTuple):
    """A file behind a URL (http, https). path: where it is while it is read. limit: most bytes.

    stays: it is not removed after it was read, and so not fetched again.
    """

    url: str
    path: str
    limit: int
    stays: bool = False


class Input(NamedTuple):
    """A clip. name: what messages and results call it. content: the path of a file, ...

    part: seconds at which the piece to use begins and ends, its end excluded (None: the end of the
    clip); None for the whole clip. A piece is read as a file of this piece would be.
    """

    name: str
    content: str | Clip | Remote
    part: tuple[float, float | None] | None = None

    def own_settings(self, settings: ClipSettings) -> ClipSettings:
        """Return the settings with which the clip is to be read: with start and end of its part."""
        if self.part is None:
            return settings
        start, end = self.part
        end = None if end is None else end - JUST_BEFORE
        return dataclasses.replace(settings, start=start, end=end)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Source]:
        """Probe the clip; a URL is fetched before, and its file is gone after the block.

        Errors of the block have the clip's name where its content has another. Raises as `probe`,
        and UnreadableFile for what cannot be fetched.
        """
        is_cut = self.part is not None
        try:
            if isinstance(self.content, Remote):
                with fetched(self.content) as path:
                    yield probe(path)._replace(is_cut=is_cut)
            elif isinstance(self.content, Clip):
                yield probe(self.content)._replace(path=self.name, is_cut=is_cut)
            else:
                yield probe(self.content)._replace(is_cut=is_cut)
        except UserError as error:
            raise self.renamed(error) from None

    def to_be_read_again(self) -> "Input":
        """Return the clip for a first reading: what is fetched then stays for a second one."""
        is_remote = isinstance(self.content, Remote)
        return self._replace(content=self.content._replace(stays=True)) if is_remote else self

    def renamed(self, error: UserError) -> UserError:
        """Return an error about the content, with the clip's name."""
        path = self.content.path if isinstance(self.content, Remote) else self.content
        if not isinstance(path, str) or path == self.name:
            return error
        return type(error)(str(error).replace(path, self.name))


def measure(given: Input) -> tuple[str, float]:
    """Return a clip's kind ("video", "image" or "audio") and seconds, of picture if it has some.

    What is fetched stays (`to_be_read_again`). Raises as `Input.opened`.
    """
    with given.to_be_read_again().opened() as source:
        return source.kind, source.seconds


@contextlib.contextmanager
def fetched(remote: Remote) -> Iterator[str]:
    """Store a file behind a URL, unless it stayed there; yields its path, and removes it.

    Raises UnreadableFile if it cannot be fetched, UserError if it is larger than the limit.
    """
    path = Path(remote.path)
    # A reader that is killed meanwhile leaves no part of a file under the file's name.
    part = path.with_suffix(".part")
    try:
        try:
            if not path.exists():
                _fetch(remote, part)
                part.rename(path)
        except (OSError, ValueError, urllib.error.URLError) as error:
            if isinstance(error, UserError):
                raise
            if (failure := environment_failure(error, path)) is not None:
                raise failure from None
            reason = " ".join(str(getattr(error, "reason", None) or error).split())
            raise UnreadableFile(
                f"{remote.url}: cannot be fetched ({reason:.200}); check the address"
            ) from None
        yield str(path)
    finally:
        part.unlink(missing_ok=True)
        if not remote.stays:
            path.unlink(missing_ok=True)


def _fetch(remote: Remote, path: Path):
    # Only these: the library's usual opener also takes files and FTP, to which a server could send.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    request = urllib.request.Request(remote.url, headers={"User-Agent": "ugc_jax"})
    with opener.open(request, timeout=FETCH_SECONDS) as answer, path.open("wb") as file:
        size = int(answer.headers.get("Content-Length") or 0)
        while size <= remote.limit and (part := answer.read(_PART)):
            file.write(part)
            size = max(size, file.tell())
    if size > remote.limit:
        raise UserError(
            f"{remote.url}: has more than {remote.limit} bytes; raise url_bytes, or download it"
        )
    if path.stat().st_size < size:
        raise UnreadableFile(f"{remote.url}: was cut off while it was fetched; try it again")
