"""A request from its body to its last byte: admission, limits, time, and clients that go.

    admitted? -> body -> Chat -> files -> Prompt -> Live.submit -> pieces [-> evidence] -> answer

Whatever ends a request (its answer, a refusal, its time, a client that goes, the end of the server)
ends the reading of its clips and its completions, too, and removes its files.
"""

import asyncio
import contextlib
import functools
import logging
import math
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from ugc_jax.data.prompt import AUDIO
from ugc_jax.data.reading import Prompt
from ugc_jax.errors import UserError, environment_failure
from ugc_jax.generate.live import Busy, Closed, Failure, GenerationOptions, Live, Piece
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.serve import protocol
from ugc_jax.serve.addresses import Gone
from ugc_jax.serve.media import Medium, Store, is_fetched, media_of
from ugc_jax.serve.metrics import Metrics
from ugc_jax.serve.protocol import Chat, Refusal
from ugc_jax.serve.reading import Reader, record
from ugc_jax.serve.settings import LimitsConfig

logger = logging.getLogger(__name__)

MB = 1_000_000
SLOW = 32  # requests whose URLs are fetched or whose schemas are compiled at a time
LAST_WORDS = 2.0  # seconds to send an error to a client that may not read
_STOPPING = "the server is shutting down; send the request again later"


class Model(NamedTuple):
    """What is served. name: in requests. sampling: resolved, where a request names none.

    end: id of the end-of-text token. new_tokens: most of a completion.
    """

    name: str
    sampling: SamplingConfig
    end: int
    new_tokens: int


