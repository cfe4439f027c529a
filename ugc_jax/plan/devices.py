"""Program of a child process: what jax finds on this machine, and what fits there, as JSON.

`ugc-jax doctor` runs it as `python -m ugc_jax.plan.devices`, so that a driver that hangs or crashes
is a line of its report. Imports all that captioning needs.
"""

import json
import os

import jax

import ugc_jax.generate.captioner  # noqa: F401
from ugc_jax.compilation import default_folder
from ugc_jax.generate.engine import free_memory
from ugc_jax.plan.fits import fits


def facts(host_memory: int) -> dict:
    """Return the devices of this process and the estimates of `fits`.

    host_memory: free bytes of the host, which the devices of a CPU share.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        memory = total = host_memory // len(devices)
    else:
        memory = min(map(free_memory, devices))
        total = min((device.memory_stats() or {}).get("bytes_limit", 0) for device in devices)
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "free": memory,
        "total": total,
        "cache": jax.config.jax_compilation_cache_dir or str(default_folder(devices[0])),
        "fits": [fit._asdict() for fit in fits(devices, memory)],
    }


if __name__ == "__main__":
    # Nothing of a device is taken that another job could need.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    print(json.dumps(facts(int(os.environ["UGC_JAX_HOST_MEMORY"]))))
