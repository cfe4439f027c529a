"""An engine in a thread of its own that prompts join and leave at any time: what a server needs.

    submit(prompt) -> queue -> Engine.run, in its thread -> tell(Piece), ..., tell(Failure)

The places of the engine have a row each. Samples of a prompt are prefilled once and then take a
place each, with a copy of the prompt's cache: they decode beside each other where places are free,
and a place costs the same whoever has it.
"""

import collections
import dataclasses
import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ugc_jax.data.batching import check_counts, collate
from ugc_jax.data.reading import Prompt
from ugc_jax.errors import UserError, environment_failure
from ugc_jax.generate import sampling
from ugc_jax.generate.captioner import Captioner
from ugc_jax.generate.constraints import Schemas
from ugc_jax.generate.engine import (
    CANCELLED,
    TOO_LARGE,
    Constraint,
    Finished,
    Group,
    Request,
    Streamed,
    Top,
    few_places,
    finish_reason,
    is_exhausted,
    longest_prompt,
    new_tokens_bucket,
    plan_places,
    prefill_tokens,
)
from ugc_jax.generate.evidence import Explanation
from ugc_jax.generate.explaining import explain_prompt
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.generate.texts import TextStream
from ugc_jax.sharding import round_up_rows

logger = logging.getLogger(__name__)

MOST_SAMPLES = 128  # of a prompt
USUAL_PROMPT = 4096  # tokens that the number of places is planned for
RATE_SECONDS = 60.0  # of the past, that the present rate is taken from
RETRY_SECONDS = 1.0, 60.0  # least and most of Busy


@dataclasses.dataclass(frozen=True)
class GenerationOptions:
    """What to do with a prompt.

    Sample number s has the random numbers of key id s: completions depend on the seed alone. A
    sample that a stop string ends has the finish reason "stop".
    """

    sampling: SamplingConfig  # resolved; has the seed and max_new_tokens
    samples: int = 1  # completions, 1 to MOST_SAMPLES
    top_logprobs: int = 0  # most likely tokens to give beside each, 0 to 20
    stop: tuple[str, ...] = ()  # strings that end a completion; not part of its text
    schema: dict | None = None  # JSON schema that the text must satisfy ({}: any JSON object)

    def __post_init__(self):
        if not 1 <= self.samples <= MOST_SAMPLES:
            raise UserError(f"samples is {self.samples}; use 1 to {MOST_SAMPLES}")
        if not 0 <= self.top_logprobs <= sampling.TOP:
            raise UserError(f"top_logprobs is {self.top_logprobs}; use 0 to {sampling.TOP}")
        if not all(self.stop):
            raise UserError("stop has an empty string; leave it out")


class Token(NamedTuple):
    """A generated token.

    text: its bytes, maybe a part of a character, of a special token its spelling. logprob: natural
    logarithm, of the distribution that it was sampled from. top: (id, text, logprob) of the most
    likely tokens in its place, most likely first; fewer where fewer could be sampled.
    """

    id: int
    text: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...]


class Piece(NamedTuple):
    """What a chunk of steps added to a sample.

    tokens: the new ones, the end-of-text token included; none after the one that completes a stop
    string. text: what is certain of the text now and was not before (`TextStream`); all texts
    together are what `Captioner.caption` gives. finish_reason: with the last piece, "stop" or
    "length".
    """

    sample: int
    tokens: tuple[Token, ...]
    text: str
    finish_reason: str | None


class Failure(NamedTuple):
    """Why a request has no further pieces. reason: one line."""

    reason: str


