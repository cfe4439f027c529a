"""The hub of a distributed run: what its processes report, and the verdict that one is lost.

    process -> hub   {"process", "name", "token"}, then every second {"count", "what", "age",
                     "allowed"}; last {"done"} or a Fault
    hub -> process   every second {"alive"}; last {"end"}, or {"verdict", "status"}

JSON, one object a line. All processes of a run make the same steps, so the one with the fewest
points behind it is the one that the others wait for.
"""

import contextlib
import json
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

BEAT = 1.0  # seconds between two reports
RESTART = 75  # exit status (EX_TEMPFAIL): the run goes on when it is started again
DIED, FAILED, SILENT = 1.0, 1.0, 5.0  # seconds in which a graver fault of another may be seen
_LONGEST = 1 << 16  # bytes of a line


class Report(NamedTuple):
    """How far a process is.

    count: points that it has passed. what: it does, as "step 12". age: seconds since the last
    point. allowed: seconds that the next one may take.
    """

    count: int
    what: str
    age: float
    allowed: float


class Verdict(NamedTuple):
    """Why all processes end. text: one line. status: their exit status."""

    text: str
    status: int = RESTART


class Fault(NamedTuple):
    """An exception that ended the work of a process.

    what: the work, as of a Report. lost: it may come of another process that was lost: collective
    operations fail then.
    """

    text: str
    what: str
    lost: bool
    status: int


class _Member:
    def __init__(self, name: str, now: float):
        self.name, self.heard = name, now
        self.report, self.since = Report(0, "the start", 0.0, float("inf")), now
        self.fault: Fault | None = None
        self.closed: float | None = None  # when its connection ended
        self.faulted: float | None = None
        self.done = False


class Members:
    """The processes of a run; `verdict` says whether one is lost. Times are of one clock."""

    def __init__(self, total: int, silence: float):
        """silence: seconds without a report after which a process is lost."""
        self._total, self._silence = total, silence
        self._members: dict[int, _Member] = {}
        self._first: float | None = None

    def join(self, process: int, name: str, now: float):
        """A process has connected. name: of its machine and its id there."""
        self._first = now if self._first is None else self._first
        self._members[process] = _Member(name, now)

    def report(self, process: int, report: Report, now: float):
        """A process says how far it is."""
        member = self._members[process]
        member.heard = now
        member.report, member.since = report, now - report.age

    def fail(self, process: int, fault: Fault, now: float):
        """The work of a process ended by an exception."""
        member = self._members[process]
        member.fault, member.faulted = fault, now

    def close(self, process: int, now: float):
        """The connection of a process has ended."""
        self._members[process].closed = now

    def finish(self, process: int):
        """A process has come to its end."""
        self._members[process].done = True

    @property
    def done(self) -> bool:
        """Whether all processes have come to their end."""
        return len(self._members) == self._total and all(m.done for m in self._members.values())

    def verdict(self, now: float) -> Verdict | None:
        """The reason for which all processes are to end, or None.

        A death is told before a failure, as a process that loses another one fails, too.
        """
        alive = {number: m for number, m in self._members.items() if not m.done}
        died = {n: m for n, m in alive.items() if m.closed is not None and m.fault is None}
        if died and now - min(m.closed for m in died.values()) >= DIED:
            return Verdict(f"{_named(died)} died during {_doing(died)}")
        failed = {n: m for n, m in alive.items() if m.fault is not None}
        own = {n: m for n, m in failed.items() if not m.fault.lost}
        if not died and own and now - min(m.faulted for m in own.values()) >= FAILED:
            number = min(own, key=lambda n: own[n].faulted)
            member = own[number]
            text = f"{_named({number: member})} failed during {member.fault.what}: "
            return Verdict(text + member.fault.text, member.fault.status)
        lost = bool(failed) and now - min(m.faulted for m in failed.values()) >= SILENT
        stuck = None if failed or died else _stuck(alive, now)
        limit = min(self._silence, SILENT) if lost or stuck else self._silence
        silent = {n: m for n, m in alive.items() if m.fault is None and now - m.heard >= limit}
        if silent and not died:
            longest = max(now - m.heard for m in silent.values())
            return Verdict(
                f"{_named(silent)} {_verb(silent, 'does', 'do')} not answer since {longest:.0f} s "
                f"(stopped, or the machine is lost), last during {_doing(silent)}"
            )
        if lost and not died:
            number, member = next(iter(failed.items()))
            return Verdict(
                f"{_named({number: member})} failed during {member.fault.what}: {member.fault.text}"
            )
        if self._first is not None and len(self._members) < self._total:
            absent = sorted(set(range(self._total)) - self._members.keys())
            if now - self._first >= self._silence:
                which = f"process{'es' if len(absent) > 1 else ''} {_numbers(absent)}"
                return Verdict(f"{which} did not come; see the log there")
            return None
        return stuck


