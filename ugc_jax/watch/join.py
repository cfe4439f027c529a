"""Connect the processes of a run, and let them watch each other."""

import contextlib
import json
import logging
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator

import jax
from jax._src import distributed as _internal
from jax._src.lib import _jax

from ugc_jax import processes
from ugc_jax.errors import UserError
from ugc_jax.watch.hub import RESTART, Report
from ugc_jax.watch.member import Member

logger = logging.getLogger(__name__)

_KEY = "ugc_jax/watch"  # in the coordination service: where the hub is
_START = 60.0  # seconds in which the coordinator must be up
_COME = 270.0  # seconds in which all processes must come; at 300 jax aborts, in C++
# Of launch scripts, where no cluster says them.
PROCESSES, PROCESS = "UGC_JAX_PROCESSES", "UGC_JAX_PROCESS"


class _Coordinator:
    """The process of watch/coordinator.py, as jax wants its service: with `shutdown`."""

    def __init__(self, silence: float, address: str, count: int, **options):
        self._process, connection = processes.start("ugc_jax.watch.coordinator", os.environ)
        self._lines = connection.makefile("rw")
        self._connection = connection
        self._say(processes=count, silence=silence, service=[address, count], options=options)
        connection.settimeout(_START)
        try:
            answer = json.loads(self._lines.readline())
        except (OSError, ValueError):
            answer = {"error": "the coordinator does not start"}
        connection.settimeout(None)
        if "error" in answer:
            self._process.kill()
            raise RuntimeError(answer["error"])
        self.port, self.token = answer["port"], answer["token"]

    def shutdown(self):
        with contextlib.suppress(OSError):
            self._say(end=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_START)
        self._connection.close()

    def _say(self, **message):
        self._lines.write(json.dumps(message) + "\n")
        self._lines.flush()


def join_processes(position: Callable[[], Report], silence: float) -> Member:
    """Connect to the other processes of this run; returns this one, watched.

    position, silence: as of `Member`. The processes are found as `jax.distributed.initialize` does
    it, or by UGC_JAX_PROCESSES, UGC_JAX_PROCESS and JAX_COORDINATOR_ADDRESS. Raises UserError if no
    launcher names any. Ends this process with a line and RESTART if not all of them come in time.
    """
    coordinator: list[_Coordinator] = []
    try:
        with _service_outside(silence, coordinator), _all_must_come():
            jax.distributed.initialize(**_given())
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"distributed: the other processes are not found ({str(error).splitlines()[0]}); "
            "start it with a script of launch/, or leave distributed out"
        ) from None
    state = _internal.global_state
    if coordinator:
        place = json.dumps([coordinator[0].port, coordinator[0].token])
        state.client.key_value_set(_KEY, place)
    port, token = json.loads(state.client.blocking_key_value_get(_KEY, int(_START * 1000)))
    host = state.coordinator_address.rsplit(":", 1)[0].strip("[]")
    try:
        return Member((host, port), token, state.process_id, position, silence)
    except OSError as error:
        raise UserError(
            f"distributed: {host}:{port} is not reached ({error.strerror or error}); open the "
            f"ports between the machines ({socket.gethostname()} is process {state.process_id})"
        ) from None


@contextlib.contextmanager
def _all_must_come() -> Iterator[None]:
    """Within the block the others are waited for; it ends this process if that takes too long."""

    def end():
        logger.error(
            "distributed: not all processes came within %.0f s; see the log of each, and run again",
            _COME,
        )
        os._exit(RESTART)

    timer = threading.Timer(_COME, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _given() -> dict:
    """What a launch script says of the processes, as `jax.distributed.initialize` takes it."""
    if PROCESSES not in os.environ:
        return {}
    return {
        "num_processes": int(os.environ[PROCESSES]),
        "process_id": int(os.environ.get(PROCESS, 0)),
        "cluster_detection_method": "deactivate",
    }


@contextlib.contextmanager
def _service_outside(silence: float, started: list[_Coordinator]) -> Iterator[None]:
    """In the block, jax's coordination service is started as a `_Coordinator`, added to `started`.

    jax has no public way to say where its service runs.
    """
    inside = _jax.get_distributed_runtime_service

    def start(address: str, count: int, **options) -> _Coordinator:
        started.append(_Coordinator(silence, address, count, **options))
        return started[-1]

    _jax.get_distributed_runtime_service = start
    try:
        yield
    finally:
        _jax.get_distributed_runtime_service = inside
