"""The persistent compilation cache: what one run has compiled, the next one loads."""

import functools
import hashlib
import logging
import os
import platform
import re
from collections import Counter
from pathlib import Path

import jax
import jaxlib

from ugc_jax.errors import UserError

logger = logging.getLogger(__name__)

AUTO, OFF = "auto", "off"
MOST_BYTES = 8 << 30  # of a folder; what was not used for longest is deleted

_HITS, _MISSES = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"
_counts: Counter[str] = Counter()


def keep_compiled(folder: str, device: jax.Device):
    """Have compiled programs, small ones included, kept in a folder for further runs.

    folder: "auto" is a folder of the user's cache directory for this jaxlib and kind of device (of
    a CPU, with its features: another CPU cannot run its programs); "off" is none. What
    JAX_COMPILATION_CACHE_DIR or jax.config says goes before "auto". Several processes may share the
    folder. Raises UserError for a folder that cannot be written.
    """
    _listen()
    if folder == OFF:
        jax.config.update("jax_compilation_cache_dir", None)
        return
    if folder == AUTO and jax.config.jax_compilation_cache_dir is not None:
        return
    path = default_folder(device) if folder == AUTO else Path(folder)
    if "://" not in folder:
        try:
            path.mkdir(parents=True, exist_ok=True)
            writable = os.access(path, os.W_OK)
        except OSError:
            writable = False
        if not writable and folder == AUTO:
            logger.info("%s cannot be written: compiled programs are not kept", path)
            return
        if not writable:
            raise UserError(
                f"compute.compilation_cache: {folder} cannot be written; name another one, or off"
            )
    jax.config.update("jax_compilation_cache_dir", folder if "://" in folder else str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    # With a limit, jax locks the folder while it reads and writes an entry.
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)


def report_use():
    """Log how many programs this process has loaded from the cache and how many it compiled."""
    hits, misses = _counts[_HITS], _counts[_MISSES]
    if hits or misses:
        logger.info("compilation cache: %d programs loaded, %d compiled and kept", hits, misses)


@functools.cache  # once a process
def _listen():
    def count(event: str, **_):
        _counts[event] += 1

    jax.monitoring.register_event_listener(count)


def default_folder(device: jax.Device) -> Path:
    """Return the folder of "auto": ~/.cache/ugc_jax/compiled/JAXLIB-DEVICE."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    kind = re.sub(r"\W+", "_", device.device_kind)
    if device.platform == "cpu":
        kind = f"cpu_{hashlib.sha256(_cpu_features().encode()).hexdigest()[:12]}"
    return Path(root) / "ugc_jax" / "compiled" / f"{jaxlib.__version__}-{kind}"


def _cpu_features() -> str:
    """What decides whether a CPU can run another one's programs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = "model name", "flags", "Features", "CPU implementer", "CPU part"
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))
