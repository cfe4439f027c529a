"""Progress of long work with its rate and remaining time: a bar on a terminal, lines in a log.

Both are silent where the log shows only warnings (`-q`).
"""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator

logger = logging.getLogger(__name__)

LINE_SECONDS = 30.0  # between lines where there is no terminal


class Progress:
    """Counts finished items; a context manager.

    total: of all items. initial: those that an earlier run finished. unit: of an item, as "clip".
    """

    def __init__(self, total: int, unit: str, desc: str, initial: int = 0):
        self.total, self.unit, self.desc = total, unit, desc
        self.done = initial
        # The first item's time is left out of the rate: it has the start of workers and programs.
        self._first: tuple[float, int] | None = None
        self._bar, self._next = None, time.monotonic() + LINE_SECONDS
        self._shown = logger.isEnabledFor(logging.INFO)
        if self._shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=initial, unit=unit, desc=desc)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()

    def update(self, note: str = ""):
        """Count one more item. note: a further figure, such as "80 tokens/s"."""
        self.done += 1
        now = time.monotonic()
        if self._first is None:
            self._first = now, self.done
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update()
        elif self._shown and now >= self._next and self.done < self.total:
            logger.info("%s", self.line(now, note))
            self._next = now + LINE_SECONDS

    def line(self, now: float, note: str = "") -> str:
        """Return the state at a time, as "extracting: 120 of 900 clips, 5 clips/s, 2 min left"."""
        begun, first = self._first
        text = f"{self.desc}: {self.done} of {self.total} {self.unit}s"
        parts = [text, note]
        if self.done > first and now > begun:
            rate = (self.done - first) / (now - begun)
            left = duration((self.total - self.done) / rate)
            parts = [text, f"{rate:.3g} {self.unit}s/s", note, f"{left} left"]
        return ", ".join(filter(None, parts))


def progress(
    items: Iterable, total: int, unit: str, desc: str, note: Callable[[], str] | None = None
) -> Iterator:
    """Yield the items and count them. note: called after each, as `Progress.update` takes it."""
    with Progress(total, unit, desc) as bar:
        for item in items:
            yield item
            bar.update(note() if note else "")


def duration(seconds: float) -> str:
    """Return a time as 45 s, 12 min or 3 h 20 min."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


class LineHandler(logging.Handler):
    """Writes short lines to stderr without breaking a progress bar."""

    def __init__(self):
        super().__init__()
        form = "%(asctime)s %(levelname).1s %(message)s"
        self.setFormatter(logging.Formatter(form, "%H:%M:%S"))

    def emit(self, record: logging.LogRecord):
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Show progress and log lines of the package in the block, as the command line does.

    Changes nothing where the program has set up logging: a level of its own for all loggers, or a
    level or a handler for "ugc_jax". A handler for all alone says nothing: libraries make some.
    """
    package = logging.getLogger("ugc_jax")
    if package.handlers or package.level or logging.getLogger().level != logging.WARNING:
        yield
        return
    handler = LineHandler()
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(logging.NOTSET)
        package.propagate = True
