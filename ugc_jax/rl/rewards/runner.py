"""Rewards of sampled captions: several functions at once, beside the device's work.

    Rewards.submit(samples) -> Pending     at once; a thread of its own does the rest
    Pending.result()        -> f32[n, R]   NaN where a function failed for good

A reward function is `(prompt, completion, reference, metadata) -> float`, or an `async def` of the
same. prompt: the user's text. reference: the answer on record, or None. metadata: the other columns
of the manifest's row, and "id", "completion_tokens", "max_new_tokens", "finish_reason" ("stop" or
"length"). One that raises, or returns no finite number, is called again (`retries`), and then has
failed for that sample: NaN, counted, and logged once. So it is with one that takes too long. Only
a UserError ends the run: a judge's wrong key would fail for every sample.

A judge's server that dies does not cost a step: its questions wait for it, up to `judge.wait`
minutes, with a line in the log when the waiting begins and when it ends (judge/client.py).
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

import numpy as np

from ugc_jax import settings
from ugc_jax.errors import UserError
from ugc_jax.judge.client import Judge, JudgeConfig
from ugc_jax.rl.rewards import judged as judged_rewards
from ugc_jax.rl.rewards import local as local_rewards

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RewardConfig(local_rewards.LocalConfig):
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
                raise UserError(f"rewards.{field} is {getattr(self, field)}; give a number above 0")
        for field in ("retries", "backoff", "cache"):
            if not getattr(self, field) >= 0:
                raise UserError(f"rewards.{field} is {getattr(self, field)}; give 0 or more")


class Sample(NamedTuple):
    """What a reward function is called with."""

    prompt: str
    completion: str
    reference: str | None
    metadata: dict


class Pending:
    """Rewards that are being computed."""

    def __init__(self, future: concurrent.futures.Future):
        self._future = future

    def result(self) -> np.ndarray:
        """f32[n, R], once all are there; NaN where a function failed. Raises UserError."""
        return self._future.result()


class _Function(NamedTuple):
    """A reward function and how it is called. timeout None: it has limits of its own."""

    name: str
    call: Callable[[str, str, str | None, dict], Coroutine]
    slots: contextlib.AbstractAsyncContextManager  # held during a call
    timeout: float | None = None
    retries: int = 0


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

    def submit(self, samples: Sequence[Sample]) -> Pending:
        """Begin to compute the rewards of n samples; does not wait."""
        return Pending(asyncio.run_coroutine_threadsafe(self._all(list(samples)), self._loop))

    def failures(self) -> dict[str, int]:
        """Function -> samples on which it failed since this was last asked."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return {name: counts[name] for name in self.names}

    def close(self):
        """Give up what is still being computed, and end the thread."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    # ---- functions -------------------------------------------------------------------------------

    def _find(self, further: Mapping[str, Callable]) -> list[_Function]:
        """The functions that the config names. Raises UserError."""
        config = self.config
        local = {**local_rewards.functions(config), **further}
        own = _own_functions(config.file)
        shipped = {*local, *judged_rewards.NAMES}
        if both := shipped.intersection(own):
            raise UserError(f"{config.file}: {min(both)} is a shipped reward; choose another name")
        for name in self.names:
            if name not in shipped and name not in own:
                known = ", ".join([*local, *judged_rewards.NAMES, *own])
                raise UserError(f"rewards.functions: unknown {name!r}; there are {known}")
        judged = {}
        if not set(self.names).isdisjoint(judged_rewards.NAMES):
            self.judge = Judge(config.judge)
            judged = judged_rewards.functions(self.judge)
        return [self._function(name, local, judged, own) for name in self.names]

    def _function(self, name: str, local: dict, judged: dict, own: dict) -> _Function:
        config = self.config
        if name in judged:  # the judge limits time, attempts and concurrency
            return _Function(name, judged[name], contextlib.nullcontext())
        if name in local:  # pure and quick: a thread would take longer than they do
            return _Function(
                name, functools.partial(_at_once, local[name]), contextlib.nullcontext()
            )
        if _is_async(own[name]):
            slots = asyncio.Semaphore(config.concurrency)
            return _Function(name, own[name], slots, config.timeout, config.retries)
        call = functools.partial(_in_thread, own[name])
        return _Function(name, call, self._workers, config.timeout, config.retries)

    # ---- on the loop's thread --------------------------------------------------------------------

    async def _all(self, samples: list[Sample]) -> np.ndarray:
        """f32[n, R] of n samples."""
        keys = [_digest(sample) for sample in samples]
        jobs = [
            self._one(function, sample, key)
            for sample, key in zip(samples, keys, strict=True)
            for function in self._functions
        ]
        rewards = await asyncio.gather(*jobs)
        return np.array(rewards, np.float32).reshape(len(samples), len(self._functions))

    async def _one(self, function: _Function, sample: Sample, digest: bytes) -> float:
        """The function's reward, computed once for equal samples; NaN if it failed for good."""
        key = (function.name, digest)
        if (task := self._cache.get(key)) is None:
            task = asyncio.create_task(self._call(function, sample))
            if self.config.cache:
                self._cache[key] = task
            if len(self._cache) > self.config.cache:
                del self._cache[next(iter(self._cache))]
        try:
            return await task
        except UserError:
            raise
        except Exception as error:
            self._cache.pop(key, None)  # it may succeed another time
            self._note(function.name, error)
            return math.nan

    async def _call(self, function: _Function, sample: Sample) -> float:
        """The reward, after as many attempts as the function has. Raises what the last one did."""
        for attempt in itertools.count():
            try:
                return await _once(function, sample)
            except UserError:
                raise
            except Exception:
                if attempt == function.retries:
                    raise
                await asyncio.sleep(self.config.backoff * 2**attempt)

    def _note(self, name: str, error: Exception):
        """Count a failure, and log it if it is the first of its kind."""
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


def parse_weights(text: str) -> dict[str, float]:
    """Function -> weight of a text such as "rouge=1,length=0.5"; a name alone weighs 1.

    A reward of weight 0 is computed and reported, and teaches nothing. Raises UserError for text of
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


def _own_functions(file: str | None) -> dict[str, Callable]:
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
                f"{file}: REWARDS[{name!r}] is no function; give a function or async def"
            )
    return found


def _digest(sample: Sample) -> bytes:
    return hashlib.sha256(json.dumps(sample, default=str).encode()).digest()


def _is_async(function: Callable) -> bool:
    """It is an `async def`, or an object that is called as one."""
    called = getattr(function, "__call__", None)  # noqa: B004 (its method is what is looked at)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


async def _once(function: _Function, sample: Sample) -> float:
    """One call within its limits. Raises what it raises, and TypeError or ValueError for no number.

    The clock starts when the call does, not while it waits for a free slot.
    """
    async with function.slots:
        try:
            async with asyncio.timeout(function.timeout) as clock:
                value = float(await function.call(*sample))
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
