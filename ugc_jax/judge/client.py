"""A client of an LLM judge: any server that speaks OpenAI's chat-completions protocol.

    question -> Judge.ask -> (cache, limits of concurrency and rate) -> server
             -> text -> final_object -> parse -> the caller's value, or JudgeError

Errors and how they are handled:
    unreachable, 502, 503, 504         wait up to `wait` minutes from the beginning of the outage
    connection lost for one question   ask again, `retries` times
    429                                pause all questions for as long as the server asks
    time-out, other 5xx                ask again, `retries` times
    not the JSON object asked for      ask again with the reason, `malformed` times
    wrong key or model, empty account  UserError
    redirected to another host         UserError: captions go nowhere but to the configured host
    anything else                      JudgeError at once
"""

import asyncio
import contextlib
import dataclasses
import email.utils
import enum
import functools
import hashlib
import json
import logging
import os
import random
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from ugc_jax.errors import UserError, require_extra
from ugc_jax.judge.answers import Answers
from ugc_jax.judge.messages import (
    Reply,
    ask_again,
    final_object,
    find_fault,
    one_line,
    read_response,
    with_system,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_PAUSE = 30.0  # seconds between two attempts, unless the server asks for more


class _Trouble(enum.Enum):
    """A kind of error of an attempt; the handling is described at the top of this file."""

    CONFIG = enum.auto()
    REFUSED = enum.auto()
    AWAY = enum.auto()
    BUSY = enum.auto()
    FAULT = enum.auto()


_STATUS = {
    **dict.fromkeys((401, 403, 404), _Trouble.CONFIG),
    429: _Trouble.BUSY,
    **dict.fromkeys((502, 503, 504), _Trouble.AWAY),  # a proxy before a server that is down
    **dict.fromkeys((408, 409), _Trouble.FAULT),
}


class JudgeError(Exception):
    """A question has no usable answer; the message is one line."""


class Unreachable(JudgeError):
    """The server was unreachable for longer than `wait`."""


class Overloaded(JudgeError):
    """All attempts ended in errors, time-outs or "too many requests"."""


class Refused(JudgeError):
    """The server refuses this question; asking again is of no use."""


class Malformed(JudgeError):
    """The judge answered in another form than asked for."""


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """An LLM judge on an OpenAI-compatible server."""

    model: str | None = None  # the judge's name on its server, e.g. gpt-4o-2024-08-06
    # the server, e.g. http://localhost:8000/v1; none: api.openai.com, or that of the environment
    # variable OPENAI_BASE_URL
    base_url: str | None = None
    # environment variable with the key; a server of your own needs none
    key: str = "OPENAI_API_KEY"
    temperature: float | None = 0.0  # none: the server's own
    max_tokens: int | None = None  # of an answer; none: as many as the server allows
    concurrency: int = 16  # questions asked at a time
    requests_per_minute: float | None = None  # at most, evenly spaced; none: no limit
    timeout: float = 60.0  # seconds that an answer may take
    retries: int = 5  # times that a question is asked again after a time-out or a server's error
    malformed: int = 2  # times that it is asked again after an answer of another form
    backoff: float = 1.0  # seconds before the first retry; doubles each time, up to 30
    # minutes that a server which cannot be reached, or has no room (429), is waited for
    wait: float = 10.0
    # JSON Lines file of all answers: a second run asks nothing again; it tells judges apart by
    # model and temperature, not by base_url
    cache: str | None = None
    price_in: float = 0.0  # per million tokens of questions, for the count of the cost
    price_out: float = 0.0  # per million tokens of answers

    def __post_init__(self):
        def require(holds: bool, field: str, remedy: str):
            if not holds:
                raise UserError(f"{field} is {getattr(self, field)!r}; {remedy}")

        url = self.base_url
        is_url = url is None or url.startswith(("http://", "https://"))
        require(is_url, "base_url", "give an address such as http://localhost:8000/v1")
        rate = self.requests_per_minute
        require(rate is None or rate > 0, "requests_per_minute", "give a number above 0, or none")
        is_warm = self.temperature is None or self.temperature >= 0
        require(is_warm, "temperature", "give 0 or more, or none")
        for field in ("concurrency", "timeout"):
            require(getattr(self, field) > 0, field, "give a number above 0")
        for field in ("retries", "malformed", "backoff", "wait", "price_in", "price_out"):
            require(getattr(self, field) >= 0, field, "give 0 or more")


@dataclasses.dataclass
class Usage:
    """Counts of questions, requests, tokens and cost so far.

    The counts are of this process. tokens_in, tokens_out and cost sum up every response in this
    process, failed attempts included, and what each cached answer took when it was asked (counted
    once; zero if the cache does not have it).
    """

    answered: int = 0  # questions answered by the server
    cached: int = 0  # questions answered from the cache
    failed: int = 0  # questions without a usable answer
    requests: int = 0  # requests to the server, retries included
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0  # at the prices of the config
    spent: float = 0.0  # the part of the cost that arose in this process


@dataclasses.dataclass
class _Trials:
    """The attempts of one question. deadline: of retries after 429s (time.monotonic)."""

    deadline: float
    attempts: int = 0
    faults: int = 0
    broken: int = 0  # lost connections while the server was not known to be unreachable


class Judge:
    """Asks questions of an LLM judge; bound to the event loop on which it is first used."""

    def __init__(self, config: JudgeConfig):
        """Raises UserError without a model, a required key or the openai package, and for a cache
        that cannot be written.
        """
        if config.model is None:
            raise UserError(
                "an LLM judge needs judge.model=NAME, and judge.base_url=URL unless it is OpenAI's"
            )
        require_extra("judge", "an LLM judge")
        import openai

        key = os.environ.get(config.key)
        if key is None and config.base_url is None:
            raise UserError(
                f"the environment variable {config.key} with the judge's key is not set; "
                "set it, or give judge.base_url of a server that needs none"
            )
        self.config, self.usage = config, Usage()
        self._openai = openai
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [_check_redirect]}),
            api_key=key or "none",
            max_retries=0,  # retries are made here: they obey `wait`, and share pauses
            timeout=openai.Timeout(config.timeout, connect=min(10.0, config.timeout)),
        )
        self._answers = Answers(config.cache)
        self._running: dict[str, asyncio.Task] = {}  # by key: equal questions are asked once
        self._slots = asyncio.Semaphore(config.concurrency)
        self._gate = asyncio.Lock()
        self._next = 0.0  # when the next request may be made (time.monotonic)
        self._where = config.base_url or "at OpenAI"
        _log_route(config.base_url, str(self._client.base_url))
        self._down_since: float | None = None  # beginning of the outage
        self._is_logged = False  # the outage has been logged

    async def ask(
        self, question: str | Sequence[dict], parse: Callable[[dict], T], repeat: int = 0
    ) -> T:
        """`parse` of the JSON object in the judge's answer.

        question: a text, which is sent after messages.SYSTEM, or complete messages.
        parse: raises ValueError, TypeError or LookupError for an object that it cannot use; has to
          be the same for the same question.
        repeat: distinguishes several answers to the same question.
        Raises JudgeError if there is no usable answer, UserError for a mistake in the config.
        """
        messages, key = _messages(question), self._key(question, repeat)
        if self.knows(question, parse, repeat):
            self.usage.cached += 1
            self._count(*self._answers.earlier(key))
            return parse(self._answers.get(key))
        if key not in self._running:
            task = asyncio.create_task(self._ask(key, messages, parse))
            task.add_done_callback(functools.partial(self._ended, key))
            self._running[key] = task
        # shielded: a caller that is cancelled does not cancel the question for others
        return parse(await asyncio.shield(self._running[key]))

    def knows(
        self, question: str | Sequence[dict], parse: Callable[[dict], T], repeat: int = 0
    ) -> bool:
        """True if `ask` would answer from the cache."""
        answer = self._answers.get(self._key(question, repeat))
        return answer is not None and find_fault(answer, parse) is None

    def _ended(self, key: str, task: asyncio.Task):
        self._running.pop(key)
        if not task.cancelled():
            task.exception()  # if all who asked are cancelled, nobody else takes it

    async def close(self):
        """Cancel open questions; close connections and cache."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._client.close()
        self._answers.close()

    def _key(self, question: str | Sequence[dict], repeat: int) -> str:
        """The cache key, without the address of the server, which may return on another port."""
        content = [self.config.model, self.config.temperature, _messages(question), repeat]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    async def _ask(self, key: str, messages: list[dict], parse: Callable) -> dict:
        """A JSON object that `parse` can use; stored in the cache."""
        async with self._slots:
            try:
                answer, tokens = await self._usable(messages, parse)
            except JudgeError:
                self.usage.failed += 1
                raise
        self.usage.answered += 1
        self._answers.put(key, answer, tokens)
        return answer

    async def _usable(self, messages: list[dict], parse: Callable) -> tuple[dict, tuple[int, int]]:
        """(a JSON object that `parse` can use, (tokens in, tokens out) of all attempts)."""
        attempt, tokens_in, tokens_out = messages, 0, 0
        for _ in range(self.config.malformed + 1):
            reply = await self._reply(attempt)
            tokens_in, tokens_out = tokens_in + reply.tokens[0], tokens_out + reply.tokens[1]
            if reply.fault is not None:  # a draft in it may look like a verdict
                fault, attempt = reply.fault, messages
                continue
            answer = final_object(reply.text)
            fault = find_fault(answer, parse)
            if fault is None:
                return answer, (tokens_in, tokens_out)
            attempt = ask_again(messages, reply.text, fault)
        raise Malformed(
            f"the judge's answer is not of the required form: {fault}: {reply.text[:80]!r}"
        )

    async def _reply(self, messages: list[dict]) -> Reply:
        """One response, after as many attempts as needed."""
        limits = {"temperature": self.config.temperature, "max_tokens": self.config.max_tokens}
        limits = {name: value for name, value in limits.items() if value is not None}
        trials = _Trials(deadline=time.monotonic() + 60 * self.config.wait)
        while True:
            await self._turn()
            self.usage.requests += 1
            try:
                async with asyncio.timeout(self.config.timeout):
                    response = await self._client.chat.completions.create(
                        model=self.config.model, messages=messages, **limits
                    )
            # ValueError: a body that is cut off in the middle of its JSON
            except (self._openai.APIError, TimeoutError, ValueError) as error:
                await asyncio.sleep(self._pause(error, trials))
            else:
                self._note_up()
                reply = read_response(response)
                self.usage.spent += self._count(*reply.tokens)
                return reply

    def _pause(self, error: Exception, trials: _Trials) -> float:
        """Seconds to wait after a failed attempt. Raises if the question is given up."""
        config = self.config
        for one in (error, error.__cause__):  # from _check_redirect; some versions wrap it
            if isinstance(one, UserError):
                raise UserError(f"judge {config.model}: {one}") from None
        trouble, reason = _diagnose(error, self._openai)
        pause = min(config.backoff * 2 ** min(trials.attempts, 20), MAX_PAUSE)
        pause *= random.uniform(0.5, 1)
        if isinstance(error, self._openai.APIStatusError):
            pause = retry_after(error.response.headers) or pause
            if trouble is not _Trouble.AWAY:
                self._note_up()
        trials.attempts += 1
        match trouble:
            case _Trouble.CONFIG:
                raise UserError(
                    f"judge {config.model}: {reason}; correct judge.model, judge.base_url or the "
                    f"key in {config.key}"
                ) from None
            case _Trouble.REFUSED:
                raise Refused(reason) from None
            case _Trouble.AWAY:
                # the connection may break for this question only, while others are answered
                trials.broken += self._down_since is None
                if trials.broken > config.retries + 1:
                    raise Overloaded(
                        f"{trials.broken} attempts failed, the last: {reason}"
                    ) from None
                self._note_down(reason)
                return min(pause, MAX_PAUSE)
            case _Trouble.BUSY:
                if time.monotonic() + pause > trials.deadline:
                    raise Overloaded(
                        f"too many requests for {config.wait:g} min: {reason}"
                    ) from None
                self._next = max(self._next, time.monotonic() + pause)  # for all questions
                return 0.0
            case _Trouble.FAULT:
                trials.faults += 1
                if trials.faults > config.retries:
                    raise Overloaded(
                        f"{trials.faults} attempts failed, the last: {reason}"
                    ) from None
                return min(pause, 60 * config.wait)

    async def _turn(self):
        """Wait until the rate limit and the pauses allow the next request."""
        rate = self.config.requests_per_minute
        async with self._gate:
            while (left := self._next - time.monotonic()) > 0:
                await asyncio.sleep(left)
            self._next = time.monotonic() + (60 / rate if rate else 0)

    def _count(self, tokens_in: int, tokens_out: int) -> float:
        """Add tokens to the usage; returns their cost."""
        usage, config = self.usage, self.config
        cost = (tokens_in * config.price_in + tokens_out * config.price_out) / 1e6
        usage.tokens_in += tokens_in
        usage.tokens_out += tokens_out
        usage.cost += cost
        return cost

    def _note_down(self, reason: str):
        """Note an outage. Raises Unreachable if it has lasted longer than `wait`."""
        now = time.monotonic()
        if self._down_since is None:
            self._down_since = now
        # a single lost connection is not logged as an outage
        away = now - self._down_since
        if not self._is_logged and away >= 0.4 * self.config.backoff:
            self._is_logged = True
            logger.warning(
                "judge %s cannot be reached (%s); waiting for it, up to %g minutes",
                self._where, reason, self.config.wait,
            )  # fmt: skip
        if away > 60 * self.config.wait:
            raise Unreachable(
                f"{self._where} cannot be reached for {self.config.wait:g} min: {reason}"
            ) from None

    def _note_up(self):
        if self._is_logged:
            away = time.monotonic() - self._down_since
            logger.info("judge %s answers again after %.0f s", self._where, away)
        self._down_since, self._is_logged = None, False


def _messages(question: str | Sequence[dict]) -> list[dict]:
    return with_system(question) if isinstance(question, str) else list(question)


async def _check_redirect(response):
    """Raise UserError if a response leads to another host, port or scheme, or loses the question.

    The HTTP client would follow it, and send the captions there. http to https of one host is fine.
    response: of httpx. Only 307 and 308 keep the question; after others the client sends none.
    """
    if not response.has_redirect_location:
        return
    asked, status = response.url, response.status_code
    try:
        target = asked.join(response.headers["location"])
    except Exception:  # httpx has an error of its own
        raise UserError(
            f"{_host(asked)} redirects to an address that cannot be read; correct judge.base_url"
        ) from None
    ways = [(url.scheme, url.host, url.port) for url in (asked, target)]  # port: None by default
    is_same = ways[0] == ways[1] or ways == [
        ("http", asked.host, None),
        ("https", asked.host, None),
    ]
    if is_same and status in (307, 308):
        return
    what = "the question would be lost" if is_same else "captions are not sent to another host"
    raise UserError(
        f"{_host(asked)} redirects to {_host(target)} (HTTP {status}), and {what}; set "
        "judge.base_url to the address that answers, if you trust it"
    )


def _host(url) -> str:
    """Scheme, host and port of an address, without a user's name, password or token.

    url: of httpx or urllib.
    """
    host = getattr(url, "host", None) or getattr(url, "hostname", None) or ""
    host = f"[{host}]" if ":" in host else host
    return one_line(f"{url.scheme}://{host}" + (f":{url.port}" if url.port else ""))


def _log_route(configured: str | None, url: str):
    """Warn where questions take a way that the config does not name: the environment's.

    configured: base_url of the config. url: that of the client.
    """
    asked = urllib.parse.urlsplit(url)
    if configured is None and asked.hostname != "api.openai.com":
        logger.warning(
            "the judge is %s, from the environment variable OPENAI_BASE_URL; set judge.base_url "
            "to choose", _host(asked),
        )  # fmt: skip
    proxies = urllib.request.getproxies()  # as httpx reads them
    proxy = proxies.get(asked.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(asked.netloc.rpartition("@")[2]):
        via = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        logger.warning(
            "questions to the judge %s go through the proxy %s of the environment; no_proxy=%s "
            "asks it directly", _host(asked), _host(via), asked.hostname,
        )  # fmt: skip


def _diagnose(error: Exception, openai) -> tuple[_Trouble, str]:
    """(kind, reason in one line) of a failed attempt. openai: the package."""
    if isinstance(error, openai.APIStatusError):
        status, reason = error.status_code, one_line(f"HTTP {error.status_code}: {error}")
        if error.code == "insufficient_quota":  # a 429 that waiting does not end
            return _Trouble.CONFIG, reason
        other = _Trouble.FAULT if status >= 500 else _Trouble.REFUSED
        return _STATUS.get(status, other), reason
    is_late = isinstance(error, TimeoutError | openai.APITimeoutError)
    # a time-out of connecting means that the machine is off
    if is_late and "ConnectTimeout" not in type(error.__cause__).__name__:
        return _Trouble.FAULT, "no answer within the time limit"
    reason = one_line(str(error.__cause__ or error))
    is_away = isinstance(error, openai.APIConnectionError)
    return _Trouble.AWAY if is_away else _Trouble.FAULT, reason


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of the header Retry-After (RFC 9110, 10.2.3); None without it."""
    value = headers.get("retry-after") or headers.get("Retry-After") or ""
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None
