"""A user's reward functions, called in processes that can be killed.

    UserFunctions.call(name, *arguments) -> float

What hangs is killed at its time limit, and what dies has failed; both lose one sample. The file of
the functions is loaded in each process (process.py), never in this one. Functions of the calling
program are copied there by cloudpickle, which takes those of a script or a notebook, too: each
process has its own copy of what they refer to. Ordinary functions run in up to `workers` processes,
each one call at a time. Calls of async functions run in one process on one event loop. If that
blocks or dies, or cancels its calls, nobody knows which of them was at fault: each is made again,
alone in a process of the ordinary functions.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Mapping

from ugc_jax import processes
from ugc_jax.errors import UserError

MODULE = "ugc_jax.rl.rewards.process"
GRACE = 1.0  # seconds in which a call must end that its event loop was asked to cancel
# seconds that a process may take to load the file: these, and this many times those of the first
LOADING = 60.0, 5
LONGEST_LINE = 1 << 20  # bytes of an answer


def copied(functions: Mapping[str, Callable]) -> str:
    """The functions as `process.load` takes them: by value, unless a module of their own has them.

    Raises UserError that names a function that cannot be copied.
    """
    import cloudpickle

    for name, function in functions.items():
        try:
            cloudpickle.dumps(function)
        except Exception as error:  # of whatever the function refers to
            raise UserError(
                f"rewards: {name} cannot be copied to another process "
                f"({' '.join(str(error).split()):.200}); make what it needs inside of it, or write "
                "it into a file for rewards.file"
            ) from None
    return base64.b64encode(cloudpickle.dumps(dict(functions))).decode()


class CallFailed(Exception):
    """A call in another process failed. kind: the name of the type of what was raised."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class UserFunctions:
    """The functions of a file or of a program, and of a pattern; all methods for one event loop."""

    def __init__(
        self,
        file: str | None,
        pattern: str | None,
        timeout: float,
        workers: int,
        concurrency: int,
        functions: Mapping[str, Callable] | None = None,
    ):
        """pattern: of the function `process.FORMAT`. timeout: seconds of a call.

        workers, concurrency: calls at a time, of all functions and of each async function.
        functions: of the program, by name, instead of a file. Raises UserError for one of them that
        cannot be copied to another process.
        """
        pickled = copied(functions) if functions else None
        self._setup, self._timeout = {"file": file, "pickled": pickled, "pattern": pattern}, timeout
        self._place = file or "rewards"  # in messages
        self._concurrency, self._slots = concurrency, asyncio.Semaphore(workers)
        self._async: dict[str, asyncio.Semaphore] = {}
        self._loading: float | None = None  # seconds that a process may take to load the file
        self._live: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._shared: _Worker | None = None
        self._sharing = asyncio.Lock()  # held while the shared process is started

    async def load(self) -> list[str]:
        """Load the functions in a first process; returns their names.

        Raises UserError for a file that cannot be used.
        """
        begun = time.monotonic()
        try:
            worker = await self._start()
        except CallFailed as error:
            what = "this file" if self._setup["file"] else "these functions"
            raise UserError(f"{error}; correct {what}") from None
        seconds, times = LOADING
        self._loading = seconds + times * (time.monotonic() - begun)
        for name in (name for name, is_async in worker.functions.items() if is_async):
            self._async[name] = asyncio.Semaphore(self._concurrency)
        self._idle.append(worker)
        return list(worker.functions)

    async def call(self, name: str, *arguments) -> float:
        """Call a function; its time limit begins when it has a process.

        Raises CallFailed or TimeoutError, and a UserError that is to end the run: one that the
        function raised, or of a library that it lacks.
        """
        answer = None
        if name in self._async:
            async with self._async[name]:
                answer = await self._call_beside_others(name, arguments)
        if answer is None:
            async with self._slots:
                answer = await self._call_alone(name, arguments)
        match answer:
            case {"value": value}:
                return value
            case {"refused": fault}:
                raise UserError(fault)
            case {"failed": [kind, fault]}:
                raise CallFailed(kind, fault)
            case {"died": status}:
                raise CallFailed("ProcessDied", f"its process died ({status})")
            case _:
                raise TimeoutError(f"took longer than {self._timeout:g} s")

    def close(self):
        """Kill all processes."""
        for worker in self._live:
            worker.end()

    async def _call_beside_others(self, name: str, arguments: tuple) -> dict | None:
        """The answer in the shared process; None if another call may be the reason for it."""
        async with self._sharing:
            if self._shared is None or self._shared.ended:
                self._shared, _ = await self._take(shared=True)
            worker = self._shared
        answer = await worker.call(name, arguments, self._timeout, shared=True)
        is_cancelled = answer.get("failed", [None])[0] == "CancelledError"
        return None if is_cancelled or "died" in answer else answer

    async def _call_alone(self, name: str, arguments: tuple) -> dict:
        """The answer to a call in a process without another.

        A death may be the late effect of an earlier call: then it is made again in a new process.
        """
        while True:
            worker, fresh = await self._take()
            answer = await worker.call(name, arguments, self._timeout)
            if not worker.ended:
                self._idle.append(worker)
            if fresh or "died" not in answer:
                return answer

    async def _take(self, shared: bool = False) -> "tuple[_Worker, bool]":
        """A process without a call, and whether it never had one, as the shared one must not."""
        self._live = {worker for worker in self._live if not worker.ended}
        for worker in [one for one in self._idle if not (shared and one.used)]:
            self._idle.remove(worker)
            if not worker.ended:
                return worker, not worker.used
        try:
            return await self._start(), True
        except UserError as error:  # of a file that was good: changed, or too much for the memory
            raise CallFailed("UserError", str(error)) from None

    async def _start(self) -> "_Worker":
        """A process that has loaded the functions.

        Raises UserError for a file that cannot be used, CallFailed for a process that died.
        """
        worker = _Worker()
        self._live.add(worker)
        try:
            async with asyncio.timeout(self._loading):
                await worker.load(self._setup, self._place)
        except TimeoutError:
            worker.end()
            fault = f"{self._place}: not loaded within {self._loading:.0f} s"
            raise CallFailed("TimeoutError", fault) from None
        except BaseException:
            worker.end()
            raise
        return worker


