"""The process that runs a user's reward functions: whatever they do, they do it to this process.

    python -m ugc_jax.rl.rewards.process HANDLE      started and killed by workers.py

Messages are JSON objects, one a line, over the socket HANDLE:

    in   {"file", "pickled", "pattern"}              the functions to load
    out  {"functions": {name: is async}} | {"refused"}
    in   {"id", "name", "arguments", "shared"}       a call; the first says how the process serves
    in   {"cancel": id}                              of a shared process
    out  {"id", "value"} | {"id", "failed": [type, message], "retire"} | {"id", "refused"}

A shared process runs calls of async functions beside each other, on one event loop; any other
process runs one call at a time. retire: what failed may be this process.
"""

import asyncio
import base64
import contextlib
import errno
import inspect
import json
import math
import os
import pickle
import runpy
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ugc_jax import processes, settings
from ugc_jax.errors import OutOfMemory, UserError, environment_failure
from ugc_jax.rl.rewards.local import LocalConfig, local_functions

FORMAT = "format"  # the shipped function with a pattern of the user's
LONGEST_MESSAGE = 500  # characters of an error that are passed on


def number(value: object) -> float:
    """Return a reward as float. Raises TypeError or ValueError unless it is finite in float32.

    Numbers are what `float` takes, such as a bool or a Decimal, and arrays of one of them; texts,
    dates and complex numbers are none.
    """
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError("returned a coroutine; define the function with async def")
    kind = getattr(getattr(value, "dtype", None), "kind", None)  # of a numpy or jax array
    if kind is not None and getattr(value, "size", None) == 1:
        value = value.reshape(())  # of more dimensions, numpy 2.5 makes no float
    if kind == "O" and value.size == 1:
        value = value.item()
    if isinstance(value, str | bytes | bytearray | complex) or kind in ("c", "S", "U", "M", "m"):
        raise TypeError(f"returned a {type(value).__name__}, not a number")
    try:
        found = float(value)
        struct.pack("<f", found)
    except OverflowError:
        raise ValueError(f"returned a {type(value).__name__} too large for float32") from None
    except TypeError as error:
        raise TypeError(f"returned a {type(value).__name__}, not a number ({error})") from None
    if not math.isfinite(found):
        raise ValueError(f"returned {found}, not a finite number")
    return found


def serve(handle: int):
    """Load the functions and call them, until the parent closes the socket or kills this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stdin = os.dup(0)
    processes.end_with_the_parent(stdin, group=True)
    with open(os.devnull) as nothing:  # for functions that read their input
        os.dup2(nothing.fileno(), 0)
    with contextlib.suppress(OSError):  # where memory is short, the kernel is to end this process
        Path("/proc/self/oom_score_adj").write_text("1000")
    channel = _Channel(handle)
    with contextlib.suppress(EOFError, OSError):
        try:
            functions = load(**channel.receive())
        except UserError as error:
            channel.send(refused=str(error))
            return
        channel.send(functions={name: is_async(call) for name, call in functions.items()})
        first = channel.receive()
        serve_calls = _serve_shared if first["shared"] else _serve_one_by_one
        serve_calls(channel, functions, first)


def load(file: str | None, pickled: str | None, pattern: str | None) -> dict[str, Callable]:
    """REWARDS of a user's Python file or `pickled` of the parent, and `format` by a pattern.

    pickled: {name: function} by cloudpickle, as base64. Raises UserError for functions that cannot
    be used.
    """
    functions, place = {}, file
    if pickled is not None:
        place = "rewards"
        with settings.user_code(place), _ends_no_process():
            functions = pickle.loads(base64.b64decode(pickled))
    if file is not None:
        with settings.user_code(file), _ends_no_process():
            functions = runpy.run_path(file).get("REWARDS")
        if not isinstance(functions, dict) or not functions:
            raise UserError(f'{file}: defines no REWARDS; write REWARDS = {{"name": function}}')
        for name, function in functions.items():
            if not isinstance(name, str) or not callable(function):
                raise UserError(
                    f"{file}: REWARDS[{name!r}] is not a function; give a function or async def"
                )
    if pattern is not None:
        if FORMAT in functions:
            raise UserError(f"{place}: {FORMAT} is a shipped reward; choose another name")
        shipped = local_functions(LocalConfig(format_pattern=pattern))
        functions = functions | {FORMAT: shipped[FORMAT]}
    return functions


@contextlib.contextmanager
def _ends_no_process() -> Iterator[None]:
    """Turn what would end this process, such as SystemExit, into an ordinary exception."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raised = RuntimeError(f"{type(error).__name__} ends the process")
        raise raised.with_traceback(error.__traceback__) from None


