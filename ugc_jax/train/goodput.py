"""How a run spent its time, over all its restarts: OUTPUT/goodput.json.

{"goodput": share of all seconds in steps that count, "seconds": all of them, "by": seconds by kind
 of work, "restarts": their number, "attempts": [one a start: see `_Attempt`],
 "earlier": {"attempts": number, "by": seconds by kind} of those before the last LISTED}

by: start (weights and data, of the first start), compile, steps (in GRPO with the rollout), data
(waited for a batch), rewards (waited for them), evaluation, checkpoints, export; lost: work after
the last checkpoint, which was made again, the time between an end and the next start, and that
start itself. The time after a stop by a signal is not counted: somebody wanted it.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping

from etils import epath

from ugc_jax import files
from ugc_jax.errors import EnvironmentFailure, UserError
from ugc_jax.progress import duration
from ugc_jax.train.checkpoint import is_remote
from ugc_jax.train.phases import Phases

logger = logging.getLogger(__name__)

LOCAL, REMOTE = 10.0, 60.0  # seconds between two writes of the file
KEPT = 8  # checkpoints of an attempt that it may have to go on from
LISTED = 32  # starts that the file has one by one: a run that is preempted for weeks has thousands
RUNNING, STOPPED, FINISHED = "running", "stopped", "finished"


@dataclasses.dataclass
class _Attempt:
    """A start of the run.

    began, written: Unix times. first: the step that it went on after. last: the last one it made.
    end: "running" (also after a kill), "stopped", "finished", or what went wrong. seconds: by kind.
    saved: step of a checkpoint -> seconds by kind until then.
    """

    began: float
    first: int
    last: int
    written: float = 0.0
    end: str = RUNNING
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    saved: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    def kept(self, step: int) -> dict[str, float]:
        """Return the seconds of what an attempt that goes on after `step` has of this one."""
        if step >= self.last:
            return self.seconds
        known = [int(number) for number in self.saved if int(number) <= step]
        return self.saved[str(max(known))] if known else {}


@dataclasses.dataclass
class _Earlier:
    """The starts before those that are listed. attempts: their number. by: as in the file."""

    attempts: int = 0
    by: dict[str, float] = dataclasses.field(default_factory=dict)


class Goodput:
    """Keeps goodput.json, in one process of a run."""

    def __init__(
        self,
        output: epath.PathLike,
        first: int,
        phases: Phases,
        clock: Callable[[], float] = time.time,
    ):
        """first: the step that the run goes on after. phases: since the start of the process.

        A file of an earlier start that cannot be read is left out with a warning.
        """
        self._path, self._phases, self._clock = epath.Path(output) / "goodput.json", phases, clock
        self._every = REMOTE if is_remote(output) else LOCAL
        self._earlier, self._before = self._read()
        now = clock()
        began = now - sum(phases.seconds().values())
        self._attempt = _Attempt(began, first, first)
        while len(self._before) >= LISTED:
            oldest, following, *_ = *self._before, self._attempt
            _add(self._earlier.by, _counted(oldest, following, not self._earlier.attempts))
            self._earlier.attempts += 1
            del self._before[0]
        self._warned = False
        self.write()

    def made(self, step: int):
        """A step was made; writes the file if the last time is a while ago."""
        self._attempt.last = step
        if self._clock() - self._attempt.written >= self._every:
            self.write()

    def saved(self, step: int):
        """A checkpoint is being written: what was done until now will not be lost."""
        saved = self._attempt.saved
        saved[str(step)] = self._phases.seconds()
        while len(saved) > KEPT:
            del saved[min(saved, key=int)]
        self.write()

    def end(self, how: str):
        """The attempt ends: STOPPED, FINISHED, or what went wrong."""
        self._attempt.end = how
        self.write()

    def write(self):
        """Write the file. A disk that refuses is logged once; it does not end the run here."""
        attempt = self._attempt
        attempt.written, attempt.seconds = self._clock(), self._phases.seconds()
        content = self._summary(attempt)
        try:
            files.write_json(self._path, content)
        except (UserError, EnvironmentFailure) as error:
            if not self._warned:
                logger.warning("%s", error)
            self._warned = True

    def values(self) -> dict[str, float]:
        """Return the share and the seconds by kind, as metrics "goodput/NAME"."""
        attempt = dataclasses.replace(self._attempt, seconds=self._phases.seconds())
        content = self._summary(attempt)
        by = {f"goodput/{name}_seconds": value for name, value in content["by"].items()}
        return {"goodput/share": content["goodput"]} | by

    def describe(self) -> str:
        """Return it in one line."""
        content = self._summary(self._attempt)
        by = sorted(content["by"].items(), key=lambda one: -one[1])
        parts = ", ".join(f"{name} {duration(value)}" for name, value in by if value >= 0.5)
        restarts = f" over {content['restarts']} restarts" if content["restarts"] else ""
        return f"{content['goodput']:.0%} of {duration(content['seconds'])}{restarts}: {parts}"

    def _summary(self, attempt: _Attempt) -> dict:
        """Return the content of the file. attempt: this one, as it is now."""
        attempts = [*self._before, attempt]
        by = {"lost": 0.0}
        _add(by, self._earlier.by)
        is_first = not self._earlier.attempts
        for one, following in zip(attempts, [*attempts[1:], None], strict=True):
            _add(by, _counted(one, following, is_first))
            is_first = False
        total = sum(by.values())
        content = {
            "goodput": round(by.get("steps", 0.0) / total, 4) if total else 0.0,
            "seconds": round(total, 1),
            "by": _rounded(by),
            "restarts": self._earlier.attempts + len(attempts) - 1,
            "attempts": [_attempt(one) for one in attempts],
        }
        if self._earlier.attempts:
            earlier = dataclasses.asdict(self._earlier)
            content["earlier"] = earlier | {"by": _rounded(self._earlier.by)}
        return content

    def _read(self) -> tuple[_Earlier, list[_Attempt]]:
        try:
            if not self._path.exists():
                return _Earlier(), []
            content = files.read_json(self._path, "remove it")
            earlier = _Earlier(**content.get("earlier", {}))
            return earlier, [_Attempt(**one) for one in content["attempts"]]
        except (UserError, OSError, TypeError, KeyError) as error:
            logger.warning("%s: earlier starts are left out (%s)", self._path, error)
            return _Earlier(), []


def _counted(attempt: _Attempt, following: _Attempt | None, is_first: bool) -> dict[str, float]:
    """Return the seconds of an attempt, and until the next one, by kind; "lost" is one of them.

    following: the next one. is_first: whether it is the first of the run, whose start counts.
    """
    kept = dict(attempt.seconds if following is None else attempt.kept(following.first))
    lost = sum(attempt.seconds.values()) - sum(kept.values())
    if not is_first:
        lost += kept.pop("start", 0.0)
    if following is not None and attempt.end not in (STOPPED, FINISHED):
        lost += max(0.0, following.began - attempt.written)
    return kept | {"lost": lost}


def _add(by: dict[str, float], further: Mapping[str, float]):
    for name, value in further.items():
        by[name] = by.get(name, 0.0) + value


def _attempt(attempt: _Attempt) -> dict:
    content = dataclasses.asdict(attempt)
    content["seconds"] = _rounded(attempt.seconds)
    content["saved"] = {step: _rounded(by) for step, by in attempt.saved.items()}
    return content


def _rounded(by: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in by.items()}
