"""Requests to a teacher: limits, retries and cost.

    question -> Asker.ask -> (journal, limits, budget) -> teacher -> journal -> parse -> value

Troubles and how they are handled:
    unreachable, 502, 503, 504      wait up to `wait` minutes from the beginning of the outage
    429                             pause all questions for as long as the server asks
    time-out, other 5xx, broken     ask again, `retries` times
    blocked, cut off, no JSON       kept and counted, then asked again, `unusable` times
    wrong form (schema)             the same, with the reason
    wrong key or model              UserError
    another version of the model    kept and counted, then UserError
    the budget is used up           OutOfBudget: nothing more is asked, what is under way ends
"""

import asyncio
import hashlib
import json
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from ugc_jax.errors import UserError
from ugc_jax.judge.messages import AGAIN, final_object, one_line
from ugc_jax.label.journal import Journal, Line
from ugc_jax.label.settings import AskingConfig, TeacherConfig
from ugc_jax.label.teacher import Kind, Question, Reply, Teacher, Tokens, Trouble

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_PAUSE = 60.0  # seconds between two attempts, unless the server asks for more
MINUTE = 60.0
NO_OBJECT = "no complete JSON object"


class Unanswered(Exception):
    """A question has no usable answer; the message is one line.

    final: asking again would not help, or was tried as often as the settings say; else a further
    run asks again.
    """

    def __init__(self, reason: str, final: bool):
        super().__init__(reason)
        self.reason, self.final = reason, final


class OutOfBudget(Exception):
    """The next request could exceed max_cost."""


class Answer(NamedTuple):
    """value: as parsed. version: of the model. cost: of the reply that is used."""

    value: Any
    version: str
    cost: float


class Pace:
    """Limits of requests and tokens a minute, for all questions of all teachers."""

    def __init__(self, config: AskingConfig):
        self.config = config
        self._gate = asyncio.Lock()
        self._next = 0.0  # when the next request may be sent (time.monotonic)
        self._sent: deque[list[float]] = deque()  # [when, tokens] of the last minute

    async def turn(self, tokens: float) -> list[float]:
        """Wait for the turn of a request of about so many tokens; returns what `correct` takes."""
        rate, most = self.config.requests_per_minute, self.config.tokens_per_minute
        async with self._gate:
            while True:
                now = time.monotonic()
                while self._sent and self._sent[0][0] <= now - MINUTE:
                    self._sent.popleft()
                left = self._next - now
                # A request that is larger than the limit goes alone.
                if most is not None and self._sent and self._tokens() + tokens > most:
                    left = max(left, self._sent[0][0] + MINUTE - now)
                if left <= 0:
                    break
                await asyncio.sleep(min(left, 1.0))
            sent = [now, tokens]
            if most is not None:
                self._sent.append(sent)
            self._next = now + (MINUTE / rate if rate else 0)
            return sent

    def correct(self, sent: list[float], tokens: float):
        """Put the tokens that a request took in place of the estimate."""
        sent[1] = tokens

    def pause(self, seconds: float):
        """Let no request be sent for so long."""
        self._next = max(self._next, time.monotonic() + seconds)

    def _tokens(self) -> float:
        return sum(tokens for _, tokens in self._sent)


class Budget:
    """The money that may be spent. other: the cost so far of what is no teacher's."""

    def __init__(self, journal: Journal, most: float | None, other: Callable[[], float]):
        self._journal, self.most, self._other = journal, most, other
        self._reserved = 0.0
        self.is_used_up = False

    @property
    def spent(self) -> float:
        """The cost of all answers so far, of earlier runs too."""
        return self._journal.spent + self._other()

    def reserve(self, cost: float):
        """Set money aside for a request. Raises OutOfBudget where it may not be enough."""
        if self.most is not None and self.spent + self._reserved + cost > self.most:
            self.is_used_up = True
            raise OutOfBudget
        self._reserved += cost

    def release(self, cost: float):
        """End a reservation: what the request cost is spent now."""
        self._reserved -= cost