def is_async(function: Callable) -> bool:
    """True for an `async def`, and for an object that is called as one."""
    called = getattr(function, "__call__", None)  # noqa: B004 (its method is what is looked at)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


def _serve_one_by_one(channel: "_Channel", functions: dict[str, Callable], request: dict):
    runner = asyncio.Runner()
    while True:
        name = request["name"]
        try:
            value = functions[name](*request["arguments"])
            if is_async(functions[name]):
                value = runner.run(value)
            outcome = {"value": number(value)}
        except BaseException as error:
            outcome = _failure(name, error)
            if is_async(functions[name]):
                outcome["retire"] = True  # the state of its event loop is unknown
        channel.send(id=request["id"], **outcome)
        request = channel.receive()


def _serve_shared(channel: "_Channel", functions: dict[str, Callable], first: dict):
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    tasks: dict[int, asyncio.Task] = {}

    async def answer(number_: int, name: str, arguments: list):
        try:
            outcome = {"value": number(await functions[name](*arguments))}
        except BaseException as error:
            outcome = _failure(name, error)
        channel.send(id=number_, **outcome)

    def handle(request: dict):
        if "cancel" in request:
            if (task := tasks.get(request["cancel"])) is not None:
                task.cancel()
            return
        task = loop.create_task(answer(request["id"], request["name"], request["arguments"]))
        tasks[request["id"]] = task
        task.add_done_callback(lambda _: tasks.pop(request["id"]))

    def read():
        try:
            for request in channel.receive_ready():
                handle(request)
        except (EOFError, OSError):
            os._exit(0)

    loop.add_reader(channel.socket, read)
    handle(first)
    loop.call_soon(read)  # what came with the first
    while not loop.is_closed():  # also after loop.stop() and SystemExit in a function's own task
        with contextlib.suppress(BaseException):
            loop.run_forever()


def _failure(name: str, error: BaseException) -> dict:
    """The answer about a call that raised."""
    try:
        text = " ".join(str(error).split())
    except BaseException:  # of the user's exception
        text = "its message cannot be shown"
    if isinstance(error, UserError):
        return {"refused": text}
    failure = environment_failure(error)
    own = isinstance(failure, OutOfMemory) or getattr(error, "errno", None) in (
        errno.EMFILE, errno.ENFILE,
    )  # fmt: skip
    if failure is not None and not own:  # it would fail for every sample
        return {"refused": f"{name}: {failure}"}
    return {"failed": [type(error).__name__, text[:LONGEST_MESSAGE]], "retire": own}


class _Channel:
    """The socket to the parent. Raises EOFError when that closes it, OSError when it is dead."""

    def __init__(self, handle: int):
        self.socket = socket.socket(fileno=handle)
        self.socket.set_inheritable(False)
        self._received = bytearray()

    def send(self, **message):
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict:
        """Wait for a message."""
        while (end := self._received.find(b"\n")) < 0:
            self._take(self.socket.recv(1 << 16))
        line = self._received[:end]
        del self._received[: end + 1]
        return json.loads(line)

    def receive_ready(self) -> list[dict]:
        """The messages that have arrived; does not wait."""
        with contextlib.suppress(BlockingIOError):
            self._take(self.socket.recv(1 << 16, socket.MSG_DONTWAIT))
        *lines, self._received = self._received.split(b"\n")
        return [json.loads(line) for line in lines]

    def _take(self, data: bytes):
        if not data:
            raise EOFError
        self._received += data


if __name__ == "__main__":
    from ugc_jax.rl.rewards import process  # the module that others import, not this copy of it

    process.serve(int(sys.argv[1]))
    os._exit(0)  # without waiting for threads of the user's
