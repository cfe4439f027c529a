"""Grain's worker processes, and all that is done here because Grain does it otherwise.

This file alone knows what of Grain (0.2.10 to 0.2.18) is worked around:

- Its workers read absl's flags, which only programs of `absl.app` parse: UnparsedFlagAccessError.
  https://github.com/google/grain/issues/1355, https://github.com/google/grain/issues/1360
  -> `prefetched` marks them as parsed.
- Batches that workers have read ahead when they are stopped are never freed, and Python's resource
  tracker warns of each. https://github.com/google/grain/issues/1031,
  https://github.com/google/grain/issues/398
  -> `prefetched` filters the warning; the tracker does free them.
- A reference cycle keeps the last batch, and its shared memory, after `close` (of the same issues).
  -> `close` collects it.
- The shared memory of a batch is freed with the arrays that Grain has made of it, while slices of
  them may live on (the same `SharedMemoryArray` as in issue 398). -> `copied`.
- Workers are spawned, so `multiprocessing` runs the user's script again in each. No report; Python
  asks for `if __name__ == "__main__":`. -> `starting`.
- Workers end at a signal to the whole group (Ctrl-C, the end of a job), and stay when the process
  that started them is killed. No report; seen with 0.2.18. -> `_init_worker`.
- `multiprocessing` writes what a worker is to do into a pipe whose other end stays open here, and
  waits forever if the worker dies before it has read all. No report; seen with Python 3.11.
  -> `Stored`: what fits the pipe's buffer (64 KiB) is written without waiting.
- A worker that dies is a RuntimeError whose text alone has the exit code, and a lack of shared
  memory kills it (SIGBUS). No report; seen with 0.2.18. -> `failure`.
"""

import contextlib
import errno
import gc
import os
import pickle
import re
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ugc_jax import processes
from ugc_jax.data.batching import Batch
from ugc_jax.errors import UserError
from ugc_jax.scratch import ScratchFolder

if TYPE_CHECKING:
    import grain  # of the extra `train`

SHARED_MEMORY = "/dev/shm"
_NO_LEAK = "ignore:resource_tracker:UserWarning"


class Stored:
    """A function that is pickled as the path of a file, from which workers load it.

    The file is temporary, and there as long as this object is.
    """

    def __init__(self, function: Callable):
        """Raises UserError if the temporary folder cannot hold the file."""
        self._function = function
        try:
            self._folder = ScratchFolder("ugc_jax-workers-")
            self._path = self._folder.path / "function.pkl"
            with open(self._path, "wb") as file:
                pickle.dump(function, file)
        except OSError as error:
            raise UserError(
                f"data: no file for the workers can be written to the temporary folder: {error}; "
                "set TMPDIR to another folder, or data.workers=0"
            ) from error

    def __call__(self, argument):
        return self._function(argument)

    def __reduce__(self):
        return _load, (self._path,)


def _load(path: Path) -> Callable:
    return pickle.loads(path.read_bytes())  # of our own parent


def prefetched(batches: "grain.IterDataset", workers: int, ahead: int) -> "grain.IterDataset":
    """Return a dataset whose items are made by worker processes.

    workers: their number. ahead: items that each of them holds ready.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    if _NO_LEAK not in sys.warnoptions:  # the tracker takes its filters from here when it starts
        sys.warnoptions.append(_NO_LEAK)
    options = grain.multiprocessing.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=ahead
    )
    return batches.mp_prefetch(options, worker_init_fn=_init_worker)


def starting(taken: int, workers: int) -> contextlib.AbstractContextManager[None]:
    """Return the context in which the next batch is taken, after `taken` others.

    Grain starts its workers one after the other, the last one for the last of so many batches.
    """
    return processes.without_script() if taken < workers else contextlib.nullcontext()


def close(batches) -> None:
    """Stop the workers of an iterator over a dataset of `prefetched`, and free its last batch."""
    batches.close()
    gc.collect()


def copied(batch: Batch) -> Batch:
    """Return a batch that is not in shared memory."""
    media = {name: type(leaves)(*map(np.array, leaves)) for name, leaves in batch.media.items()}
    return Batch(*map(np.array, batch[:-1]), media=media)


def failure(error: OSError | RuntimeError, step: int) -> str | None:
    """Return what became of the workers, with the remedy; None for any other error.

    Their batches and locks are in shared memory. A write to a page that it has no room for kills
    the process (SIGBUS), and a lock that it has no room for is an OSError.
    """
    fewer = "lower data.workers or data.read_ahead"
    died = re.search(r"Worker process was terminated .* exit code (-?\d+)", str(error))
    code = int(died[1]) if died else 0
    if isinstance(error, OSError) and error.errno == errno.ENOSPC or code == -signal.SIGBUS:
        size = ""
        with contextlib.suppress(OSError):
            found = os.statvfs(SHARED_MEMORY)
            size = f" of {found.f_blocks * found.f_frsize / 2**20:.0f} MiB"
        return (
            f"no shared memory is left for the batches of the workers at step {step}; enlarge "
            f"{SHARED_MEMORY}{size} (docker run --shm-size 16g), {fewer}, or set data.workers=0"
        )
    if died is None:
        return None
    names = {-number: signal.Signals(number).name for number in signal.Signals}
    reason = names.get(code, f"exit status {code}")
    if code == -signal.SIGKILL:
        reason, fewer = f"{reason}, perhaps for lack of memory", f"{fewer}, or free memory"
    return f"a worker process died at step {step} ({reason}); {fewer}, or set data.workers=0"


def _init_worker(index: int, count: int) -> None:
    """Ignore signals in a worker, and end it with its parent.

    The parent handles a signal to the whole group (Ctrl-C, the end of a job) and needs batches
    until it has stopped. A parent that is killed cannot stop its workers.
    """
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def follow():
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, name="follow-parent", daemon=True).start()
