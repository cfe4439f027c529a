"""A judge's answers, kept in memory and in a file, so that no question is asked twice."""

import json
import logging
from pathlib import Path

from ugc_jax.errors import UserError

logger = logging.getLogger(__name__)


class Answers:
    """Question's key -> the JSON object that answered it. With a path it outlives the process.

    The file is JSON Lines and only grows, by a whole line at a time. What a killed run left
    half-written at its end is passed over, as is any line that cannot be read.
    """

    def __init__(self, path: str | Path | None):
        """path: made with its folder when the first answer comes; None keeps answers in memory.

        Raises UserError if the file cannot be read.
        """
        self.path = None if path is None else Path(path)
        self._known: dict[str, str] = {}  # as JSON: a tenth of the objects' memory
        self._file = None
        if self.path is not None and self.path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> dict | None:
        """The answer on record, or None."""
        text = self._known.get(key)
        return None if text is None else json.loads(text)

    def put(self, key: str, answer: dict):
        """Record an answer; it is in the file when this returns. UserError if the disk refuses."""
        self._known[key] = json.dumps(answer, ensure_ascii=False)
        if self.path is None:
            return
        line = json.dumps({"key": key, "answer": answer}) + "\n"
        try:
            if self._file is None:
                self._file = self._open()
            self._file.write(line.encode())
        except OSError as error:
            raise UserError(
                f"{self.path}: the judge's answers cannot be kept there ({error}); free the disk "
                "or choose another cache"
            ) from None

    def close(self):
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self):
        """The file, to append to; unbuffered, so that a line is one write."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+b", buffering=0)
        if file.tell():
            file.seek(-1, 2)
            if (
                file.read(1) != b"\n"
            ):  # end the half-written line, so that the next one stands alone
                file.write(b"\n")
        return file

    def _read(self):
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be read ({error.strerror}); name a file for the cache"
            ) from None
        unreadable = 0
        for line in filter(bytes.strip, lines):
            try:
                row = json.loads(line)
                self._known[row["key"]] = json.dumps(row["answer"], ensure_ascii=False)
            except (ValueError, KeyError, TypeError):
                unreadable += 1
        if unreadable:
            logger.warning("%s: %d unreadable lines passed over", self.path, unreadable)
