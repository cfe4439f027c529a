"""A thread of each process of a distributed run: reports its progress, and ends it on a verdict.

The main thread may be inside a collective operation that never returns, so the thread ends the
process by itself: one line in the log, `os._exit`. It also does so when the hub is silent.
"""

import contextlib
import json
import logging
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from ugc_jax.watch.hub import BEAT, RESTART, Fault, Report

logger = logging.getLogger(__name__)

_FLUSH = 5.0  # seconds in which the process must end once it has to


class Member:
    """One process of a run, as the hub sees it.

    at_end: called with the line that says why, before the process ends by a verdict; quick.
    """

    def __init__(
        self,
        address: tuple[str, int],
        token: str,
        process: int,
        position: Callable[[], Report],
        silence: float,
    ):
        """address, token: of the hub. position: how far this process is. silence: seconds without
        a word of the hub after which it is lost. Raises OSError if the hub cannot be reached.
        """
        self._socket = socket.create_connection(address, timeout=60)
        self._socket.setblocking(False)
        self._position, self._silence, self._hub = position, silence, address[0]
        self.at_end: list[Callable[[str], None]] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._ending = False
        self._process = process
        self._trace: BaseException | None = None
        name = f"{socket.gethostname()}, pid {os.getpid()}"
        self._send({"process": process, "name": name, "token": token})
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)
        self._thread.start()

    def finish(self):
        """This process has come to its end: wait until all have. A lost one still ends it."""
        self._ending = True
        self._send({"done": True})
        self._over.wait()

    def fail(
        self, text: str, what: str, status: int, trace: BaseException | None = None
    ) -> NoReturn:
        """Tell all that this process ends by an exception; does not return.

        text, what, status: as of `hub.Fault`. trace: of an exception that the loss of another
        process may have raised; it is logged if no other was lost.
        """
        self._trace = trace
        self._send(Fault(text, what, trace is not None, status)._asdict())
        self._over.wait(self._silence)
        self.end(text, status)

    def end(self, text: str, status: int = RESTART) -> NoReturn:
        """End this process now, with one line in the log."""
        stuck = threading.Timer(_FLUSH, os._exit, (status,))  # whoever reads our log may be stopped
        stuck.daemon = True
        stuck.start()
        hint = "; run again to go on from the last checkpoint" if status == RESTART else ""
        if self._trace is not None and text.startswith(f"process {self._process} "):
            logger.error("it failed here:", exc_info=self._trace)
        logger.error("%s%s", text, hint)
        for call in self.at_end:
            with contextlib.suppress(Exception):
                call(text)
        for handler in [*logging.getLogger("ugc_jax").handlers, *logging.getLogger().handlers]:
            with contextlib.suppress(Exception):
                handler.flush()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)

    def _send(self, message: dict):
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _work(self):
        rest, heard, told = b"", time.monotonic(), 0.0
        while True:
            if (now := time.monotonic()) - told >= BEAT:
                told = now
                if not self._ending:
                    self._send(self._position()._asdict())
            ready, _, _ = select.select([self._socket], [], [], BEAT / 4)
            now = time.monotonic()
            if ready:
                try:
                    content = self._socket.recv(1 << 16)
                except OSError:
                    content = b""
                if not content:
                    self.end(f"the coordinator on {self._hub} has ended (it runs beside process 0)")
                heard = now
                *lines, rest = (rest + content).split(b"\n")
                for line in map(json.loads, lines):
                    if "verdict" in line:
                        self.end(line["verdict"], line["status"])
                    if "end" in line:
                        self._over.set()
                        self._socket.close()
                        return
            elif now - heard >= self._silence:
                self.end(
                    f"the coordinator on {self._hub} (beside process 0) does not answer since "
                    f"{now - heard:.0f} s"
                )
