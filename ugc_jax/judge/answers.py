"""The cache of a judge's answers, in memory and in a file, so that no question is asked twice."""

import json
import logging
from pathlib import Path

from ugc_jax import files
from ugc_jax.errors import UserError

logger = logging.getLogger(__name__)

# The rules by which `messages.final_object` tells a verdict. Raise it when they become stricter:
# answers that were read by other rules are asked again, as a file does not have the replies.
# 0.1.0 wrote no number: it took any object in a reply, such as a draft before the verdict.
RULES = 2


class Answers:
    """The key of a question -> the JSON object that answered it; kept in a file if a path is given.

    The file is JSON Lines, to which whole lines are appended: {"key", "answer", "rules",
    "tokens_in", "tokens_out"}. Lines that cannot be read are skipped, such as the incomplete last
    line of a run that was killed, and so are answers of other RULES.
    """

    def __init__(self, path: str | Path | None):
        """path: created at once, with its folder; None keeps answers in memory only.

        Raises UserError if the file cannot be read or written, or has lines but no answer.
        """
        self.path = None if path is None else Path(path)
        self._known: dict[str, str] = {}  # as JSON: a tenth of the objects' memory
        self._earlier: dict[str, tuple[int, int]] = {}  # tokens of answers of earlier processes
        self._file = None
        if self.path is not None:
            if self.path.exists():
                self._read()
            self._file = self._open()

    def get(self, key: str) -> dict | None:
        """The stored answer, or None."""
        text = self._known.get(key)
        return None if text is None else json.loads(text)

    def earlier(self, key: str) -> tuple[int, int]:
        """Tokens (in, out) that an earlier process spent on the answer; (0, 0) when asked again."""
        return self._earlier.pop(key, (0, 0))

    def put(self, key: str, answer: dict, tokens: tuple[int, int] = (0, 0)):
        """Store an answer; it is in the file when this returns. UserError if it cannot be written.

        tokens: (in, out), the sum over all attempts.
        """
        self._known[key] = json.dumps(answer, ensure_ascii=False)
        self._earlier.pop(key, None)
        if self._file is None:
            return
        row = {"key": key, "answer": answer, "rules": RULES}
        row |= {"tokens_in": tokens[0], "tokens_out": tokens[1]}
        try:
            self._file.write((json.dumps(row) + "\n").encode())
        except OSError as error:
            raise self._refused(error) from None

    def close(self):
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self):
        """The file, opened to append; unbuffered, so that a line is one write."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+b", buffering=0)
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # an incomplete line: begin a new one
                    file.write(b"\n")
        except OSError as error:
            raise self._refused(error) from None
        return file

    def _refused(self, error: OSError) -> UserError:
        return UserError(
            f"{self.path}: the judge's answers cannot be kept there ({error}); free disk space "
            "or choose another cache"
        )

    def _read(self):
        unreadable, earlier = 0, set()
        # surrogates, not �: a damaged answer is skipped, not taken for the judge's
        lines = files.read_lines(self.path, "name a file for the cache", errors="surrogateescape")
        for line in lines:
            try:
                line.text.encode()
                key, answer = line.value["key"], line.value["answer"]
                tokens = tuple(int(line.value.get(f"tokens_{way}", 0)) for way in ("in", "out"))
                if not isinstance(key, str) or not isinstance(answer, dict):
                    raise TypeError
            except (ValueError, LookupError, TypeError):
                unreadable += 1
            else:
                if line.value.get("rules") != RULES:
                    earlier.add(key)
                    continue
                self._known[key] = json.dumps(answer, ensure_ascii=False)
                self._earlier[key] = tokens
        if left := len(earlier - self._known.keys()):
            logger.warning(
                "%s: %d answers of a version that could take a draft for the judge's verdict are "
                "not used; they are asked again",
                self.path, left,
            )  # fmt: skip
        if unreadable and not self._known and not earlier:
            raise UserError(
                f"{self.path}: holds no answers of a judge; name another file for the cache, or "
                "delete it"
            )
        if unreadable:
            logger.warning("%s: %d unreadable lines passed over", self.path, unreadable)