def _stuck(alive: dict[int, _Member], now: float) -> Verdict | None:
    """The verdict if those that are least far are all over their time."""
    if not alive:
        return None
    least = min(m.report.count for m in alive.values())
    last = {n: m for n, m in alive.items() if m.report.count == least}
    if any(now - m.since <= m.report.allowed for m in last.values()):
        return None
    age = min(now - m.since for m in last.values())
    if len(last) == len(alive):
        return Verdict(f"no process goes on since {age:.0f} s, all during {_doing(last)}")
    rest = {n: m for n, m in alive.items() if n not in last}
    hangs = _verb(last, "hangs", "hang")
    return Verdict(
        f"{_named(last)} {hangs} since {age:.0f} s during {_doing(last)}; the others wait in "
        f"{_doing(rest)}"
    )


def _numbers(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{shown} and {len(numbers) - 8} more" if len(numbers) > 8 else shown


def _named(members: dict[int, _Member]) -> str:
    """process 2 (host, pid 7), or the numbers of several."""
    if len(members) == 1:
        (number, member), *_ = members.items()
        return f"process {number} ({member.name})"
    return f"processes {_numbers(sorted(members))}"


def _verb(members: dict[int, _Member], one: str, several: str) -> str:
    return one if len(members) == 1 else several


def _doing(members: dict[int, _Member]) -> str:
    return " and ".join(sorted({m.report.what for m in members.values()}))


class Hub:
    """Serves the members of a run from a thread of its own.

    address: (port, token), by which a member reaches and joins it. ended: set when no member is to
    come any more: all have ended, or were told to.
    """

    def __init__(self, total: int, silence: float):
        """total: processes of the run. silence: as of `Members`. Raises OSError."""
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
        self._server.setblocking(False)
        self._token = secrets.token_hex(16)
        self.address = self._server.getsockname()[1], self._token
        self._members = Members(total, silence)
        self._lines: dict[socket.socket, bytes] = {}  # what is not yet a whole line
        self._process: dict[socket.socket, int] = {}  # of the sockets that have the token
        self._verdict: Verdict | None = None
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="watch-hub", daemon=True)
        self._thread.start()

    def _serve(self):
        told = begun = time.monotonic()
        with selectors.DefaultSelector() as selector, self._server:
            selector.register(self._server, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(BEAT / 4):
                    if key.fileobj is self._server:
                        with contextlib.suppress(OSError):
                            connection, _ = self._server.accept()
                            connection.setblocking(False)
                            selector.register(connection, selectors.EVENT_READ)
                            self._lines[connection] = b""
                    elif not self._read(key.fileobj):
                        selector.unregister(key.fileobj)
                        key.fileobj.close()
                now = time.monotonic()
                if self._verdict is None:
                    self._verdict = self._members.verdict(now)
                    begun = now
                ends = self._verdict is not None or self._members.done
                if ends or now - told >= BEAT:
                    told = now
                    self._tell(self._message())
                if ends and (not self._process or now - begun >= SILENT):
                    self.ended.set()
                    return

    def _message(self) -> dict:
        if self._verdict is not None:
            return {"verdict": self._verdict.text, "status": self._verdict.status}
        return {"end": True} if self._members.done else {"alive": True}

    def _tell(self, message: dict):
        line = json.dumps(message).encode() + b"\n"
        for connection in self._process:
            with contextlib.suppress(OSError):  # one that is stopped does not read
                connection.send(line)

    def _read(self, connection: socket.socket) -> bool:
        """Take what a connection has sent; False if it has ended or talks nonsense."""
        try:
            content = connection.recv(_LONGEST)
            *lines, rest = (self._lines[connection] + content).split(b"\n")
            for line in lines:
                self._take(connection, json.loads(line))
            self._lines[connection] = rest
            if content and len(rest) < _LONGEST:
                return True
        except BlockingIOError:
            return True
        except (OSError, ValueError, KeyError, TypeError):
            pass
        del self._lines[connection]
        if (process := self._process.pop(connection, None)) is not None:
            self._members.close(process, time.monotonic())
        return False

    def _take(self, connection: socket.socket, message: dict):
        now = time.monotonic()
        if (process := self._process.get(connection)) is None:
            if not secrets.compare_digest(message["token"], self._token):
                raise ValueError("another run's process")
            self._members.join(message["process"], message["name"], now)
            self._process[connection] = message["process"]
        elif "done" in message:
            self._members.finish(process)
        elif "text" in message:
            self._members.fail(process, Fault(**message), now)
        else:
            self._members.report(process, Report(**message), now)
