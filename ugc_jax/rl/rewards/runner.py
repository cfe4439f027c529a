"""Rewards of sampled captions, computed while the device works.

    Rewards        runs the reward functions on a thread of its own: n inputs -> f32[n, R]
    BatchRewards   the rewards of one batch, shared among the processes: f32[B, G, R]

A reward function is `(prompt, completion, reference, metadata) -> float`, or an `async def` of the
same. prompt: the user's text. reference: the reference answer, or None. metadata: the other columns
of the manifest's row, and "id", "completion_tokens", "max_new_tokens", "finish_reason" ("stop" or
"length"). A function that raises, returns no finite number or takes too long is called again
(`retries`); after that its reward of this sample is NaN. Failures are counted, and the first of
each kind is logged. Only a UserError ends the run: a wrong key of a judge fails for every sample.

A user's functions, from a file or of the calling program, and `format` with a pattern of the
user's, run in processes of their own (workers.py), so that nothing that they do ends, blocks or
bloats the run. Shipped functions run on the loop's thread: they are pure and quick, or wait for a
judge.

A judge's server that dies does not cost a step: its questions wait for it, up to `judge.wait`
minutes, with a line in the log when the wait begins and when it ends (judge/client.py).
"""

import asyncio
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.data.records import IndexEntry
from ugc_jax.errors import UserError, environment_failure
from ugc_jax.generate.engine import finish_reason
from ugc_jax.judge.client import Judge, JudgeConfig
from ugc_jax.rl.rewards.judged import JUDGED, judged_functions
from ugc_jax.rl.rewards.local import LocalConfig, local_functions
from ugc_jax.rl.rewards.process import FORMAT, number
from ugc_jax.rl.rewards.workers import UserFunctions
from ugc_jax.rl.rows import Completions

logger = logging.getLogger(__name__)

POLL = 0.2  # seconds between two checks while rewards are waited for


@dataclasses.dataclass(frozen=True)
class RewardConfig(LocalConfig):
    """Rewards of sampled captions.

    Functions that are shipped: length, repetition, format, rouge, dialogue; evidence, by the policy
    itself; by an LLM judge: holistic, checklist, mcq; and those that the job adds.
    """

    functions: str = "rouge=1,length=0.5"  # what is rewarded, with weights: NAME=WEIGHT,...
    file: str | None = None  # Python file with functions of your own: REWARDS = {"name": function}
    # seconds that one call of your own functions, or of format_pattern, may take: then its process
    # is killed; a judge has limits of its own
    timeout: float = 60.0
    retries: int = 2  # times that a call of your own functions is made again after it failed
    backoff: float = 1.0  # seconds before the first retry; doubles each time
    workers: int = 4  # processes for your ordinary functions, each with one call at a time
    concurrency: int = 32  # calls of each of your async functions at a time, all in one process
    cache: int = 65536  # rewards that are remembered, so that equal samples are not computed again
    judge: JudgeConfig = JudgeConfig()

    def __post_init__(self):
        super().__post_init__()
        for field in ("timeout", "workers", "concurrency"):
            if not getattr(self, field) > 0:
                raise UserError(f"{field} is {getattr(self, field)}; give a number above 0")
        for field in ("retries", "backoff", "cache"):
            if not getattr(self, field) >= 0:
                raise UserError(f"{field} is {getattr(self, field)}; give 0 or more")


class RewardInput(NamedTuple):
    """The arguments of a reward function, for one completion."""

    prompt: str
    completion: str
    reference: str | None
    metadata: dict


class _Function(NamedTuple):
    """A reward function. retries: of a call that failed."""

    name: str
    call: Callable[[str, str, str | None, dict], Coroutine]
    retries: int = 0


