"""removed.jsonl: the records and clips that were removed from a folder of records, and stay out.

One line a removal: {"id", "kind", "texts", "media", "files", "time"}. A record is known again by
its texts and its files, not by its line in the manifest, which may move; a clip by its path. The
list holds no text of the record. To take a removal back, delete its line and extract again.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from etils import epath

from ugc_jax import files
from ugc_jax.errors import UserError

REMOVED = "removed.jsonl"


class Removal(NamedTuple):
    """One line of removed.jsonl.

    id: of the record, or the path of the clip. kind: "record" or "clip". texts: digest of the
    record's texts; "" of a clip. media: paths as the records have them. files: the same, absolute.
    time: of the removal, ISO 8601.
    """

    id: str
    kind: str
    texts: str
    media: list[str]
    files: list[str]
    time: str

    def covers(self, messages: Sequence[dict], solution: str | None, media: Sequence[str]) -> bool:
        """Whether it is of a record with these texts and files."""
        if self.kind == "clip":
            return any(self._is_same(0, path) for path in media)
        return (
            len(media) == len(self.media)
            and all(self._is_same(number, path) for number, path in enumerate(media))
            and texts_digest(messages, solution) == self.texts
        )

    def _is_same(self, number: int, path: str) -> bool:
        return path == self.media[number] or _absolute(path) == self.files[number]


def removal(
    name: str,
    kind: str,
    media: list[str],
    messages: Sequence[dict] = (),
    solution: str | None = None,
) -> Removal:
    """Return the removal, now, of a record with these texts, or of the clip `name`."""
    texts = texts_digest(messages, solution) if kind == "record" else ""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Removal(name, kind, texts, media, [_absolute(path) for path in media], now)


def read_removals(directory: epath.Path) -> list[Removal]:
    """Return the removals of a folder. Raises UserError for a list that is not readable."""
    path = directory / REMOVED
    if not path.exists():
        return []
    remedy = "correct it: without it, removed clips would come back"
    found = []
    for line in files.read_lines(path, remedy):
        try:
            found.append(Removal(**line.value))
        except TypeError:
            raise UserError(f"{path}:{line.number}: is no removal; {remedy}") from None
    return found


def write_removals(directory: epath.Path, removals: Sequence[Removal]):
    """Write removed.jsonl."""
    text = files.to_lines(one._asdict() for one in removals)
    files.write_text(directory / REMOVED, text, errors="backslashreplace")


def texts_digest(messages: Sequence[dict], solution: str | None) -> str:
    """Return 16 hexadecimal digits of the roles and texts of messages, and of the solution."""
    texts = [
        (turn["role"], [turn["content"]] if isinstance(turn["content"], str) else _texts(turn))
        for turn in messages
    ]
    return hashlib.sha256(json.dumps([texts, solution]).encode()).hexdigest()[:16]


def _texts(turn: dict) -> list[str | None]:
    return [part.get("text") for part in turn["content"]]


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.realpath(path)
