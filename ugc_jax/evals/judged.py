"""The judged tasks: an LLM judge scores each caption, `repeats` times, on one event loop.

    with JudgedTasks(config, ["final_caption"]) as judge:
        samples, noise, unanswered = judge.judge("final_caption", items)

Answers of earlier runs, also of runs that were killed, come from the judge's cache. A caption
without a usable answer is a failure, not a zero; the next run asks about it again.
"""

import asyncio
import dataclasses
import logging
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from ugc_jax.errors import UserError
from ugc_jax.evals.prompts import RUBRICS, Item, Rubric, load_prompts
from ugc_jax.files import encodable
from ugc_jax.judge.client import Judge, JudgeConfig, JudgeError, Unreachable
from ugc_jax.progress import Progress
from ugc_jax.settings import check_minimum

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class JudgingConfig:
    """What the judge is asked about a caption."""

    # text file with the question of the one judged task, or a folder with TASK.txt for each; has
    # {reference} and {caption}, which are put in as they are, and asks for a JSON object:
    # final_caption {"visual": N, "audio": N, "details": N}, each N from 1 to 5; audio_caption
    # audio, details; visual_caption visual, details; background {"consistent": "yes" or "no"};
    # objects {"matched": M, "total": N}; a "reason" beside them is kept; none: a wording of our own
    prompt: str | None = None
    # how captions are scored: holistic, ratings from 1 to 5; structured, a verdict on each atomic
    # unit of the reference (tasks final_caption_units and so on); both
    form: Literal["holistic", "structured", "both"] = "holistic"
    # JSON Lines file of the units; none: beside the qa file, as final_caption_qa.units.jsonl
    units: str | None = None
    repeats: int = 1  # times that each caption is judged, for the mean and, from 2 on, the noise

    def __post_init__(self):
        check_minimum(self, repeats=1)
        if self.units is not None and self.form == "holistic":
            raise UserError("units is given, but form is holistic; set form=structured or both")


DEFAULT = JudgingConfig()


class Judged(NamedTuple):
    """The scores of a task.

    samples: one an item: {"id", "score" and columns in percent or "failure": "judge", "reference",
    "prediction", "note": the judge's reason, or the error}, and what else the rubric tells of its
    first usable answer.
    noise: standard deviation of the task's score from one judging of all captions to the next, in
    percent; None if no caption was judged twice.
    unanswered: number of questions (`repeats` a caption) without a usable answer; a caption's score
    is the mean over its usable answers.
    """

    samples: list[dict]
    noise: float | None
    unanswered: int


class NotAsked(JudgeError):
    """A question was not asked, as the judge had been given up."""


class JudgedTasks:
    """One judge for all judged tasks of a run; a context manager, not for use in an event loop."""

    def __init__(
        self,
        config: JudgeConfig,
        tasks: Iterable[str],
        judging: JudgingConfig = DEFAULT,
        rubrics: Mapping[str, Rubric] = RUBRICS,
    ):
        """tasks: names of the tasks to judge, of `rubrics`.

        Asks nothing yet. Raises UserError for a prompt, a judge or a cache that cannot be used.
        """
        self.config, self.judging, self._rubrics = config, judging, rubrics
        self._prompts = load_prompts(judging.prompt, tasks, rubrics)
        self._judge = Judge(config)
        self._runner = asyncio.Runner()

    def __enter__(self) -> "JudgedTasks":
        return self

    def __exit__(self, *_):
        try:
            self._runner.run(self._judge.close())
        finally:
            self._runner.close()
        usage = self._judge.usage
        cost = ""
        if self.config.price_in or self.config.price_out:
            cost = f", cost {usage.cost:.2f}, of it {usage.spent:.2f} in this run"
        logger.info(
            "judge %s: %d answers and %d from the cache, %d failed; %d requests; tokens of all "
            "answers: %d in, %d out%s",
            self.config.model, usage.answered, usage.cached, usage.failed, usage.requests,
            usage.tokens_in, usage.tokens_out, cost,
        )  # fmt: skip

    def judge(self, task: str, items: Sequence[tuple]) -> Judged:
        """The judge's scores of n `Item`s, or tuples of their fields, of one task.

        Logs all failures in one line. Raises UserError for a mistake in the config, such as a wrong
        key; after a KeyboardInterrupt all answers so far are in the cache.
        """
        items = [Item(*item) for item in items]
        rubric, prompt = self._rubrics[task], self._prompts[task]
        cases = [
            Case(
                prompt.filled(rubric.texts(item) | {"caption": item.prediction}),
                _parser(rubric, item),
            )
            for item in items
        ]
        outcomes = self.ask(task, cases, self.judging.repeats)
        failures = [o for all_ in outcomes for o in all_ if isinstance(o, JudgeError)]
        columns = rubric.columns
        samples = [_sample(*pair, columns) for pair in zip(items, outcomes, strict=True)]
        spread = noise([[o["score"] for o in _usable(all_)] for all_ in outcomes])
        return Judged(samples, spread, len(failures))

    def ask(self, label: str, cases: Sequence["Case"], repeats: int = 1) -> list[list]:
        """[n, repeats]: what `parse` of each of n cases gives, or the JudgeError without an answer.

        label: names the questions in the progress and in the line on failures. Raises as `judge`.
        """
        outcomes = self._runner.run(_Round(self._judge, label, cases, repeats).run())
        failures = [o for all_ in outcomes for o in all_ if isinstance(o, JudgeError)]
        _log_failures(label, failures, len(cases) * repeats)
        return outcomes

    def protocol(self, task: str) -> dict:
        """The settings that must be equal for two scores of the task to compare."""
        judge, temperature = self.config.model, self.config.temperature
        return {"judge": judge, "temperature": temperature, "prompt": self._prompts[task].protocol}

    def record(self) -> dict:
        """Model, settings and usage (judge.client.Usage) of the judge so far, as JSON."""
        names = dict.fromkeys(prompt.name for prompt in self._prompts.values())
        return {
            "model": self.config.model,
            "temperature": self.config.temperature,
            "prompt": ", ".join(names),
            "repeats": self.judging.repeats,
            "usage": dataclasses.asdict(self._judge.usage),
        }


