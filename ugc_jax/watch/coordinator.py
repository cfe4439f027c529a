"""The coordinator: a process beside process 0 with jax's coordination service and the hub.

In a process of its own, it outlives process 0 by some seconds: inside process 0, where jax puts it,
its end makes jax abort all others in C++ before they can say which process was lost.

    python -m ugc_jax.watch.coordinator HANDLE   (started by watch.join)
"""

import json
import os
import signal
import socket
import sys

from ugc_jax.watch.hub import SILENT, Hub


def main(handle: int):
    """Serve until the parent says that the run is over, or a little longer than the parent lives.

    handle: file descriptor of the socket to the parent. The first line that comes on it is the
    arguments of the service and of the hub, the answer is the hub's address.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the processes save first, and need it
    with socket.socket(fileno=handle) as parent, parent.makefile("rw") as lines:
        arguments = json.loads(lines.readline())
        try:
            hub = Hub(arguments["processes"], arguments["silence"])
            service = _service(*arguments["service"], **arguments["options"])
            answer = {"port": hub.address[0], "token": hub.address[1]}
        except Exception as error:
            service, answer = None, {"error": str(error) or type(error).__name__}
        lines.write(json.dumps(answer) + "\n")
        lines.flush()
        if service is None:
            return
        if not lines.readline():  # the parent has died
            hub.ended.wait(SILENT)
            os._exit(1)
        service.shutdown()
        os._exit(0)


def _service(*arguments, **options):
    from jax._src.lib import _jax

    return _jax.get_distributed_runtime_service(*arguments, **options)


if __name__ == "__main__":
    main(int(sys.argv[1]))
