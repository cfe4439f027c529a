"""The journal of a run: what was asked and what came back, on disk before it counts.

JSON Lines, to which whole lines are appended:

    {"asked": KEY, "number": N}                   before a request is sent
    {"failed": KEY, "number": N, "reason": ..., "lost": ...}   it has no reply
    {"answered": KEY, "number": N, "clip", "stage", "sample", "teacher", "text", "version",
     "tokens", "cost", "fault"}                   its reply (one line)

A reply is on the disk (fsync) when `answered` returns, and only then it is counted. A request
without an end is one that was under way when the run was killed: whether it was answered, and
charged, is not known. It is asked again, and `unknown` counts it.
"""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

from ugc_jax import files
from ugc_jax.errors import UserError, environment_failure
from ugc_jax.label.teacher import Reply, Tokens


class Line(NamedTuple):
    """A reply that was kept. fault: None if it can be used."""

    text: str
    version: str
    tokens: Tokens
    cost: float
    fault: str | None


@dataclasses.dataclass
class Totals:
    """Counts over all runs that wrote a journal.

    requests: that were sent. answers: replies that can be used. useless: replies that cannot.
    unknown: requests that may have been answered and charged without a reply that was kept.
    """

    requests: int = 0
    answers: int = 0
    useless: int = 0
    failed: int = 0
    unknown: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0


class Journal:
    """The journal in a file; a context manager. Only one run may have it open."""

    def __init__(self, path: str | Path):
        """Read and continue the file; a half-written last line of a killed run is removed.

        Raises UserError if another run has it, or it is no journal.
        """
        self.path, self.totals = Path(path), Totals()
        self.versions: dict[str, str] = {}  # teacher -> the version that its replies name
        # What has an answer: (clip, stage, sample, teacher)
        self.stages: set[tuple[str, str, int, str]] = set()
        self._lines: dict[str, list[Line]] = {}
        self._open: dict[tuple[str, int], bool] = {}
        self._number = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b", buffering=0)
            self._lock()
            self._read()
        except OSError as error:
            raise self._refused(error) from None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_):
        self._file.close()

    def usable(self, key: str) -> Line | None:
        """Return the reply to a question that can be used, if there is one."""
        return next((line for line in self._lines.get(key, []) if line.fault is None), None)

    def useless(self, key: str) -> list[Line]:
        """Return the replies to a question that cannot be used."""
        return [line for line in self._lines.get(key, []) if line.fault is not None]

    @property
    def spent(self) -> float:
        """The cost of all replies so far."""
        return self.totals.cost

    @property
    def unknown(self) -> int:
        """Requests of which it is not known whether they were answered and charged."""
        return self.totals.unknown + len(self._open)

    def asked(self, key: str) -> int:
        """Note that a request is sent; returns its number."""
        self._number += 1
        self._write({"asked": key, "number": self._number})
        self._begin(key, self._number)
        return self._number

    def failed(self, key: str, number: int, reason: str, lost: bool):
        """Note that a request has no reply. lost: as of `teacher.Trouble`."""
        self._write({"failed": key, "number": number, "reason": reason, "lost": lost})
        self._fail(key, number, lost)

    def answered(
        self,
        key: str,
        number: int,
        where: tuple[str, str, int, str],
        reply: Reply,
        cost: float,
        fault: str | None,
    ):
        """Keep a reply; it is on the disk when this returns.

        where: clip, stage, sample and teacher. fault: why it cannot be used.
        """
        clip, stage, sample, teacher = where
        line = Line(reply.text, reply.version, reply.tokens, cost, fault)
        row = {"answered": key, "number": number, "clip": clip, "stage": stage}
        row |= {"sample": sample, "teacher": teacher, "text": reply.text, "version": reply.version}
        row |= {"tokens": list(reply.tokens), "cost": cost, "fault": fault}
        self._write(row)
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from None
        self._keep(key, number, where, line)

    # ---- the state that follows from the lines, the same while it is written and when it is read

    def _begin(self, key: str, number: int):
        self.totals.requests += 1
        self._open[key, number] = True

    def _fail(self, key: str, number: int, lost: bool):
        self._open.pop((key, number), None)
        self.totals.failed += 1
        self.totals.unknown += lost

    def _keep(self, key: str, number: int, where: tuple[str, str, int, str], line: Line):
        self._open.pop((key, number), None)
        self._lines.setdefault(key, []).append(line)
        self.versions.setdefault(where[3], line.version)
        if line.fault is None:
            self.stages.add(where)
        totals = self.totals
        totals.answers += line.fault is None
        totals.useless += line.fault is not None
        totals.tokens_in += line.tokens.given
        totals.tokens_out += line.tokens.made
        totals.cost += line.cost

    def _write(self, row: dict):
        """Append a whole line, or nothing."""
        line = memoryview((files.to_json(row) + "\n").encode())
        before = os.fstat(self._file.fileno()).st_size
        try:
            # On a disk that gets full, a write takes a part of the line, and the next one fails.
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(before)
            raise self._refused(error) from None

    def _read(self):
        text = files.read_text(self.path, "choose another output", errors="surrogateescape")
        whole, end, rest = text.rpartition("\n")
        if rest:  # the run was killed while it wrote
            self._file.truncate(len((whole + end).encode("utf-8", "surrogateescape")))
        for line in files.parse_lines(whole + end):
            row = line.value
            try:
                self._number = max(self._number, row["number"])
                if "asked" in row:
                    self._begin(row["asked"], row["number"])
                elif "failed" in row:
                    self._fail(row["failed"], row["number"], row["lost"])
                else:
                    tokens = Tokens(*row["tokens"])
                    kept = Line(row["text"], row["version"], tokens, row["cost"], row["fault"])
                    where = row["clip"], row["stage"], row.get("sample", 0), row["teacher"]
                    self._keep(row["answered"], row["number"], where, kept)
            except (KeyError, TypeError, AttributeError):
                raise UserError(
                    f"{self.path}:{line.number}: is no line of a journal; choose another output, "
                    "or remove the line (its answer is then asked again)"
                ) from None

    def _lock(self):
        try:
            import fcntl
        except ImportError:  # not on this system
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{self.path}: another run writes to it; wait for it, or choose another output"
            ) from None

    def _refused(self, error: OSError) -> Exception:
        fault = (
            f"{self.path}: answers cannot be kept there ({error}); free disk space and run "
            "again, or choose another output"
        )
        return environment_failure(error, self.path) or UserError(fault)
