"""The arguments of a call -> the clips and what each is asked.

videos               -> Input, ...        files, folders, globs, URLs, bytes, open files, Clips
question, messages   -> Question, ...     one for all, or of each clip by its name or its place
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ugc_jax.data.forms import read_columns
from ugc_jax.data.prompt import KINDS, media_kinds
from ugc_jax.data.reading import Question
from ugc_jax.data.records import is_records
from ugc_jax.errors import UserError, environment_failure
from ugc_jax.media.find import find_clips
from ugc_jax.media.inputs import Input, Remote
from ugc_jax.media.memory import Clip
from ugc_jax.scratch import ScratchFolder

Video = str | os.PathLike | bytes | IO[bytes] | Clip
_URL = re.compile(r"https?://", re.IGNORECASE)
_TAG = re.compile(f"<({'|'.join(KINDS)})>")
_EXPECTED = "a path, a URL, bytes, a file open for reading bytes, or a Clip"


class Inputs:
    """The clips of a call, and the temporary files of those that are no files."""

    def __init__(self, videos: Video | Iterable[Video], urls: bool, url_bytes: int):
        """Raises TypeError for what is no clip; UserError for a folder or a pattern without one,
        and for a URL unless `urls`."""
        self._folder: ScratchFolder | None = None
        self._count = 0  # files in it so far
        self._urls, self._limit = urls, url_bytes
        alone = isinstance(videos, str | os.PathLike | bytes | bytearray | memoryview | Clip)
        if not (alone or hasattr(videos, "read")):
            if not isinstance(videos, Iterable) or isinstance(videos, Mapping):
                raise TypeError(f"videos: expected {_EXPECTED}, or several, got {videos!r:.60}")
        else:
            videos = [videos]
        self.clips: list[Input] = []
        try:
            for number, video in enumerate(videos):
                self.clips += self._inputs_of(video, f"videos[{number}]")
        except BaseException:
            self.close()
            raise

    def close(self):
        """Remove the temporary files."""
        if self._folder is not None:
            self._folder.close()

    def _inputs_of(self, video: Video, name: str) -> list[Input]:
        """The clips that one argument names; `name` is that of one without any."""
        match video:
            case str() if _URL.match(video):
                if not self._urls:
                    raise UserError(f"{video}: is a URL; set urls=True to fetch it, or download it")
                return [Input(video, Remote(video, self._place(), self._limit))]
            case str() | os.PathLike():
                path = os.fspath(video)
                if isinstance(path, str):
                    if is_records(path):
                        raise UserError(
                            f"{path}: holds extracted records; caption them by: ugc-jax caption "
                            f"{path}"
                        )
                    return [Input(clip, clip) for clip in find_clips([path])]
            case bytes() | bytearray() | memoryview():
                return [Input(name, self._store(name, lambda file: file.write(video)))]
            case Clip():
                return [Input(video.name or name, video)]
            case _ if callable(getattr(video, "read", None)):
                own = getattr(video, "name", None)
                name = own if isinstance(own, str) else name
                return [Input(name, self._store(name, lambda file: _copy(video, file, name)))]
        raise TypeError(f"{name}: expected {_EXPECTED}, got {video!r:.60}")

    def _place(self) -> str:
        """The path of a new temporary file."""
        if self._folder is None:
            self._folder = ScratchFolder("ugc_jax-clips-")
        self._count += 1
        return str(self._folder.path / str(self._count))

    def _store(self, name: str, write) -> str:
        """The path of a temporary file that `write` fills."""
        path = self._place()
        try:
            with open(path, "wb") as file:
                write(file)
        except (OSError, ValueError) as error:  # ValueError: the file is closed
            fault = f"{name}: cannot be read or stored ({error}); give the path of a file"
            raise environment_failure(error, path) or UserError(fault) from None
        return path


def _copy(source: IO[bytes], file: IO[bytes], name: str):
    part = None
    while part is None or part:
        part = source.read(1 << 20)
        if not isinstance(part, bytes | bytearray | memoryview):
            raise TypeError(f"{name}: is open for reading text; open it with mode 'rb'")
        file.write(part)


def questions_of(
    clips: Sequence[Input], question: str, questions: Any, messages: Any, system: str
) -> list[Question]:
    """Return what each clip is asked.

    question, system: where a clip has no own one. questions: {name of a clip: its question}, or a
    list with one for each clip; messages: the same, of lists of chat messages. Each may be None.
    Raises TypeError for values of other types, UserError for names that are no clip's, for lists of
    another length, and for messages that cannot be asked.
    """
    if questions is not None and messages is not None:
        raise UserError("question and messages are both given; write the questions into messages")
    if questions is not None:
        found = _each(clips, questions, "question")
        for clip, one in zip(clips, found, strict=True):
            if not isinstance(one, str | None):
                raise TypeError(f"question: expected a text for {clip.name}, got {one!r:.60}")
        return [question if one is None else one for one in found]
    if messages is None:
        return [question] * len(clips)
    found = _each(clips, messages, "messages")
    return [
        question
        if one is None
        else _check_messages(one, f"messages of {clip.name}", question, system)
        for clip, one in zip(clips, found, strict=True)
    ]


def _each(clips: Sequence[Input], given, what: str) -> list:
    """What is given for each clip, None where a mapping has nothing."""
    if isinstance(given, Mapping):
        by_name = {_key(key, what): value for key, value in given.items()}
        for key in by_name.keys() - {clip.name for clip in clips}:
            raise UserError(f"{what}: {key} is none of the clips; give their names as in results")
        return [by_name.get(clip.name) for clip in clips]
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise TypeError(f"{what}: expected a dict by clip or a list, got {given!r:.60}")
    if len(given) != len(clips):
        raise UserError(f"{what}: there are {len(given)} for {len(clips)} clips; give one for each")
    return list(given)


def _key(key, what: str) -> str:
    if not isinstance(key, str | Path):
        raise TypeError(f"{what}: expected names of clips as keys, got {key!r:.60}")
    return str(key)


def _check_messages(messages, place: str, question: str, system: str) -> list[dict]:
    """Return messages with a system message and one medium, as a row of a manifest has them."""
    if not isinstance(messages, list | tuple) or not all(isinstance(m, Mapping) for m in messages):
        raise TypeError(f"{place}: expected a list of dicts, got {messages!r:.60}")
    try:
        plain = json.loads(json.dumps([dict(message) for message in messages]))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{place}: {error}; give what JSON can hold") from None
    try:
        read = read_columns({"messages": plain, f"{_kind(plain)}s": ["the clip"]}, question, system)
        kinds = media_kinds(read.messages)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
    if len(kinds) != 1:
        raise UserError(f"{place}: has {len(kinds)} places for the one clip; keep one")
    if read.messages[-1]["role"] != "user":
        raise UserError(f"{place}: ends with an answer; end with what the user asks")
    return read.messages


def _kind(messages: list[dict]) -> str:
    """The kind of medium for which a user's message has the first place; "video" without any."""
    for message in messages:
        content = message.get("content") if message.get("role") == "user" else ()
        parts = [{"text": content}] if isinstance(content, str) else content
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict) and (kind := _kind_of_part(part)):
                return kind
    return "video"


def _kind_of_part(part: dict) -> str | None:
    """The kind of medium that a part is, or for which its text has the first place."""
    for kind, keys in KINDS.items():
        if part.get("type") in (kind, f"{kind}_url") or any(key in part for key in keys):
            return kind
    tag = _TAG.search(part["text"]) if isinstance(part.get("text"), str) else None
    return tag and tag[1]