def noise(scores: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation of a task's score from one judging of all its clips to the next.

    scores: for each clip the scores of its repeats. The task's score is a mean over n clips, which
    are judged independently, so its variance is the sum of the clips' variances over n squared.
    Clips with fewer than two scores are left out; None if there are no others.
    """
    variances = [statistics.variance(repeats) for repeats in scores if len(repeats) > 1]
    return math.sqrt(sum(variances)) / len(variances) if variances else None


class Case(NamedTuple):
    """A question, as messages, and a function: the judge's JSON object -> the outcome."""

    messages: list[dict]
    parse: Callable[[dict], object]


class _Question(NamedTuple):
    number: int  # of the case
    repeat: int
    case: Case


class _Round:
    """All questions of one task.

    The judge is given up when it is Unreachable, and after many failures in a row: the remaining
    questions would fail too, and cost money.
    """

    def __init__(self, judge: Judge, task: str, cases: Sequence[Case], repeats: int):
        self._judge, self._task = judge, task
        self._questions = [  # all captions once, before any of them twice
            _Question(number, repeat, case)
            for repeat in range(repeats)
            for number, case in enumerate(cases)
        ]
        # [n, repeats]: the parsed answer, or the error
        self.outcomes: list[list] = [[None] * repeats for _ in cases]
        # failures in all, failures in a row, and the limit of these
        self._failed, self._row, self._limit = 0, 0, max(20, 2 * judge.config.concurrency)

    async def run(self) -> list[list[dict | JudgeError]]:
        """`outcomes`, complete. Raises UserError for a mistake of the config."""
        new = []
        for question in self._questions:
            if self._judge.knows(*question.case, question.repeat):
                await self._ask(question)
            else:
                new.append(question)
        total, waiting = len(self._questions), iter(new)
        with Progress(total, "answer", self._task, initial=total - len(new)) as bar:

            async def work():
                for question in waiting:
                    await self._ask(question)
                    bar.update(f"{self._failed} failed")

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._judge.config.concurrency):
                        group.create_task(work())
            except ExceptionGroup as errors:  # UserErrors, all of one reason
                raise errors.exceptions[0] from None
        return self.outcomes

    async def _ask(self, question: _Question):
        try:
            if self._row >= self._limit:
                raise NotAsked("not asked, as the judge was given up")
            outcome = await self._judge.ask(*question.case, question.repeat)
            self._row = 0
        except JudgeError as error:
            outcome = error
            self._failed += 1
            self._row = self._limit if isinstance(error, Unreachable) else self._row + 1
        self.outcomes[question.number][question.repeat] = outcome


def _parser(rubric: Rubric, item: Item) -> Callable[[dict], dict]:
    """A function: the judge's JSON object -> {"score", columns, "note": its reason, if any}."""

    def parse(answer: dict) -> dict:
        scores, reason = rubric.scores(answer, item.sample), answer.get("reason")
        has_reason = isinstance(reason, str) and reason.strip()
        return scores | {"note": encodable(reason.strip())} if has_reason else scores

    return parse


def _usable(outcomes: Sequence[dict | JudgeError]) -> list[dict]:
    return [outcome for outcome in outcomes if not isinstance(outcome, JudgeError)]


def _sample(item: Item, outcomes: Sequence[dict | JudgeError], columns: Sequence[str]) -> dict:
    """A sample of `Judged`: means over the usable answers."""
    texts = {"reference": item.reference, "prediction": item.prediction}
    usable = _usable(outcomes)
    if not usable:
        return {"id": item.id, "failure": "judge", **texts, "note": str(outcomes[0])}
    means = {  # a sample has a column in all answers or in none
        name: statistics.fmean(o[name] for o in usable)
        for name in ("score", *columns)
        if name in usable[0]
    }
    facts = {key: value for key, value in usable[0].items() if key not in means}
    return {"id": item.id, **means, **texts, **facts}


def _log_failures(task: str, failures: Sequence[JudgeError], asked: int):
    """Log the failures of a task in one line: of each type the count and the first message."""
    if not failures:
        return
    counts, first = Counter(map(type, failures)), {type(e): e for e in reversed(failures)}
    kinds = "; ".join(f"{count} times: {first[kind]}" for kind, count in counts.most_common())
    logger.warning(
        "%s: %d of %d questions to the judge have no usable answer (%s); run again to ask them "
        "again",
        task, len(failures), asked, kinds,
    )  # fmt: skip