class Rewards:
    """Computes rewards on an event loop in a thread of its own, until `close`."""

    def __init__(
        self,
        config: RewardConfig,
        shipped: Mapping[str, Callable] | None = None,
        own: Mapping[str, Callable] | None = None,
    ):
        """shipped: functions by name beside those of local.py and judged.py, pure and quick.

        own: the calling program's functions by name, which are called as those of config.file.
        Raises UserError for unknown functions, a file that cannot be used, functions that cannot be
        copied to another process, a judge not set.
        """
        if own and config.file is not None:
            raise UserError(
                f"rewards.file is {config.file}, beside functions; give one or the other"
            )
        self.config = config
        weights = parse_weights(config.functions)
        self.names: tuple[str, ...] = tuple(weights)
        self.weights = np.array(list(weights.values()), np.float32)
        self.judge: Judge | None = None  # the LLM judge, where a function needs it
        self._cache: dict[tuple[str, bytes], asyncio.Task] = {}  # the oldest first
        self._counts, self._logged, self._lock = Counter(), set(), threading.Lock()
        self._closing = False
        self._own = UserFunctions(
            config.file,
            config.format_pattern,
            config.timeout,
            config.workers,
            config.concurrency,
            own,
        )
        self._has_own = config.file is not None or bool(own)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True)
        self._thread.start()
        try:
            self._functions = self._find(shipped or {})
        except BaseException:
            self.close()
            raise

    def submit(self, inputs: Sequence[RewardInput]) -> concurrent.futures.Future[np.ndarray]:
        """Start computing the rewards of n inputs; does not wait.

        The result is f32[n, R], NaN where a function failed for good; it may raise UserError.
        """
        return asyncio.run_coroutine_threadsafe(self._all(list(inputs)), self._loop)

    def failures(self) -> dict[str, int]:
        """Function -> number of samples on which it failed since the last call of this method."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return {name: counts[name] for name in self.names}

    def close(self):
        """Cancel what is still being computed, and end the thread."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    # ---- functions -------------------------------------------------------------------------------

    def _find(self, further: Mapping[str, Callable]) -> list[_Function]:
        """The functions that the config names. Raises UserError."""
        config = self.config
        local = {**local_functions(config), **further}
        own = self._load()
        of_pattern = {FORMAT} if config.format_pattern is not None else set()
        if both := ({*own} - of_pattern) & {*local, *JUDGED}:
            place = config.file or "rewards"
            raise UserError(f"{place}: {min(both)} is a shipped reward; choose another name")
        for name in self.names:
            if name not in (known := dict.fromkeys([*local, *JUDGED, *own])):
                raise UserError(
                    f"rewards.functions: unknown {name!r}; there are {', '.join(known)}"
                )
        # pure and quick: another thread would take longer than they do
        calls = {name: functools.partial(_at_once, call) for name, call in local.items()}
        if not set(self.names).isdisjoint(JUDGED):
            self.judge = Judge(config.judge)  # limits time, attempts and concurrency itself
            calls |= judged_functions(self.judge)
        calls |= {name: functools.partial(self._own.call, name) for name in own}
        if not {*own} & {*self.names}:
            self._loop.call_soon_threadsafe(self._own.close)
        # a pattern matches or takes too long every time alike
        retries = dict.fromkeys({*own} - of_pattern, config.retries)
        return [_Function(name, calls[name], retries.get(name, 0)) for name in self.names]

    def _load(self) -> list[str]:
        """The names of the functions that run in processes. Raises UserError."""
        file = self.config.file
        if file is not None and not Path(file).is_file():
            raise UserError(f"{file}: no such file; give the path of a Python file")
        if not self._has_own and (self.config.format_pattern is None or FORMAT not in self.names):
            return []
        return asyncio.run_coroutine_threadsafe(self._own.load(), self._loop).result()

    # ---- on the loop's thread --------------------------------------------------------------------

    async def _all(self, inputs: list[RewardInput]) -> np.ndarray:
        """f32[n, R] of n inputs."""
        digests = [hashlib.sha256(json.dumps(one, default=str).encode()).digest() for one in inputs]
        jobs = [
            self._one(function, one, digest)
            for one, digest in zip(inputs, digests, strict=True)
            for function in self._functions
        ]
        rewards = await asyncio.gather(*jobs)
        return np.array(rewards, np.float32).reshape(len(inputs), len(self._functions))

    async def _one(self, function: _Function, one: RewardInput, digest: bytes) -> float:
        """The function's reward, computed once for equal inputs; NaN if it failed for good."""
        key = (function.name, digest)
        if (task := self._cache.get(key)) is None:
            task = asyncio.create_task(self._call(function, one))
            if self.config.cache:
                self._cache[key] = task
            if len(self._cache) > self.config.cache:
                del self._cache[next(iter(self._cache))]
        try:
            return await task
        except UserError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            if self._closing:
                raise
            # Otherwise a client of the function has cancelled a task of its own.
            if (failure := environment_failure(error)) is not None:  # it would end all its calls
                raise UserError(f"{function.name}: {failure}") from error
            self._cache.pop(key, None)  # it may succeed another time
            self._note(function.name, error)
            return math.nan

    async def _call(self, function: _Function, one: RewardInput) -> float:
        """The reward, after at most 1 + retries attempts. Raises what the last one raised."""
        for attempt in itertools.count():
            try:
                return await _once(function, one)
            except UserError:
                raise
            except Exception:
                if attempt == function.retries:
                    raise
                await asyncio.sleep(self.config.backoff * 2**attempt)

    def _note(self, name: str, error: BaseException):
        """Count a failure, and log it if it is the first of its type."""
        kind = (name, getattr(error, "kind", type(error).__name__))
        with self._lock:
            self._counts[name] += 1
        if kind not in self._logged:
            self._logged.add(kind)
            logger.warning(
                "reward %s fails: %s (%s); such samples are left out and counted",
                name, " ".join(str(error).split()), kind[1],
            )  # fmt: skip

    async def _end(self):
        self._closing = True
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._own.close()
        if self.judge is not None:
            await self.judge.close()


def completion_texts(completions: Completions, tokenizer: ChatTokenizer) -> list[list[str]]:
    """The text of each completion, row by row."""
    return [
        [tokenizer.decode(ids[:n].tolist()).strip() for ids, n in zip(*row, strict=True)]
        for row in zip(completions.tokens, completions.lengths, strict=True)
    ]


