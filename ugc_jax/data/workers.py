"""Tasks run by processes that may die: the crash of a decoder loses a clip, not the run."""

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import NamedTuple


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
    Raises the exception of a task. All processes end with this generator, or with this process.
    Function, tasks and values are pickled; the processes import only what these need.
    """
    running: dict[Connection, tuple] = {}  # connection -> (process, its task)
    context = multiprocessing.get_context("spawn")  # forks of a process with threads may hang

    def start():
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(function, theirs), daemon=True)
        process.start()
        theirs.close()  # so that the process's death closes the connection
        assign(ours, process)

    def assign(connection: Connection, process):
        task = tasks.popleft()
        running[connection] = process, task
        connection.send(task)

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


def _serve(function: Callable[..., Iterator], connection: Connection):
    """Run tasks, in a worker process, until the other end of the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            values = function(*connection.recv())
            kind = "value"
            while kind == "value":
                try:
                    value = next(values)
                except StopIteration:
                    kind, value = "done", None
                except Exception as error:
                    kind, value = "raised", error
                connection.send((kind, value))
