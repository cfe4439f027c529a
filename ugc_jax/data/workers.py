"""Tasks shared out among processes that may die: a decoder's crash costs a clip, not the run."""

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import NamedTuple


class Event(NamedTuple):
    """Something that a task yielded (`value`), its end (`done`), or its process's death (`died`).

    died: the exit status of the process, negative for a signal.
    """

    task: object
    value: object = None
    done: bool = False
    died: int | None = None


def work(function: Callable[..., Iterator], tasks: deque, workers: int) -> Iterator[Event]:
    """Run `function(*task)`, which yields values, for each task in new processes.

    tasks: may be added to while this runs. workers: processes, at most as many as tasks.
    An exception in a task is raised here. All processes end when this ends, or this process dies.
    Function, tasks and values are pickled; the processes import only what these need.
    """
    crew: dict[Connection, tuple] = {}  # connection -> (process, its task)
    context = multiprocessing.get_context("spawn")  # forks of a process with threads may hang

    def start():
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(function, theirs), daemon=True)
        process.start()
        theirs.close()  # so that the process's death closes the connection
        assign(ours, process)

    def assign(connection: Connection, process):
        task = tasks.popleft()
        crew[connection] = process, task
        connection.send(task)

    try:
        while tasks or crew:
            while tasks and len(crew) < workers:
                start()
            for connection in wait(list(crew)):
                process, task = crew[connection]
                try:
                    kind, value = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    del crew[connection]
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
                    del crew[connection]
                    connection.close()
    finally:
        for process, _ in crew.values():
            process.terminate()
        for process, _ in crew.values():
            process.join()


def _serve(function: Callable[..., Iterator], connection: Connection):
    """In a process: do tasks until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that we work for
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
