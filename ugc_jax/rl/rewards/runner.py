"""Rewards of sampled captions, computed while the device works.

    Rewards        runs the reward functions on a thread of its own: n inputs -> f32[n, R]
    BatchRewards   the rewards of one batch, shared among the processes: f32[B, G, R]

A reward function is `(prompt, completion, reference, metadata) -> float`, or an `async def` of the
same. prompt: the user's text. reference: the reference answer, or None. metadata: the other columns
of the manifest's row, and "id", "completion_tokens", "max_new_tokens", "finish_reason" ("stop" or
"length"). A function that raises, returns no finite number or takes too long is called again
(`retries`); after that its reward of this sample is NaN. Failures are counted, and the first of
each kind is logged. Only a UserError ends the run: a wrong key of a judge fails for every sample.

A judge's server that dies does not cost a step: its questions wait for it, up to `judge.wait`
minutes, with a line in the log when the wait begins and when it ends (judge/client.py).
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
import logging
import math
import runpy
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from ugc_jax import settings
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.data.records import IndexEntry
from ugc_jax.errors import UserError, environment_failure
from ugc_jax.generate.engine import finish_reason
from ugc_jax.judge.client import Judge, JudgeConfig
from ugc_jax.rl.rewards.judged import JUDGED, judged_functions
from ugc_jax.rl.rewards.local import LocalConfig, local_functions
from ugc_jax.rl.rows import Completions

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RewardConfig(LocalConfig):
    """Rewards of sampled captions.

    Functions that are shipped: length, repetition, format, rouge, dialogue; by an LLM judge:
    holistic, checklist, mcq; and those that the job adds.
    """

    functions: str = "rouge=1,length=0.5"  # what is rewarded, with weights: NAME=WEIGHT,...
    file: str | None = None  # Python file with functions of your own: REWARDS = {"name": function}
    # seconds that one call may take; a judge has limits of its own
    timeout: float = 60.0
    retries: int = 2  # times that a call of your own functions is made again after it failed
    backoff: float = 1.0  # seconds before the first retry; doubles each time
    workers: int = 4  # calls of ordinary functions at a time, each in a thread
    concurrency: int = 32  # calls of each async function at a time
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
    """A reward function and how it is called.

    timeout: seconds; None for a function that limits itself. slots: held during a call.
    """

    name: str
    call: Callable[[str, str, str | None, dict], Coroutine]
    timeout: float | None = None
    retries: int = 0
    slots: contextlib.AbstractAsyncContextManager = contextlib.nullcontext()


class Rewards:
    """Computes rewards on an event loop in a thread of its own, until `close`."""

    def __init__(self, config: RewardConfig, shipped: Mapping[str, Callable] | None = None):
        """shipped: functions by name beside those of local.py and judged.py, pure and quick.

        Raises UserError for unknown functions, a file that cannot be used, a judge not set.
        """
        self.config = config
        weights = parse_weights(config.functions)
        self.names: tuple[str, ...] = tuple(weights)
        self.weights = np.array(list(weights.values()), np.float32)
        self.judge: Judge | None = None  # the LLM judge, where a function needs it
        self._workers = asyncio.Semaphore(config.workers)
        self._functions = self._find(shipped or {})
        self._cache: dict[tuple[str, bytes], asyncio.Task] = {}  # the oldest first
        self._counts, self._logged, self._lock = Counter(), set(), threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True)
        self._thread.start()

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
        own = _load_functions(config.file)
        if both := own.keys() & {*local, *JUDGED}:
            raise UserError(f"{config.file}: {min(both)} is a shipped reward; choose another name")
        for name in self.names:
            if name not in (known := [*local, *JUDGED, *own]):
                raise UserError(
                    f"rewards.functions: unknown {name!r}; there are {', '.join(known)}"
                )
        # pure and quick: a thread would take longer than they do
        calls = {name: functools.partial(_at_once, call) for name, call in local.items()}
        if not set(self.names).isdisjoint(JUDGED):
            self.judge = Judge(config.judge)  # limits time, attempts and concurrency itself
            calls |= judged_functions(self.judge)
        return [
            self._limited(name, own[name]) if name in own else _Function(name, calls[name])
            for name in self.names
        ]

    def _limited(self, name: str, call: Callable) -> _Function:
        """A function of the user's, with the limits of the config."""
        slots = self._workers
        if _is_async(call):
            slots = asyncio.Semaphore(self.config.concurrency)
        else:
            call = functools.partial(_in_thread, call)
        return _Function(name, call, self.config.timeout, self.config.retries, slots)

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
        except Exception as error:
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

    def _note(self, name: str, error: Exception):
        """Count a failure, and log it if it is the first of its type."""
        kind = (name, type(error))
        with self._lock:
            self._counts[name] += 1
        if kind not in self._logged:
            self._logged.add(kind)
            logger.warning(
                "reward %s fails: %s (%s); such samples are left out and counted",
                name, " ".join(str(error).split()), type(error).__name__,
            )  # fmt: skip

    async def _end(self):
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
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

    def submit(self, rows: slice, completions: Completions):
        """Start scoring this process's share of the completions of these rows; does not wait."""
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
        self._pending.append((numbers, samples, self._rewards.submit(inputs)))

    def result(self) -> np.ndarray:
        """f32[B, G, R] of all rows, the same in all processes; NaN where there is no reward.

        Raises UserError in all processes if it is raised in one of them.
        """
        size, functions = len(self._entries), len(self._rewards.names)
        rewards = np.full((size, self._pending[0][1], functions), np.nan, np.float32)
        refused = None
        try:
            for rows, samples, pending in self._pending:
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
            value = float(weight) if equals else 1.0
        except ValueError:
            value = math.nan
        if not name or not math.isfinite(value):
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