class Asker:
    """Asks one teacher; several may share pace, budget and journal."""

    def __init__(
        self,
        teacher: Teacher,
        config: TeacherConfig,
        asking: AskingConfig,
        journal: Journal,
        pace: Pace,
        budget: Budget,
        slots: asyncio.Semaphore,
    ):
        self._teacher, self.config, self._asking = teacher, config, asking
        self._journal, self._pace, self._budget, self._slots = journal, pace, budget, slots
        self.name = config.name
        self._down_since: float | None = None  # beginning of an outage

    def key(self, question: Question) -> str:
        """Return the key of a question in the journal."""
        content = [self.config.identity, question.clip, question.stage, question.sample]
        text = json.dumps([*content, question.text], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def estimate(self, question: Question) -> tuple[float, float, float]:
        """Return about how many tokens a question takes: given, of it sound, made."""
        config, material = self.config, question.material
        return tokens_of(
            config,
            question.stage,
            material.seconds if material.sound is not None else 0.0,
            material.seconds if material.picture is not None else 0.0,
            len(question.text),
        )

    async def ask(self, question: Question, parse: Callable[[dict], T]) -> Answer:
        """Return `parse` of the JSON object that answers.

        parse: raises ValueError for an object that cannot be used. Raises Unanswered, OutOfBudget,
        and UserError for what ends the job.
        """
        key = self.key(question)
        async with self._slots:
            while (line := self._journal.usable(key)) is None:
                useless = self._useless(key)
                if len(useless) > self._asking.unusable:
                    raise Unanswered(str(useless[-1].fault), final=True)
                await self._reply(key, _reminded(question, useless), parse)
        return Answer(parse(final_object(line.text)), line.version, line.cost)

    def _useless(self, key: str) -> list[Line]:
        """Return the replies that cannot be used, but for those of another version of the model."""
        version = self._journal.versions.get(self.name)
        return [line for line in self._journal.useless(key) if line.version == version]

    async def _reply(self, key: str, question: Question, parse: Callable):
        """Put one reply into the journal, after as many attempts as needed."""
        trials, began = 0, time.monotonic()
        given, sound, made = self.estimate(question)
        cost = self.config.cost(given, sound, made)
        while True:
            self._budget.reserve(cost)
            try:
                sent = await self._pace.turn(given + made)
                if self._budget.is_used_up:
                    raise OutOfBudget
                number = self._journal.asked(key)
                try:
                    # Our own engine answers when its batch is done; no connection can break.
                    is_local = self.config.kind == "local"
                    async with asyncio.timeout(None if is_local else self._asking.timeout):
                        reply = await self._teacher.ask(question)
                except TimeoutError:
                    trouble = Trouble(Kind.FAULT, "no answer within the time limit", lost=True)
                except Trouble as error:
                    trouble = error
                else:
                    if reply.tokens is None:
                        estimated = Tokens(round(given), round(made), round(sound))
                        reply = reply._replace(tokens=estimated)
                    self._pace.correct(sent, reply.tokens.given + reply.tokens.made)
                    self._down_since = None
                    self._keep(key, number, question, reply, parse)
                    return
                self._journal.failed(key, number, trouble.reason, trouble.lost)
            finally:
                self._budget.release(cost)
            pause = self._pause(trouble, trials, began)
            trials += 1
            await asyncio.sleep(pause)

    def _keep(self, key: str, number: int, question: Question, reply: Reply, parse: Callable):
        fault = reply.fault or _fault(reply.text, parse)
        cost = self.config.cost(reply.tokens.given, reply.tokens.sound, reply.tokens.made)
        before = self._journal.versions.get(self.name, reply.version)
        if before != reply.version:
            fault = f"answered by {reply.version}, not by {before}"
        where = question.clip, question.stage, question.sample, self.name
        self._journal.answered(key, number, where, reply, cost, fault)
        if before != reply.version:
            raise UserError(
                f"{self.name}: answers are of {reply.version} now, those so far of {before}, and "
                f"one data set has one teacher; run again when {before} answers, or choose another "
                "output"
            )

    def _pause(self, trouble: Trouble, trials: int, began: float) -> float:
        """Return the seconds to wait before the next attempt. Raises if there is none."""
        config, now = self._asking, time.monotonic()
        pause = min(config.backoff * 2 ** min(trials, 20), MOST_PAUSE) * random.uniform(0.5, 1)
        if trouble.after:  # "at once", of a server without room, is no pause
            pause = min(trouble.after, MINUTE * config.wait)
        if trouble.kind is Kind.CONFIG:
            raise UserError(
                f"{self.name}: {trouble.reason}; correct model, base_url or the key in "
                f"{self.config.key_name}"
            )
        if trouble.kind is Kind.REFUSED:
            raise Unanswered(f"refused by the server: {trouble.reason}", final=False)
        if trouble.kind is Kind.BUSY:
            if now + pause - began > MINUTE * config.wait:
                raise Unanswered(
                    f"too many requests for {config.wait:g} min: {trouble.reason}", final=False
                )
            self._pace.pause(pause)
            return 0.0
        if trouble.kind is Kind.AWAY:
            self._note_down(trouble.reason)
            return pause
        if trials >= config.retries:
            raise Unanswered(f"{trials + 1} attempts failed: {trouble.reason}", final=False)
        return pause

    def _note_down(self, reason: str):
        """Note an outage. Raises UserError if it has lasted longer than `wait`."""
        now = time.monotonic()
        if self._down_since is None:
            self._down_since = now
            logger.warning(
                "%s cannot be reached (%s); waiting for it, up to %g minutes",
                self.name, reason, self._asking.wait,
            )  # fmt: skip
        if now - self._down_since > MINUTE * self._asking.wait:
            raise UserError(
                f"{self.name} cannot be reached for {self._asking.wait:g} min: {reason}; run again "
                "to go on"
            )


def tokens_of(
    config: TeacherConfig, stage: str, sound: float, picture: float, letters: int
) -> tuple[float, float, float]:
    """Return about how many tokens a question takes: given, of it sound, made.

    sound, picture: seconds of the clip, 0 without. letters: of the text.
    """
    heard = sound * config.sound_tokens if stage != "picture" else 0.0
    seen = picture * config.picture_tokens if stage != "sound" else 0.0
    return heard + seen + letters / 4, heard, float(config.answer_tokens)


def _fault(text: str, parse: Callable) -> str | None:
    """Return why a text cannot be used, None if it can."""
    if (found := final_object(text)) is None:
        return NO_OBJECT
    try:
        parse(found)
    except ValueError as error:
        return one_line(str(error))
    return None


def _reminded(question: Question, useless) -> Question:
    """Return the question with the reason, if the last reply was whole and of the wrong form.

    An answer that is not there (cut off, blocked) is asked for as before.
    """
    if not useless or final_object(useless[-1].text) is None:
        return question
    return question._replace(reminder=AGAIN.format(reason=useless[-1].fault))