class _Worker:
    """A process, seen from its parent.

    functions: name -> whether it is async. used: whether it had a call.
    """

    def __init__(self):
        """Start the process. Raises OSError."""
        self.functions: dict[str, bool] = {}
        self.used = False
        self._status: str | None = None
        self._waiting: dict[int, asyncio.Future[dict]] = {}
        self._numbers = itertools.count()
        self._writer: asyncio.StreamWriter | None = None
        # an accelerator is this process's; what functions print goes to the log
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        self._process, self._connection = processes.start(MODULE, environment, output=2)

    @property
    def ended(self) -> bool:
        """Whether the process is known to be dead."""
        return self._status is not None

    async def load(self, setup: dict, place: str):
        """Let the process load the functions. Raises UserError, and CallFailed if it dies."""
        reader, self._writer = await asyncio.open_unix_connection(
            sock=self._connection, limit=LONGEST_LINE
        )
        self._send(setup)
        message = {}
        with contextlib.suppress(OSError, ValueError):  # of a process that died, or wrote nonsense
            message = json.loads(await reader.readline())
        if "refused" in message:
            raise UserError(message["refused"])
        if "functions" not in message:
            fault = f"{place}: its process died while loading it ({self.end()})"
            raise CallFailed("ProcessDied", fault)
        self.functions = message["functions"]
        self._reading = asyncio.create_task(self._read(reader))

    async def call(self, name: str, arguments: tuple, timeout: float, shared: bool = False) -> dict:
        """Return the answer to a call: of the process, {"late": True} or {"died": status}.

        A call that is late is killed with its process, or in a shared one cancelled: if it does
        not end within GRACE then, all calls of the process are answered as by a death.
        """
        number = next(self._numbers)
        self.used = True
        if self.ended:
            return {"died": self._status}
        self._waiting[number] = future = asyncio.get_running_loop().create_future()
        try:
            self._send({"id": number, "name": name, "arguments": arguments, "shared": shared})
            await asyncio.wait([future], timeout=timeout)
            if late := not future.done():
                if shared:
                    self._send({"cancel": number})
                    await asyncio.wait([future], timeout=GRACE)
                if not future.done():
                    self.end()
                    return {"died": self._status} if shared else {"late": True}
            answer = future.result()
        finally:
            del self._waiting[number]
        if late and "died" not in answer:
            return {"late": True}
        if answer.get("retire"):
            self.end()
        return answer

    def end(self) -> str:
        """Kill the process and those that it started; returns how it ended."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.stdin.close()
            self._status = processes.status(self._process.wait())
            if self._writer is None:
                self._connection.close()
            else:  # not the socket: the loop still looks at its number, which may be another's soon
                self._writer.transport.abort()
            for future in self._waiting.values():
                if not future.done():
                    future.set_result({"died": self._status})
        return self._status

    async def _read(self, reader: asyncio.StreamReader):
        """Hand answers to their calls until the process dies."""
        try:
            while line := await reader.readline():
                answer = json.loads(line)
                future = self._waiting.get(answer["id"])
                if future is not None and not future.done():
                    future.set_result(answer)
        except (ValueError, TypeError, KeyError, OSError):
            pass  # something else than answers: not to be trusted any more
        finally:
            self.end()

    def _send(self, message: dict):
        self._writer.write(json.dumps(message, default=str).encode() + b"\n")