def _load_functions(file: str | None) -> dict[str, Callable]:
    """REWARDS of a user's Python file; UserError if it cannot be used."""
    if file is None:
        return {}
    if not Path(file).is_file():
        raise UserError(f"rewards.file: {file}: no such file; give the path of a Python file")
    with settings.user_code(file):
        found = runpy.run_path(file).get("REWARDS")
    if not isinstance(found, dict) or not found:
        raise UserError(f'{file}: defines no REWARDS; write REWARDS = {{"name": function}}')
    for name, function in found.items():
        if not isinstance(name, str) or not callable(function):
            raise UserError(
                f"{file}: REWARDS[{name!r}] is not a function; give a function or async def"
            )
    return found


def _is_async(function: Callable) -> bool:
    """True for an `async def`, and for an object that is called as one."""
    called = getattr(function, "__call__", None)  # noqa: B004 (its method is what is looked at)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


async def _once(function: _Function, one: RewardInput) -> float:
    """One call within its limits. Raises what it raises, and TypeError or ValueError for no number.

    The clock starts when the call does, not while it waits for a free slot.
    """
    async with function.slots:
        try:
            async with asyncio.timeout(function.timeout) as clock:
                value = float(await function.call(*one))
        except TimeoutError:
            if clock.expired():
                raise TimeoutError(f"took longer than {function.timeout:g} s") from None
            raise
        except (SystemExit, KeyboardInterrupt) as error:  # would end the loop, not the run
            raise RuntimeError(f"raised {type(error).__name__}") from error
    if not math.isfinite(value):
        raise ValueError(f"returned {value}, not a finite number")
    return value


async def _at_once(function: Callable, *arguments):
    """What `function` returns, called here and now."""
    return function(*arguments)


async def _in_thread(function: Callable, *arguments):
    """What `function` returns, called in a thread of its own.

    Not in a pool: a call that never ends would block a pool's worker, and the end of the process.
    """
    done = concurrent.futures.Future()
    done.set_running_or_notify_cancel()  # from here on, giving up waiting leaves it alone

    def work():
        try:
            done.set_result(function(*arguments))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, name="reward", daemon=True).start()
    return await asyncio.wrap_future(done)