class Answering:
    """What the requests of a server have in common."""

    def __init__(
        self, model: Model, live: Live, reader: Reader, store: Store, limits: LimitsConfig,
        folder: Path,
    ):  # fmt: skip
        """folder: for media of requests, each in a folder of its own below it."""
        self.model, self.live, self.limits = model, live, limits
        self.metrics = Metrics(live.stats)
        self._reader, self._store, self._folder = reader, store, folder
        self._most = live.stats().places + limits.waiting
        self._admitted = self._numbers = 0
        self._uploaded = 0  # bytes of the bodies of all requests under way
        self._stopping = self._over = False
        self._under_way: set[asyncio.Timeout] = set()  # of requests, from their first byte on
        # What waits for other servers, or for a large schema, must not keep the files and the
        # answers of others waiting.
        self._slow = ThreadPoolExecutor(SLOW, "slow")
        # One answer at a time, a prefill at a time: between these the device decodes for others.
        self._explaining = ThreadPoolExecutor(1, "evidence")

    # ---- ends ------------------------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        """Whether new requests are refused."""
        return self._stopping

    def stop(self):
        """Refuse new requests, and after limits.shutdown those that are under way."""
        if not self._stopping:
            self._stopping = True
            logger.info("shutting down: %d requests are under way", self._admitted)
            asyncio.get_running_loop().call_later(self.limits.shutdown, self._refuse_rest)

    def _refuse_rest(self):
        self._over = True
        for limit in self._under_way:
            limit.reschedule(0)

    def takes(self) -> dict:
        """Return what requests may hold (upload: bytes), and the question of those without one."""
        return {
            "question": self._reader.settings.question,
            "upload": int(self.limits.upload * MB),
            "max_tokens": self.model.new_tokens,
            "urls": self._store.fetching is not None,
            "files": self._store.root is not None,
        }

    # ---- a request -------------------------------------------------------------------------------

    def admit(self):
        """Refuse (429, 503) a request where too many are under way or the server ends."""
        if self._stopping:
            raise Refusal(503, _STOPPING, headers={"Retry-After": "5", "Connection": "close"})
        if (error := self.live.stats().error) is not None:
            raise Refusal(503, f"{error}; see the server's log")
        if self._admitted >= self._most:
            raise _busy(5.0)

    async def handle(
        self, scope: Scope, receive: Receive, send: Send,
        answer: Callable[[Chat, "Sending"], Awaitable[None]],
    ):  # fmt: skip
        """Let a coroutine answer a request within its limits."""
        sending, start = Sending(scope, receive, send, time.perf_counter()), time.perf_counter()
        try:
            self.admit()
            self._admitted += 1
            self.metrics.under_way.set(self._admitted)
            try:
                async with asyncio.timeout(0 if self._over else self.limits.timeout) as limit:
                    self._under_way.add(limit)
                    async with self._chat(Request(scope, receive)) as chat:
                        await self._until_gone(answer(chat, sending), receive)
            finally:
                self._under_way.discard(limit)
                self._admitted -= 1
                self.metrics.under_way.set(self._admitted)
        except Refusal as refusal:
            await self._refuse(sending, refusal)
        except UserError as error:
            await self._refuse(sending, protocol.of_user(error))
        except TimeoutError:
            late = f"the request was not answered within {self.limits.timeout:g} s"
            refusal = Refusal(504, late, code="timeout")
            await self._refuse(sending, Refusal(503, _STOPPING) if self._over else refusal)
        except (ClientDisconnect, _ClientGone):
            self.metrics.gone.inc()
            self.metrics.requests.labels("gone").inc()
            logger.info("a client left before its answer")
        except Exception as error:
            if (failure := environment_failure(error)) is not None:
                logger.error("%s", failure)
                refusal = Refusal(503, "the server cannot do its work now; see its log")
            else:
                logger.exception("unexpected")
                refusal = Refusal(500, "an error of the server; see its log")
            await self._refuse(sending, refusal)
        else:
            self.metrics.requests.labels("200").inc()
            self.metrics.seconds.observe(time.perf_counter() - start)

    async def _refuse(self, sending: "Sending", refusal: Refusal):
        self.metrics.requests.labels(str(refusal.status)).inc()
        shown = protocol.one_line(refusal.message)[:500]
        logger.warning("refused (%d): %s", refusal.status, shown)
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(LAST_WORDS):
                await sending.refuse(refusal)

    async def _until_gone(self, work: Awaitable[None], receive: Receive):
        """Wait for some work; cancel it when the client goes. Raises _ClientGone, and its own."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise _ClientGone
        finally:
            gone.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    @contextlib.asynccontextmanager
    async def _chat(self, request: Request) -> AsyncIterator[Chat]:
        """Yield the request of a body, within limits of its size and time.

        Its bytes count among those of all bodies until the end of the block.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Also: a page of another site may send any other type without asking this server.
            raise Refusal(415, "the body has to be JSON: send Content-Type: application/json")
        size = request.headers.get("content-length", "")
        size = int(size) if size.isdigit() else int(self.limits.upload * MB)
        if self._uploaded + size > self.limits.uploads * MB:
            raise _busy(5.0)
        self._uploaded += size
        try:
            try:
                async with asyncio.timeout(self.limits.body_timeout):
                    body = await request.body()
            except TimeoutError:
                limit = f"the body was not sent within {self.limits.body_timeout:g} s"
                raise Refusal(408, limit, headers={"Connection": "close"}) from None
            self._uploaded += len(body) - size
            size = len(body)
            chat = await asyncio.to_thread(protocol.parse, body)
            del body, request  # which keeps it, too
            self._check_model(chat)
            yield chat
        finally:
            self._uploaded -= size

    def _check_model(self, chat: Chat):
        if chat.model != self.model.name:
            raise Refusal(
                404, f"there is no model {protocol.one_line(chat.model)[:200]!r}; it is "
                f"{self.model.name!r}", param="model", code="model_not_found",
            )  # fmt: skip

    # ---- what is to be generated -----------------------------------------------------------------

    def options(self, chat: Chat) -> GenerationOptions:
        """Return what the engine is to do. Raises Refusal for what is beyond the limits."""
        count, most = chat.n or 1, self.limits.choices
        if count > most:
            raise Refusal(400, f"n: use at most {most}", param="n", code="invalid_value")
        new = self.new_tokens(chat)
        if new > self.model.new_tokens:
            field = "max_completion_tokens" if chat.max_completion_tokens else "max_tokens"
            raise Refusal(
                400, f"{field} is {new}; this server generates at most {self.model.new_tokens}",
                param=field, code="invalid_value",
            )  # fmt: skip
        # Two requests without a seed differ; a server that is started anew repeats them.
        seed = self.model.sampling.seed + self._numbers if chat.seed is None else chat.seed
        self._numbers += 1
        own = dict(
            temperature=chat.temperature,
            top_p=chat.top_p,
            top_k=chat.top_k,
            repetition_penalty=chat.repetition_penalty,
        )
        values = {name: value for name, value in own.items() if value is not None}
        values = vars(self.model.sampling) | values
        try:
            sampling = SamplingConfig(**values | dict(max_new_tokens=new, seed=seed % 2**32))
        except UserError as error:  # begins with the field's name
            raise protocol.of_user(error, str(error).partition(" ")[0]) from None
        top = chat.top_logprobs or 0
        return GenerationOptions(sampling, count, top, chat.stops(), chat.answer_schema())

    @contextlib.asynccontextmanager
    async def files(self, chat: Chat) -> AsyncIterator[tuple[Sequence[Medium], Sequence[Path]]]:
        """Yield the media of a request and their files, which are removed at the end."""
        media = media_of(chat)
        if len(media) > self.limits.media:
            limit = f"messages: have {len(media)} media; send at most {self.limits.media}"
            raise Refusal(400, limit, param="messages", code="invalid_value")
        if not media:
            yield [], []
            return
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        gone = threading.Event()

        def write() -> list[Path]:
            return [self._store.file(one, folder, n, gone) for n, one in enumerate(media)]

        try:
            with contextlib.suppress(Gone):
                is_slow = self._store.fetching is not None and any(map(is_fetched, media))
                threads = self._slow if is_slow else None
                yield media, await asyncio.get_running_loop().run_in_executor(threads, write)
        finally:
            gone.set()
            await asyncio.to_thread(shutil.rmtree, folder, True)

    async def pieces(self, prompt: Prompt, options: GenerationOptions) -> AsyncIterator[Piece]:
        """Yield the pieces of all completions of a prompt. Raises Refusal."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue()

        def tell(what: Piece | Failure):
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(queue.put_nowait, what)

        # A schema may take a while to compile.
        threads = None if options.schema is None else self._slow
        submitting = loop.run_in_executor(threads, self.live.submit, prompt, options, tell)
        left = options.samples
        try:
            await asyncio.shield(submitting)
            while left:
                piece = await queue.get()
                if isinstance(piece, Failure):
                    raise Refusal(503 if self._stopping else 500, piece.reason)
                left -= piece.finish_reason is not None
                yield piece
        except Busy as busy:
            raise _busy(busy.retry_after) from None
        except Closed as closed:
            raise Refusal(503, str(closed)) from None
        except UserError as error:
            field = "messages" if options.schema is None else protocol.SCHEMA
            raise protocol.of_user(error, field) from None
        finally:
            if left:
                submitting.add_done_callback(self._give_up)

    def _give_up(self, submitting: asyncio.Future):
        if not submitting.cancelled() and submitting.exception() is None:
            self.live.cancel(submitting.result())

    async def evidence(self, chat: Chat, prompt: Prompt, texts: Sequence[str]) -> list[dict]:
        """Return what the words of answers to a prompt rest on; [] unless the request asks."""
        if not chat.evidence:
            return []
        gone = threading.Event()

        def check():
            if gone.is_set():
                raise _ClientGone

        explain = functools.partial(
            self.live.explain, prompt, texts, bool(chat.evidence_by_time), check
        )
        try:
            told = await asyncio.get_running_loop().run_in_executor(self._explaining, explain)
        except Closed as closed:
            raise Refusal(503, str(closed)) from None
        finally:
            gone.set()
        return [one.record() if one.error is None else {"error": one.error} for one in told]

    # ---- answers ---------------------------------------------------------------------------------

    async def complete(self, chat: Chat, sending: "Sending"):
        """Answer with completions: `POST /v1/chat/completions`."""
        options = self.options(chat)
        prompt = await self._prompt(chat)
        self.metrics.prompt_tokens.inc(len(prompt.example.tokens))
        facts = protocol.Facts.new(self.model.name)
        usage = protocol.Usage(
            len(prompt.example.tokens), int((prompt.example.source == AUDIO).sum())
        )
        end = self.model.end if chat.logprobs else None
        keeps = bool(chat.logprobs) and not chat.stream
        choices, first = protocol.Choices(options.samples), True
        includes = bool(chat.stream_options and chat.stream_options.include_usage)
        more = {"usage": None} if includes else {}
        async with contextlib.aclosing(self.pieces(prompt, options)) as pieces:
            async for piece in pieces:
                usage.generated += len(piece.tokens)
                self.metrics.generated_tokens.inc(len(piece.tokens))
                if first:
                    self.metrics.first_token.observe(sending.seconds())
                choices.add(piece, keeps)
                if chat.stream:
                    if first:
                        await sending.begin()
                        roles = [_role(number) for number in range(options.samples)]
                        noted = {"notes": list(prompt.notes)} if prompt.notes else {}
                        await sending.event(protocol.chunk(facts, roles, **more, **noted))
                    await sending.event(protocol.chunk(facts, [protocol.delta(piece, end)], **more))
                first = False
        told = await self.evidence(chat, prompt, choices.whole())
        if not chat.stream:
            answer = protocol.completion(facts, choices, usage, prompt.notes, end, told)
            await sending.whole(answer)
            return
        for number, one in enumerate(told):
            choice = protocol.evidence_delta(number, one)
            await sending.event(protocol.chunk(facts, [choice], **more))
        if includes:
            await sending.event(protocol.chunk(facts, [], usage=usage.record()))
        await sending.event(protocol.DONE)
        await sending.end()

    async def show(self, chat: Chat, sending: "Sending"):
        """Answer with what the model gets of the media: `POST /v1/inputs`."""
        new = self.options(chat).sampling.max_new_tokens
        async with self.files(chat) as (media, files):
            previews = await self._reader.previews(chat, media, files, new)
        body = await asyncio.to_thread(record, media, previews)
        await sending.whole({"object": "list", "data": body})

    async def _prompt(self, chat: Chat) -> Prompt:
        start, new = time.perf_counter(), self.new_tokens(chat)
        async with self.files(chat) as (media, files):
            prompt = await self._reader.prompt(chat, media, files, new)
        if media:
            self.metrics.reading.observe(time.perf_counter() - start)
        return prompt

    def new_tokens(self, chat: Chat) -> int:
        """Return the most new tokens of a request."""
        most = min(self.model.sampling.max_new_tokens, self.model.new_tokens)
        return chat.most_tokens() or most


class Sending:
    """The answer to one request: whole, or a stream of server-sent events."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, start: float):
        self._scope, self._receive, self._send = scope, receive, send
        self._start, self._began, self._ended = start, False, False

    def seconds(self) -> float:
        """Return the seconds since the request came."""
        return time.perf_counter() - self._start

    async def whole(self, body: dict):
        """Send an answer as JSON."""
        response = await asyncio.to_thread(JSONResponse, body)
        self._began = True
        await response(self._scope, self._receive, self._send)
        self._ended = True

    async def begin(self):
        """Begin a stream."""
        self._began = True
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # proxies pass events on at once
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def event(self, event: bytes):
        """Send an event of the stream."""
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def end(self):
        """End the stream."""
        self._ended = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def refuse(self, refusal: Refusal):
        """Send an error: as the answer, or as the last event of a stream that has begun."""
        if self._ended:
            return
        if not self._began:
            self._began = self._ended = True
            await refusal.response()(self._scope, self._receive, self._send)
            return
        await self.event(protocol.event(refusal.body()))
        await self.end()


class _ClientGone(Exception):
    """The client went before its answer."""


async def _wait_for_disconnect(receive: Receive):
    while (await receive())["type"] != "http.disconnect":
        pass


def _busy(seconds: float) -> Refusal:
    wait = str(math.ceil(seconds))
    return Refusal(
        429, f"too many requests are under way; send it again in {wait} s",
        code="rate_limit_exceeded", headers={"Retry-After": wait},
    )  # fmt: skip


def _role(number: int) -> dict:
    return {
        "index": number,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }
