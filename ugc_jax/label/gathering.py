"""Questions that come within a moment -> one batch of our own engine, in a thread."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Given, Found = TypeVar("Given"), TypeVar("Found")

_SECONDS = 0.05  # in which further questions join a batch


class Gathering(Generic[Given, Found]):
    """Bound to the event loop on which it is first used."""

    def __init__(
        self,
        work: Callable[[Sequence[Given]], Sequence[Found | Exception]],
        alike: Callable[[Given, Given], bool] = lambda one, other: True,
    ):
        """work: called with a batch, one batch at a time; returns a result, or an exception to
        raise, for each. alike: whether two questions may be of one batch.
        """
        self._work, self._alike = work, alike
        self._waiting: list[tuple[Given, asyncio.Future]] = []
        self._task: asyncio.Task | None = None

    async def ask(self, question: Given) -> Found:
        """Return what `work` returns for the question, and raise what it raises."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work_all())
        return await future

    async def close(self):
        """Answer nothing more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work_all(self):
        while self._waiting:
            await asyncio.sleep(_SECONDS)
            first = self._waiting[0][0]
            batch = [one for one in self._waiting if self._alike(one[0], first)]
            self._waiting = [one for one in self._waiting if not self._alike(one[0], first)]
            try:
                found = await asyncio.to_thread(self._work, [one for one, _ in batch])
            except Exception as error:
                found = [error] * len(batch)
            for (_, future), one in zip(batch, found, strict=True):
                if future.done():
                    continue
                if isinstance(one, Exception):
                    future.set_exception(one)
                else:
                    future.set_result(one)
