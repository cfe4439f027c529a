"""Progress of long work with its rate and remaining time: a bar on a terminal, lines in a log.

Both are silent where the log shows only warnings (`-q`).
"""

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
        self.done, self._initial = initial, initial
        self._bar, self._started = None, time.monotonic()
        self._next = self._started + LINE_SECONDS
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
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update()
        elif self._shown and time.monotonic() >= self._next and self.done < self.total:
            logger.info("%s", self.line(time.monotonic() - self._started, note))
            self._next = time.monotonic() + LINE_SECONDS

    def line(self, seconds: float, note: str = "") -> str:
        """Return the state after so many seconds, as "extracting: 120 of 900 clips, ..."."""
        rate = (self.done - self._initial) / seconds
        left = (self.total - self.done) / rate
        text = f"{self.desc}: {self.done} of {self.total} {self.unit}s, {rate:.3g} {self.unit}s/s"
        return ", ".join(filter(None, [text, note, f"{duration(left)} left"]))


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
