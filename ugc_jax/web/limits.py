"""Limits of what a client may send: sizes of bodies, rates of requests."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MOST_KEYS = 10_000  # that are remembered; the least recent are forgotten


class BodyLimit:
    """ASGI middleware that answers 413 to a body of more than `limit` bytes.

    It reads no further, whether the client announces the size or not.
    """

    def __init__(
        self, app: ASGIApp, limit: int, answer: Callable[..., Response] = PlainTextResponse
    ):
        """answer: makes the response of a text, a status and headers."""
        self._app, self._limit, self._answer = app, limit, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")

        async def refuse():
            text = f"the request has more than {self._limit} bytes"
            await self._answer(text, 413, {"Connection": "close"})(scope, receive, send)

        if not announced.isdigit() or int(announced) > self._limit:
            await refuse()
            return
        count, refused = 0, False

        async def counted() -> Message:
            nonlocal count, refused
            message = await receive()
            count += len(message.get("body", b""))
            if count > self._limit and not refused:
                refused = True
                await refuse()
            return {"type": "http.disconnect"} if refused else message

        async def unless_refused(message: Message):
            if not refused:
                await send(message)

        try:
            await self._app(scope, counted, unless_refused)
        except ClientDisconnect:
            pass  # within the body: nobody waits for an answer, and nothing is wrong here
        except Exception:
            if not refused:  # else of a body that was cut off
                raise


class Rate:
    """A budget of events for each key: `burst` at once, then `per_second`."""

    def __init__(
        self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic
    ):
        self._rate, self._burst, self._clock = per_second, burst, clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key -> level, time
        self._lock = threading.Lock()

    def wait(self, key: str) -> float:
        """Count an event; return 0 if it is within the budget, else the seconds to wait."""
        now = self._clock()
        with self._lock:
            level, since = self._levels.pop(key, (self._burst, now))
            level = min(self._burst, level + (now - since) * self._rate)
            allowed = level >= 1
            self._levels[key] = level - allowed, now
            if len(self._levels) > _MOST_KEYS:
                self._levels.popitem(last=False)
        return 0.0 if allowed else (1 - level) / self._rate