class BatchRewards:
    """The rewards of one batch, submitted in parts while the next part is sampled.

    Each process computes its share of the rows; `result` gathers them.
    """

    def __init__(
        self,
        rewards: Rewards,
        tokenizer: ChatTokenizer,
        entries: Sequence[IndexEntry | None],
        max_new_tokens: int,
    ):
        """entries: of the rows of the whole batch; None: an empty row, which has no rewards."""
        self._rewards, self._tokenizer, self._entries = rewards, tokenizer, entries
        self._max_new_tokens = max_new_tokens
        self._pending: list[tuple[list[int], int, concurrent.futures.Future]] = []

    def submit(self, rows: slice, completions: Completions, evidence: np.ndarray | None = None):
        """Start scoring this process's share of the completions of these rows; does not wait.

        evidence: f64[rows, G], for the reward of that name.
        """
        numbers = range(len(self._entries))[rows]
        share = range(jax.process_index(), len(numbers), jax.process_count())
        mine = [place for place in share if self._entries[numbers[place]] is not None]
        taken = Completions(*(leaf[mine] for leaf in completions))
        numbers, samples = [numbers[place] for place in mine], taken.lengths.shape[1]
        texts = completion_texts(taken, self._tokenizer)
        inputs = [
            self._input(self._entries[number], texts[row][g], taken, row, g)
            for row, number in enumerate(numbers)
            for g in range(samples)
        ]
        if evidence is not None:
            for one, value in zip(inputs, evidence[mine].ravel().tolist(), strict=True):
                one.metadata["evidence"] = value
        self._pending.append((numbers, samples, self._rewards.submit(inputs)))

    def result(self, check: Callable[[], None] | None = None) -> np.ndarray:
        """f32[B, G, R] of all rows, the same in all processes; NaN where there is no reward.

        check: called about every POLL seconds while rewards are pending; what it raises ends the
        wait. With several processes it is not called: if one stopped waiting alone, the others
        would wait for it for ever. Raises UserError in all processes if it is raised in one.
        """
        if jax.process_count() > 1:
            check = None
        size, functions = len(self._entries), len(self._rewards.names)
        rewards = np.full((size, self._pending[0][1], functions), np.nan, np.float32)
        refused = None
        try:
            for rows, samples, pending in self._pending:
                while check and not concurrent.futures.wait([pending], POLL).done:
                    check()
                rewards[rows] = pending.result().reshape(len(rows), samples, functions)
        except UserError as error:
            refused = error
        if jax.process_count() > 1:
            # all processes come here: if one raised alone, the others would wait for ever
            if multihost_utils.process_allgather(np.array(refused is not None)).any():
                raise refused or UserError("rewards: another process was refused; see its log")
            # Each row has its rewards in one process, and NaN in the others.
            by_process = np.asarray(multihost_utils.process_allgather(rewards))
            known = ~np.isnan(by_process)
            rewards = np.where(known, by_process, 0).sum(axis=0, dtype=np.float32)
            rewards[~known.any(axis=0)] = np.nan
        elif refused is not None:
            raise refused
        return rewards

    def _input(
        self, entry: IndexEntry, text: str, completions: Completions, row: int, g: int
    ) -> RewardInput:
        metadata = entry.extra | {
            "id": entry.id,
            "completion_tokens": int(completions.lengths[row, g]),
            "max_new_tokens": self._max_new_tokens,
            "finish_reason": finish_reason(completions.stopped[row, g]),
        }
        return RewardInput(entry.question, text, entry.answer, metadata)


def parse_weights(text: str) -> dict[str, float]:
    """Function -> weight of a text such as "rouge=1,length=0.5"; a name alone weighs 1.

    A reward of weight 0 is computed and reported, but not trained on. Raises UserError for text of
    another form, a name given twice, and weights that are all 0.
    """
    weights = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        name, equals, weight = (part.strip() for part in word.partition("="))
        try:
            value = number(float(weight) if equals else 1.0)
        except ValueError:
            value = None
        if not name or value is None:
            raise UserError(f"rewards.functions: {word!r} is not NAME=WEIGHT with a number")
        if name in weights:
            raise UserError(f"rewards.functions: {name} is named twice; name it once")
        weights[name] = value
    if not any(weights.values()):
        raise UserError(
            f"rewards.functions: {text!r} rewards nothing; give NAME=WEIGHT,... with a weight that "
            "is not 0"
        )
    return weights


async def _once(function: _Function, one: RewardInput) -> float:
    """One call. Raises what it raises, and TypeError or ValueError for what is no number."""
    try:
        return number(await function.call(*one))
    except (Exception, asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:  # would end the loop, not the run
        raise RuntimeError(f"raised {type(error).__name__}") from error


async def _at_once(function: Callable, *arguments):
    """What `function` returns, called here and now."""
    return function(*arguments)
