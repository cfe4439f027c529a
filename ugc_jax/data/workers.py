"""Tasks run by processes that may die: the crash of a decoder loses a clip, not the run."""

import contextlib
import multiprocessing
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from ugc_jax.errors import EnvironmentFailure, environment_failure


class Event(NamedTuple):
    """A value that a task yielded, its end (`done`), or the death of its process (`died`).

    died: the exit status of the process, negative for a signal.
    """

    task: object
    value: object = None
    done: bool = False
    died: int | None = None


def work(function: Callable[..., Iterator], tasks: deque, workers: int) -> Iterator[Event]:
    """Run `function(*task)`, which yields values, for each task in new processes.

    tasks: may be added to while this runs. workers: the most processes at a time.
    Raises the exception of a task, or the EnvironmentFailure that made it, also if no process can
    be started. All processes end with this generator, or with this process.
    Function, tasks and values are pickled; the processes import only what these need.
    """
    running: dict[Connection, tuple] = {}  # connection -> (process, its task)
    context = multiprocessing.get_context("spawn")  # forks of a process with threads may hang

    def start():
        try:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
        except OSError as error:
            fault = f"no process can be started ({error}); free memory or lower workers"
            raise environment_failure(error) or EnvironmentFailure(fault) from None
        theirs.close()  # so that the process's death closes the connection
        assign(ours, process)

    def assign(connection: Connection, process):
        task = tasks.popleft()
        running[connection] = process, task
        with contextlib.suppress(OSError):  # it has died, as `wait` will find
            connection.send((function, task))

    try:
        while tasks or running:
            while tasks and len(running) < workers:
                start()
            for connection in wait(list(running)):
                process, task = running[connection]
                try:
                    kind, value = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    del running[connection]
                    yield Event(task, died=process.exitcode)
                    continue
                if kind == "raised":
                    raise value
                if kind == "value":
                    yield Event(task, value)
                    continue
                yield Event(task, done=True)
                if tasks:
                    assign(connection, process)
                else:
                    del running[connection]
                    connection.close()
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def _serve(connection: Connection):
    """Run tasks, in a worker process, until the other end of the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            values, kind = _run(connection.recv_bytes()), "value"
            while kind == "value":
                try:
                    value = next(values)
                except StopIteration:
                    kind, value = "done", None
                except Exception as error:
                    kind, value = "raised", environment_failure(error) or error
                connection.send((kind, value))


def _run(message: bytes) -> Iterator:
    """Yield the values of a pickled (function, task); imports what they need."""
    function, task = pickle.loads(message)
    yield from function(*task)
