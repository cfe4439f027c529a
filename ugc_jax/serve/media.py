"""Content parts -> files that workers read: from data URLs, local files of one folder, and URLs."""

import base64
import binascii
import os
import re
import threading
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from ugc_jax.errors import UserError
from ugc_jax.serve.addresses import Fetching
from ugc_jax.serve.protocol import Chat, Refusal, of_user, one_line

# The kind of file (`media.timeline.Source.kind`) that a type of part may hold.
KINDS = {
    "image_url": ("image",),
    "video_url": ("video", "image", "audio"),
    "input_audio": ("audio",),
    "audio_url": ("audio", "video"),
}
FORMATS = ("wav", "mp3", "flac", "ogg", "opus", "aac", "m4a", "mp4", "aiff", "webm")


class Medium(NamedTuple):
    """A medium of a request. name: of its field, for messages. type: of its part.

    source: its URL, or the base64 of its bytes.
    """

    name: str
    type: str
    source: str


def media_of(chat: Chat) -> list[Medium]:
    """Return the media of a request in order. Raises Refusal for an unknown format of sound."""
    found = []
    for m, message in enumerate(chat.messages):
        for p, part in enumerate(message.content if isinstance(message.content, list) else ()):
            name = f"messages[{m}].content[{p}].{part.type}"
            if part.type == "input_audio":
                if part.input_audio.format.lower() not in FORMATS:
                    raise Refusal(
                        400, f"{name}.format: use one of {', '.join(FORMATS)}",
                        param=f"{name}.format", code="invalid_value",
                    )  # fmt: skip
                found.append(Medium(name, part.type, part.input_audio.data))
            elif part.type != "text":
                found.append(Medium(name, part.type, getattr(part, part.type).url))
    return found


class Store(NamedTuple):
    """Where media come from. root: the folder of local files; None: none are read.

    fetching: None: nothing is fetched.
    """

    root: Path | None = None
    fetching: Fetching | None = None

    def file(self, medium: Medium, folder: Path, number: int, gone: threading.Event) -> Path:
        """Return the file of a medium; it is written into the folder unless it is local. Blocks.

        Raises Refusal (400) naming the field; addresses.Gone after `gone` is set.
        """
        try:
            if medium.type == "input_audio":
                return _write(medium.source, folder, number)
            scheme = medium.source.partition(":")[0].lower()
            if scheme == "data":
                return _write(_data(medium.source), folder, number)
            if scheme == "file":
                return self._local(medium.source)
            if scheme not in ("http", "https"):
                raise UserError("not a URL; give one that begins with data:, https:// or file://")
            if self.fetching is None:
                raise UserError("this server fetches no URLs; send the file as a data URL")
            target = folder / str(number)
            self.fetching.fetch(medium.source, target, gone)
            return target
        except UserError as error:
            message = UserError(f"{medium.name}: {error}")
            raise of_user(message, medium.name) from None

    def _local(self, url: str) -> Path:
        """Return the real path of a file below the root; no link leads out of it."""
        if self.root is None:
            raise UserError("this server reads no local files; send the file as a data URL")
        outside = UserError("there is no such file below the server's media_root")
        try:
            parts = urlsplit(url)
            path = unquote(parts.path, errors="surrogateescape")
        except ValueError:
            raise outside from None
        if parts.netloc not in ("", "localhost") or "\0" in path or ".." in Path(path).parts:
            raise outside
        root = Path(os.path.realpath(self.root))
        real = Path(os.path.realpath(path if os.path.isabs(path) else root / path))
        if not real.is_relative_to(root) or not real.is_file():
            raise outside
        return real


def is_fetched(medium: Medium) -> bool:
    """Return whether a medium comes from another server."""
    return medium.type != "input_audio" and medium.source[:5].lower().startswith("http")


def _data(url: str) -> str:
    """Return the base64 of a data URL."""
    head, comma, data = url.partition(",")
    if not comma or not head.lower().rstrip().endswith(";base64"):
        raise UserError("a data URL has to be written data:TYPE;base64,DATA")
    return unquote(data) if "%" in data else data


def _write(data: str, folder: Path, number: int) -> Path:
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("its base64 is broken; encode the file again") from None
    if not content:
        raise UserError("it is empty")
    target = folder / str(number)
    target.write_bytes(content)
    return target


def refusal_of(error: UserError, media: list[Medium], files: list[Path]) -> Refusal:
    """Return the refusal of a medium that cannot be read; its field stands for the file's path."""
    text, param = str(error), None
    for medium, path in zip(media, files, strict=True):
        if re.search(whole := rf"{re.escape(str(path))}(?!\w)", text):  # .../1 is not in .../10
            text, param = re.sub(whole, lambda _, name=medium.name: name, text), medium.name
            break
    return of_user(UserError(one_line(text)), param)
