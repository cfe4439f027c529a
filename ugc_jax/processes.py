"""Worker processes: how they are started, and that they end with the process that started them.

A worker is started as `python -m MODULE`, so it runs nothing of the user's script. It talks with
its parent over a socket. Ctrl-C does not reach it.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping


def start(
    module: str, environment: Mapping[str, str], output: int = subprocess.DEVNULL
) -> tuple[subprocess.Popen, socket.socket]:
    """Start `python -m module HANDLE`; returns (the process, the parent's end of its socket).

    HANDLE: the file descriptor of the worker's end. environment: all variables but PYTHONPATH, by
    which the worker imports what this process would. output: what takes the worker's stdout. The
    worker leads a session and a process group of its own, and its stdin is open as long as the
    parent lives. Raises OSError.
    """
    ours, theirs = socket.socketpair()
    path = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=output,
                pass_fds=[theirs.fileno()],
                env={**environment, "PYTHONPATH": path},
                start_new_session=True,
            )
    except BaseException:
        ours.close()
        raise
    return process, ours


@contextlib.contextmanager
def without_script() -> Iterator[None]:
    """Processes that `multiprocessing` spawns in the block do not run the calling script.

    They would run all of a script that has no `if __name__ == "__main__":`. How to run it they take
    from two attributes of its module, which are not there in the block.
    """
    main = sys.modules["__main__"]
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    main.__spec__ = None
    if file is not None:
        del main.__file__
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


def end_with_the_parent(stdin: int = 0, group: bool = False):
    """Let the kernel kill this worker, whatever it does, when the parent's end of stdin closes.

    stdin: a file descriptor of it. group: also kill the processes that the worker started. On other
    systems than Linux, a worker ends at its next message to the parent.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(stdin, fcntl.F_SETOWN, -os.getpgrp() if group else os.getpid())
        fcntl.fcntl(stdin, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(stdin, fcntl.F_SETFL, fcntl.fcntl(stdin, fcntl.F_GETFL) | os.O_ASYNC)


def status(code: int) -> str:
    """Return "SIGSEGV" or "exit status 1" for the exit code of a `subprocess.Popen`."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # real-time signals have no names
        return f"signal {-code}"