class Busy(Exception):
    """The queue is full. retry_after: seconds until there is likely to be room."""

    def __init__(self, retry_after: float):
        super().__init__(f"too many requests wait; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class Closed(Exception):
    """Nothing is accepted any more: it is being closed, or the engine failed. One line says why."""


@dataclasses.dataclass(frozen=True)
class Stats:
    """What an engine does and has done; counts are since its start."""

    places: int  # completions that decode at a time
    waiting: int  # prompts in the queue
    running: int  # prompts that are prefilled or decode
    tokens: int  # generated
    tokens_per_second: float  # generated, over the last RATE_SECONDS
    prompts: int  # prefilled
    prompt_tokens: int  # of these
    completed: int  # requests with all their completions
    cancelled: int  # requests
    failed: int  # requests
    refused: int  # by Busy
    error: str | None  # why the engine ended, if it failed


class Ticket:
    """A request under way; only to be given to `Live.cancel`."""

    def __init__(
        self,
        prompt: Prompt,
        options: GenerationOptions,
        tell: Callable,
        texts: list[TextStream],
        constraint: Constraint | None,
    ):
        self._prompt: Prompt | None = prompt  # until it is prefilled
        self._options, self._tell, self._texts = options, tell, texts
        self._constraint = constraint
        self._lock = threading.RLock()  # held while told: nothing is told after the end
        self._over = False  # nothing is told any more
        self._ended: set[int] = set()  # samples whose last piece is told
        self._token_counts = [0] * options.samples  # tokens passed on, of each
        self._left = set(range(options.samples))  # samples that the engine has not ended

    def _unwanted(self, sample: int) -> bool:
        return self._over or sample in self._ended


class Live:
    """An engine in a thread, which prompts join and leave while others decode."""

    def __init__(self, captioner: Captioner, *, places: int | None, new_tokens: int, waiting: int):
        """Start the thread.

        places: completions that decode at a time; None: as many as the free memory holds.
        new_tokens: most of a request. waiting: requests that may wait for a place.
        Raises UserError for settings that the model or the memory cannot serve.
        """
        engine = self._engine = captioner.engine
        self._captioner, self._config = captioner, captioner.config
        positions = self._config.text.max_position_embeddings
        if not 1 <= new_tokens < positions:
            raise UserError(
                f"new_tokens is {new_tokens}; the model has {positions} positions for the prompt "
                f"and the completion together, so use 1 to {positions - 1}"
            )
        self._new_tokens, self._waiting = new_tokens, waiting
        usual = min(USUAL_PROMPT, positions - new_tokens)
        if places is None:
            places = plan_places(engine, usual, new_tokens_bucket(new_tokens), 1, None)
        self._places = round_up_rows(engine.mesh, places)
        longest = longest_prompt(engine, self._places, new_tokens_bucket(new_tokens), 1)
        self._longest = min(longest, positions - new_tokens)
        self._budget = prefill_tokens(engine.mesh)
        self._bytes_of = functools.cache(captioner.tokenizer.bytes_of)
        self._spelling = functools.cache(
            functools.partial(captioner.tokenizer.bytes_of, special=True)
        )
        self._compiler: Schemas | None = None
        self._compiler_lock = threading.Lock()
        self._changed = threading.Condition()  # guards all that follows
        self._queue: collections.deque[Ticket] = collections.deque()
        self._running: set[Ticket] = set()
        self._counts = collections.Counter()
        self._rates = {"tokens": _Rate(), "completions": _Rate()}
        self._closing = self._aborted = False
        self._error: str | None = None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    # ---- from any thread -------------------------------------------------------------------------

    def submit(
        self, prompt: Prompt, options: GenerationOptions, tell: Callable[[Piece | Failure], None]
    ) -> Ticket:
        """Queue a prompt. Thread-safe.

        tell: called from the engine's thread with each piece of each sample, or once with a
        Failure; it must return at once, and nothing is told after the last piece of all samples, a
        Failure or `cancel`. Raises UserError for a prompt or settings that do not fit, Busy where
        too many wait, and Closed; EnvironmentFailure for a schema without the library for it.
        """
        self._check_fit(prompt, options)
        constraint = None
        if options.schema is not None:
            constraint = self._schemas().compile(options.schema)
        texts = [TextStream(self._bytes_of, options.stop) for _ in range(options.samples)]
        ticket = Ticket(prompt, options, tell, texts, constraint)
        with self._changed:
            if self._error is not None:
                raise Closed(self._error)
            if self._closing:
                raise Closed("the server is shutting down")
            under_way = sum(len(one._left) for one in (*self._queue, *self._running))
            if under_way >= self._places + self._waiting:
                self._counts["refused"] += 1
                raise Busy(self._retry_after())
            self._queue.append(ticket)
            self._changed.notify_all()
        return ticket

    def cancel(self, ticket: Ticket):
        """Have nothing told any more; its places are free after the next chunk. Thread-safe.

        Does nothing to a request that is over.
        """
        with ticket._lock:
            was_over, ticket._over = ticket._over, True
        with self._changed:
            self._counts["cancelled"] += not was_over
            if ticket in self._queue:
                self._queue.remove(ticket)

    def explain(
        self,
        prompt: Prompt,
        texts: Sequence[str],
        by_time: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> list[Explanation]:
        """Say what the words of texts after a prompt rest on, in the calling thread.

        Costs up to four prefills of the prompt, and with `by_time` one for each second of sound and
        of picture; each is waited for, so that what decodes goes on between. check: called before
        each; may raise. Raises Closed.
        """
        with self._changed:
            if self._error is not None:
                raise Closed(self._error)
        try:
            return explain_prompt(self._captioner, prompt, texts, by_time, check)
        except jax.errors.JaxRuntimeError as error:
            if not is_exhausted(error):
                raise
            reason = f"evidence of a prompt of {len(prompt.example.tokens)} tokens {TOO_LARGE}"
            return [Explanation("", text, error=reason) for text in texts]

    def stats(self) -> Stats:
        """Return what the engine does and has done. Thread-safe."""
        with self._changed:
            counts = self._counts
            names = ("tokens", "prompts", "prompt_tokens", "completed", "cancelled", "failed")
            return Stats(
                places=self._places,
                waiting=len(self._queue),
                running=len(self._running),
                tokens_per_second=self._rates["tokens"].per_second(),
                refused=counts["refused"],
                error=self._error,
                **{name: counts[name] for name in names},
            )

    def close(self, seconds: float):
        """Refuse new requests, finish those under way within the limit, fail the rest."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        if self._thread.is_alive():
            with self._changed:
                self._aborted = True
                self._changed.notify_all()
            self._fail("the server was shut down before the request was finished")
            self._thread.join(2)  # for the chunk of steps that is under way

    def _schemas(self) -> Schemas:
        """The compiler of schemas, for which the first request that has one waits a second."""
        with self._compiler_lock:
            if self._compiler is None:
                size = self._config.text.vocab_size
                self._compiler = Schemas(self._captioner.tokenizer, size)
            return self._compiler

    # ---- what fits -------------------------------------------------------------------------------

    def _check_fit(self, prompt: Prompt, options: GenerationOptions):
        tokens, new = len(prompt.example.tokens), options.sampling.max_new_tokens
        if new > self._new_tokens:
            raise UserError(f"max_new_tokens is {new}; use at most {self._new_tokens}")
        if tokens > self._longest:
            raise UserError(
                f"a prompt of {tokens} tokens is longer than the {self._longest} that "
                f"{self._places} places leave room for; lower max_pixels or fps, or serve fewer "
                "places"
            )
        check_counts(prompt.example, self._config)

    def _retry_after(self) -> float:
        """Seconds until one of the requests is likely to end."""
        least, most = RETRY_SECONDS
        rate = self._rates["completions"].per_second()
        return math.ceil(min(max(1 / rate, least), most)) if rate else 5.0

    # ---- in the engine's thread ------------------------------------------------------------------

    def _work(self):
        try:
            for one in self._engine.run(
                self._captioner.params, self, self._places, self._new_tokens,
                check=self._check, rows="following",
            ):  # fmt: skip
                self._pass_on(one)
        except _Aborted:
            pass
        except BaseException as error:  # noqa: BLE001 - whoever waits is told, whatever it is
            known = environment_failure(error)
            reason = f"the engine failed: {known or f'{type(error).__name__}: {error}'}"
            reason = " ".join(reason.split())[:500]
            logger.error("%s", reason, exc_info=known is None)
            with self._changed:
                self._error = reason
            self._fail(reason)

    def _check(self):
        if self._aborted:
            raise _Aborted

    def take(self, wait: bool, free: int) -> Group | None:
        """Return prompts that join now (`engine.Source`); None at the end if none is under way."""
        with self._changed:
            while wait and not self._queue and not self._closing:
                self._changed.wait()
            tickets, rows = self._together(free, wait)
            if not tickets:
                return None
            for ticket in tickets:
                self._queue.remove(ticket)
            self._running.update(tickets)
            self._counts["prompts"] += len(tickets)
            self._counts["prompt_tokens"] += sum(len(t._prompt.example.tokens) for t in tickets)
        examples = [ticket._prompt.example for ticket in tickets]
        batch = collate(examples, tickets[0]._prompt.bucket, rows, self._config)
        for ticket in tickets:
            ticket._prompt = None  # its frames are in the batch
        return Group(batch, [*map(_request, tickets), *[None] * (rows - len(tickets))])

    def _together(self, free: int, idle: bool) -> tuple[list[Ticket], int]:
        """The first prompt that may join, with others of its bucket; and the rows of their batch.

        A batch is full or has one prompt, so that a bucket has two programs and a prompt that comes
        alone does not wait for rows that nobody asked for. At most one batch waits for the places
        of constrained prompts, and one for the others.
        """
        bound = sum(len(one._left) for one in self._running if one._constraint is not None)
        few = few_places(self._engine.mesh, self._places)
        room = {False: idle or free >= 0, True: idle or bound <= few}
        may = [one for one in self._queue if room[one._constraint is not None]]
        if not may or self._aborted:
            return [], 0
        kind, key = may[0]._constraint is not None, may[0]._prompt.bucket
        same = [
            one for one in may if (one._constraint is not None, one._prompt.bucket) == (kind, key)
        ]
        least = round_up_rows(self._engine.mesh, 1)
        most = round_up_rows(self._engine.mesh, max(1, self._budget // key.tokens))
        rows = most if 2 * len(same[:most]) > most else least
        return same[:rows], rows

    def _pass_on(self, one: Finished | Streamed):
        """Tell what the engine gave of a sample."""
        ticket = one.tag
        over = isinstance(one, Finished)
        if over and one.error is not None and one.error != CANCELLED:
            remedy = "; lower max_pixels, fps or max_new_tokens"
            reason = one.error + remedy * one.error.endswith(TOO_LARGE)
            self._end(ticket, Failure(reason))
            ticket._left.clear()
        elif not ticket._unwanted(one.sample):
            piece = self._piece(one)
            if piece.finish_reason is not None:
                ticket._ended.add(piece.sample)
            with self._changed:
                self._counts["tokens"] += len(piece.tokens)
                self._rates["tokens"].add(len(piece.tokens))
                self._rates["completions"].add(piece.finish_reason is not None)
            last = len(ticket._ended) == ticket._options.samples
            self._end(ticket, piece) if last else self._tell(ticket, piece)
        if over:
            with self._changed:
                ticket._left.discard(one.sample)
                if not ticket._left:
                    self._running.discard(ticket)

    def _piece(self, one: Finished | Streamed) -> Piece:
        """The tokens of a sample that are new, and their text."""
        ticket = one.tag
        text, count = ticket._texts[one.sample], ticket._options.top_logprobs
        start = ticket._token_counts[one.sample] if isinstance(one, Finished) else 0
        tokens, parts, reason = [], [], None
        for n in range(start, len(one.tokens)):
            tokens.append(self._token(one, n, count))
            parts.append(text.add(tokens[-1].id))
            if text.stopped:
                reason = "stop"
                break
        ticket._token_counts[one.sample] += len(tokens)
        if reason is None and isinstance(one, Finished):
            parts.append(text.end())
            reason = "stop" if text.stopped else finish_reason(one.stopped)
        return Piece(one.sample, tuple(tokens), "".join(parts), reason)

    def _token(self, one: Finished | Streamed, n: int, count: int) -> Token:
        token = int(one.tokens[n])
        top = () if one.top is None else self._top(one.top, n, count)
        return Token(token, self._spelling(token), float(one.logprobs[n]), top)

    def _top(self, top: Top, n: int, count: int) -> tuple[tuple[int, bytes, float], ...]:
        pairs = zip(top.tokens[n, :count].tolist(), top.logprobs[n, :count].tolist(), strict=True)
        return tuple((t, self._spelling(t), logprob) for t, logprob in pairs if logprob > -np.inf)

    def _tell(self, ticket: Ticket, what: Piece | Failure):
        with ticket._lock:
            if not ticket._over:
                try:
                    ticket._tell(what)
                except Exception:  # its own fault, not that of the others
                    logger.exception("a request is cancelled, for it cannot be told its tokens")
                    self.cancel(ticket)

    def _end(self, ticket: Ticket, what: Piece | Failure):
        """Tell the last piece, or why there are no more."""
        with ticket._lock:
            was_over = ticket._over
            self._tell(ticket, what)
            over, ticket._over = ticket._over, True
        if not was_over and not over:  # nor cancelled meanwhile
            with self._changed:
                self._counts["failed" if isinstance(what, Failure) else "completed"] += 1

    def _fail(self, reason: str):
        """Fail all that is under way and that waits."""
        with self._changed:
            tickets = [*self._queue, *self._running]
            self._queue.clear()
            self._running.clear()
        for ticket in tickets:
            self._end(ticket, Failure(reason))


class _Aborted(Exception):
    """`close` waits no longer."""


def _request(ticket: Ticket) -> Request:
    options = ticket._options
    return Request(
        ticket,
        options.sampling,
        range(options.samples),
        streams=True,
        top_logprobs=options.top_logprobs > 0,
        spreads=True,
        cancelled=ticket._unwanted,
        constraint=ticket._constraint,
    )


class _Rate:
    """How often something happens, over the last RATE_SECONDS."""

    def __init__(self):
        self._start = time.monotonic()
        self._events: collections.deque[tuple[float, int]] = collections.deque()
        self._sum = 0

    def add(self, count: int):
        now = time.monotonic()
        if self._events and now - self._events[-1][0] < 1:  # few entries, however much happens
            now, before = self._events.pop()
            count, self._sum = count + before, self._sum - before
        self._events.append((now, count))
        self._sum += count
        self._forget()

    def per_second(self) -> float:
        self._forget()
        seconds = min(RATE_SECONDS, time.monotonic() - self._start)
        return self._sum / seconds if seconds > 0 else 0.0

    def _forget(self):
        limit = time.monotonic() - RATE_SECONDS
        while self._events and self._events[0][0] < limit:
            self._sum -= self._events.popleft()[1]
