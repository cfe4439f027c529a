"""A labelling run: the passes of each clip, their verification, and the files of results.

    clip -> material -> sound, picture -> both [-> second] -> verify -> row
                                          ^ asked once more with the reason, then rejected

Beside the output: OUTPUT.answers.jsonl (the journal, see journal.py), OUTPUT.settings.json,
OUTPUT.totals.json and the rejected clips. Rows follow from the journal alone, in the order of the
clips: whatever was killed and however often, the output is that of an undisturbed run.
"""

import asyncio
import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ugc_jax import files
from ugc_jax.data import annotation
from ugc_jax.data.annotation import Stage
from ugc_jax.data.workers import Outcome as Read
from ugc_jax.data.workers import Pool, ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.judge.client import Judge, JudgeConfig, JudgeError
from ugc_jax.label import material, verify
from ugc_jax.label.asking import Answer, Asker, Budget, OutOfBudget, Pace, Unanswered
from ugc_jax.label.journal import Journal
from ugc_jax.label.material import Material, Wanted
from ugc_jax.label.prompts import Prompts
from ugc_jax.label.settings import AskingConfig, TeacherConfig, VerifyConfig
from ugc_jax.label.support import Supporter, Unexplained
from ugc_jax.label.teacher import Question, Teacher
from ugc_jax.label.verify import Answers, Fault, Verdict
from ugc_jax.media.find import place
from ugc_jax.progress import Progress

logger = logging.getLogger(__name__)

MakeTeacher = Callable[[TeacherConfig, AskingConfig, dict], Teacher]


class Places(NamedTuple):
    """The files of a run."""

    output: Path
    rejected: Path

    def beside(self, name: str) -> Path:
        """Return the path OUTPUT.name."""
        return self.output.with_name(f"{self.output.name}.{name}")

    @property
    def journal(self) -> Path:
        """The journal."""
        return self.beside("answers.jsonl")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run does. second: the config of a second teacher, None without. support: what says
    which words of a caption the media support, None without; closed by the run.
    """

    prompts: Prompts
    question: str
    teacher: TeacherConfig
    second: TeacherConfig | None
    asking: AskingConfig
    verify: VerifyConfig
    judge: JudgeConfig | None
    reading: ReadingConfig
    max_cost: float | None
    support: Supporter | None = None

    @property
    def wanted(self) -> Wanted:
        """What the teachers take of a clip."""
        for one in (self.teacher, self.second):
            if one is not None and one.kind == "openai" and one.picture == "stills":
                return Wanted(one.stills, one.side)
        return Wanted()

    @functools.cached_property
    def verification(self) -> str:
        """16 hexadecimal digits of what makes rows of answers: the question and what is checked."""
        judge = self.judge and (self.judge.model, self.judge.temperature)
        what = [self.question, dataclasses.asdict(self.verify), judge]
        if self.support is not None:
            what.append(self.support.identity)
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


class Labelled(NamedTuple):
    """A clip with an outcome. reason: why it was rejected, None if it was not.

    retried: a further run asks again. label: the provenance, for the row.
    """

    caption: str | None
    label: dict
    reason: str | None = None
    retried: bool = False


@dataclasses.dataclass
class Summary:
    """Counts of a run. open: clips without an outcome in this run or an earlier one."""

    clips: int = 0
    labelled: int = 0
    rejected: int = 0
    open: int = 0
    retried: int = 0
    reasons: Counter = dataclasses.field(default_factory=Counter)
    is_out_of_budget: bool = False


def _differences(before: object, now: object) -> str:
    """What differs between two noted settings, in words: "kind was a, is b; ..."."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return f"it was {before!r:.100}, is {now!r:.100}"
    keys = [key for key in before | now if before.get(key) != now.get(key)]
    return "; ".join(f"{key} was {before.get(key)!r:.60}, is {now.get(key)!r:.60}" for key in keys)


def check_places(places: Places, plan: Plan) -> dict:
    """Return the settings to note beside the output. Raises UserError for files of another run.

    Verification and limits may differ from those of earlier runs: rows are made anew from the
    answers. What decides the answers may not: every clip would be asked, and paid, again.
    """
    note = places.beside("settings.json")
    how: dict = {"teacher": plan.teacher.identity, "prompts": plan.prompts.hash}
    if plan.second is not None:
        how["second"] = plan.second.identity
    before = {}
    if note.exists():
        before = files.read_json(note, "choose another output")
        for name, value in how.items():
            # A second teacher may come, and go, as verification may change.
            if before.get(name) != value and not (name == "second" and not before.get(name)):
                raise UserError(
                    f"{places.output}: its answers were asked with another {name} "
                    f"({_differences(before.get(name), value)}), so every clip would be asked "
                    "again; choose another output"
                )
    else:
        for path in places:
            if path.exists():
                raise UserError(
                    f"{path}: exists, and is not of a labelling run that this one continues; "
                    f"choose another {'output' if path == places.output else 'rejected'}"
                )
    if places.output.resolve() == places.rejected.resolve():
        raise UserError(f"rejected: {places.rejected} is the output, too; choose another file")
    return before | how


class Run:
    """One run over some clips."""

    def __init__(
        self, plan: Plan, places: Places, clips: Sequence[str], make: MakeTeacher, journal: Journal
    ):
        """make: a teacher of a config, with the schemas of the stages."""
        self.plan, self.places, self.clips = plan, places, list(clips)
        self._make, self._journal = make, journal
        self._judge: Judge | None = None
        self._judge_cost = 0.0
        self.budget = Budget(journal, plan.max_cost, self._other_cost)
        # By the clip's number. Copies of a clip share a digest, and the answers.
        self.outcomes: dict[int, Labelled] = {}
        # The rows of earlier runs by path, for clips that this run does not reach.
        self._earlier = {
            kind: _rows(file, plan.verification) for kind, file in places._asdict().items()
        }
        self._digests: dict[int, str] = {}

    def _other_cost(self) -> float:
        return self._judge_cost if self._judge is None else self._judge.usage.cost

    async def label(self):
        """Label all clips; `outcomes` has those that are finished, however this ends.

        Raises UserError for what ends the job.
        """
        plan = self.plan
        schemas = {stage: annotation.schema(stage) for stage in annotation.STAGES}
        pace, slots = Pace(plan.asking), asyncio.Semaphore(plan.asking.concurrency)
        teachers, askers = [], []
        for config in filter(None, (plan.teacher, plan.second)):
            teachers.append(self._make(config, plan.asking, schemas))
            shared = self._journal, pace, self.budget, slots
            askers.append(Asker(teachers[-1], config, plan.asking, *shared))
        if plan.judge is not None:
            self._judge = Judge(plan.judge)
        try:
            await self._label_all(_Passes(plan, askers[0], askers[-1], self._judge))
        finally:
            self._judge_cost = self._other_cost()
            for one in (*teachers, self._judge, plan.support):
                if one is not None:
                    await one.close()
            self._judge = None

    async def _label_all(self, passes: "_Passes"):
        first: dict[str, asyncio.Task] = {}  # digest -> the clip that is asked about
        room = asyncio.Semaphore(self.plan.asking.concurrency)
        tasks: list[asyncio.Task] = []
        with Progress(len(self.clips), "clip", "labelling") as bar:

            async def finish(number: int, work: asyncio.Task):
                try:
                    outcome = await asyncio.shield(work)
                except OutOfBudget:
                    return
                self.outcomes[number] = outcome
                bar.update(f"cost {self.budget.spent:.2f}")

            async def one(clip: Material):
                try:
                    return await passes.label(clip)
                finally:
                    room.release()

            def unless_failed():
                for task in tasks:
                    if task.done() and not task.cancelled() and task.exception() is not None:
                        raise task.exception()

            works: list[asyncio.Task] = []
            try:
                async for number, read in self._read():
                    unless_failed()
                    if self.budget.is_used_up:
                        break
                    if isinstance(read.value, UserError):
                        reason = f"unreadable: {read.value}"
                        self.outcomes[number] = Labelled(None, {}, reason, retried=True)
                        bar.update(f"cost {self.budget.spent:.2f}")
                        continue
                    self._digests[number] = read.value.digest
                    if read.value.digest not in first:
                        await room.acquire()
                        work = asyncio.create_task(one(read.value))
                        works.append(work)
                        first[read.value.digest] = work
                    tasks.append(asyncio.create_task(finish(number, first[read.value.digest])))
                await asyncio.gather(*tasks)
            finally:
                for task in (*works, *tasks):
                    task.cancel()
                await asyncio.gather(*works, *tasks, return_exceptions=True)

    async def _read(self) -> AsyncIterator[tuple[int, Read]]:
        """Yield (number, what became of reading it) of each clip, read ahead by processes."""
        read = functools.partial(material.read, wanted=self.plan.wanted)
        with Pool(read, self.plan.reading) as pool:
            outcomes = pool.read(self.clips, ahead=pool.workers + 1)
            for number in range(len(self.clips)):
                yield number, await asyncio.to_thread(next, outcomes)

    # ---- results

    def write(self) -> Summary:
        """Write the rows of all finished clips, the rejected ones and the totals, atomically.

        Clips that this run did not reach keep the row of an earlier run that verified alike;
        other rows are made again, of the answers that there are, when a run reaches their clip.
        """
        rows, rejected = [], []
        summary = Summary(len(self.clips), is_out_of_budget=self.budget.is_used_up)
        seen: dict[str, str] = {}
        for number, clip in enumerate(self.clips):
            outcome = self.outcomes.get(number)
            path = written_path(clip, self.places.output)
            if outcome is None:
                if path in self._earlier["output"]:
                    rows.append(self._earlier["output"][path])
                elif path in self._earlier["rejected"]:
                    row = self._earlier["rejected"][path]
                    rejected.append(row)
                    summary.reasons[str(row.get("reason")).partition(":")[0]] += 1
                else:
                    summary.open += 1
                continue
            label = outcome.label | {"verification": self.plan.verification}
            digest = self._digests.get(number)
            if digest in seen:  # asked and paid once
                label |= {"copy_of": seen[digest], "cost": 0.0}
            elif digest is not None:
                seen[digest] = path
            row = self._row(path, outcome.caption) | {"label": label}
            if outcome.reason is None:
                rows.append(row)
            else:
                rejected.append(row | {"reason": outcome.reason})
                summary.reasons[outcome.reason.partition(":")[0]] += 1
                summary.retried += outcome.retried
        summary.labelled, summary.rejected = len(rows), len(rejected)
        for file, content in ((self.places.output, rows), (self.places.rejected, rejected)):
            files.write_text(file, files.to_lines(content), "choose another output")
        files.write_json(self.places.beside("totals.json"), self._totals(summary), indent=2)
        return summary

    def account(self) -> str:
        """Return requests, tokens and cost of all runs so far, in one line."""
        totals, unknown = self._journal.totals, self._journal.unknown
        text = (
            f"{totals.requests} requests: {totals.answers} answers, {totals.useless} of no use, "
            f"{totals.failed} failed; tokens: {totals.tokens_in} in, {totals.tokens_out} out; cost "
            f"{self.budget.spent:.4f}"
        )
        if unknown:
            text += f"; {unknown} requests broke off, and may have been charged uncounted"
        return text

    def _row(self, path: str, caption: str | None) -> dict:
        row: dict = {"videos": [path]}
        if caption is not None:
            question = {"role": "user", "content": f"<video>{self.plan.question}"}
            answer = {"role": "assistant", "content": caption}
            row |= {"messages": [question, answer], "solution": caption}
        return row

    def _totals(self, summary: Summary) -> dict:
        journal = self._journal
        counts = dataclasses.asdict(summary) | {"reasons": dict(summary.reasons)}
        totals = dataclasses.asdict(journal.totals) | {"unknown": journal.unknown}
        cost = {"cost": self.budget.spent, "judge_cost": self._other_cost()}
        return counts | totals | cost | {"versions": journal.versions}


def _rows(file: Path, verification: str) -> dict[str, dict]:
    """Return the rows of an earlier run by the path of their clip.

    Left out is what is no row, or was verified otherwise: its row is made again from the answers
    in the journal.
    """
    if not file.exists():
        return {}
    rows = (line.value for line in files.read_lines(file, "move it away", errors="replace"))
    return {
        str(row["videos"][0]): row
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("videos"), list) and row["videos"]
        if isinstance(row.get("label"), dict)
        if row["label"].get("verification") == verification
    }


def written_path(clip: str, output: Path) -> str:
    """Return the path of a clip in a row: relative to the output's folder if the clip is in it."""
    folder, file = place(output).parent, place(clip)
    return os.path.relpath(file, folder) if file.is_relative_to(folder) else str(file)


class _Passes:
    """The passes of a clip; one object for all clips of a run."""

    def __init__(self, plan: Plan, first: Asker, second: Asker, judge: Judge | None):
        """second: the asker of a second caption; the first one for a second sample."""
        self._plan, self._first, self._second, self._judge = plan, first, second, judge

    async def label(self, clip: Material) -> Labelled:
        """Ask and verify. Raises OutOfBudget, and UserError for what ends the job."""
        state = _State(clip)
        try:
            await _all(
                self._ask(state, stage)
                for stage, part in (("sound", clip.sound), ("picture", clip.picture))
                if part is not None
            )
            await self._ask(state, "both")
            if self._plan.verify.compare_with != "none":
                await self._ask(state, "second")
            while (verdict := await self._verify(state)).faults:
                again = state.next_to_ask(verdict.faults)
                if again is None:
                    return self._outcome(state, verdict, str(verdict.faults[0]))
                await self._ask(state, *again)
        except Unanswered as error:
            return self._outcome(state, None, error.reason, retried=not error.final)
        except (JudgeError, Unexplained) as error:
            return self._outcome(state, None, f"not verified: {error}", retried=True)
        return self._outcome(state, verdict)

    async def _ask(self, state: "_State", stage: str, reason: str | None = None):
        """Ask a stage, or "second", and keep its answer in the state."""
        asked = "both" if stage == "second" else stage
        drafts = (state.value("sound"), state.value("picture")) if asked == "both" else ()
        text = self._plan.prompts.question(asked, *drafts, reason=reason)
        asker, sample = self._first, 0
        if stage == "second":
            asker, sample = self._second, int(self._plan.verify.compare_with == "sample")
        question = Question(state.clip.digest, state.clip, asked, text, sample)
        try:
            answer = await asker.ask(question, functools.partial(annotation.read, asked))
        except Unanswered as error:
            raise Unanswered(f"{error.reason} (pass {stage})", error.final) from None
        state.keep(stage, answer, reason)

    async def _verify(self, state: "_State") -> Verdict:
        config, answers = self._plan.verify, state.answers()
        alone = verify.check_alone(answers, config)
        if alone.faults:
            return alone
        if self._judge is None:
            across = verify.check_by_rules(answers, config)
        else:
            across = await verify.check_by_judge(answers, config, self._judge)
        checks = alone.checks | across.checks
        if across.faults or self._plan.support is None:
            return Verdict(across.faults, checks)
        support = await self._plan.support.of(state.clip, answers.both.caption)
        told = verify.check_support(support, config)
        return Verdict(told.faults, checks | told.checks)

    def _outcome(
        self,
        state: "_State",
        verdict: Verdict | None,
        reason: str | None = None,
        retried: bool = False,
    ) -> Labelled:
        config, both = self._plan.teacher, state.given.get("both")
        versions = {answer.version for stage, answer in state.given.items() if stage != "second"}
        label = {
            "teacher": config.kind,
            "model": config.model,
            "model_version": next(iter(versions), None),
            "prompts": self._plan.prompts.hash,
            "temperature": config.temperature,
            "cost": round(state.cost, 9),
            "checks": ({} if verdict is None else verdict.checks) | {"asked_again": state.again},
        }
        for stage in annotation.STAGES:
            value = state.value(stage)
            label[stage] = None if value is None else annotation.to_json(value)
        if (second := state.given.get("second")) is not None:
            asker = self._second.config
            label["second"] = {
                "teacher": asker.kind,
                "model": asker.model,
                "model_version": second.version,
                "caption": second.value.caption,
            }
        caption = None if both is None else both.value.caption
        return Labelled(caption, label, reason, retried)


class _State:
    """What is known of a clip so far.

    earlier: the first answers of what was asked again. again: what that was, and why.
    """

    def __init__(self, clip: Material):
        self.clip, self.cost = clip, 0.0
        self.given: dict[str, Answer] = {}
        self.earlier: dict[str, Stage] = {}
        self.again: list[dict[str, str]] = []

    def keep(self, stage: str, answer: Answer, reason: str | None):
        """Keep an answer. reason: of one that was asked again."""
        if stage in self.given:
            self.earlier[stage] = self.given[stage].value
        self.given[stage] = answer
        self.cost += answer.cost
        if reason is not None:
            self.again.append({"pass": stage, "reason": reason})

    def value(self, stage: str):
        """Return the answer to a stage, None without."""
        return self.given[stage].value if stage in self.given else None

    def answers(self) -> Answers:
        """Return the answers, of which that of both is there."""
        values = map(self.value, ("sound", "picture", "both", "second"))
        return Answers(*values, earlier=self.earlier)

    def next_to_ask(self, faults: Sequence[Fault]) -> tuple[str, str] | None:
        """Return (stage, reason) to ask once more; None if one of the faults cannot be mended.

        Of two answers that contradict each other the witness is asked first: if it was the wrong
        one, the caption stays as it is.
        """
        done = {one["pass"] for one in self.again}
        found = []
        for fault in faults:
            stages = [stage for stage in (fault.witness, fault.stage) if stage]
            left = [stage for stage in stages if stage not in done]
            if not left:
                return None
            found.append((left[0], fault))
        stage = found[0][0]
        return stage, "; ".join(str(fault) for one, fault in found if one == stage)


async def _all(works):
    """Await all, then raise the first exception: what is under way is paid, and is waited for."""
    for one in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(one, BaseException):
            raise one


def run(plan: Plan, places: Places, clips: Sequence[str], make: MakeTeacher) -> Summary:
    """Label clips and write the files, also of what is finished when an exception ends it.

    Raises UserError for settings, files or a server that cannot be used.
    """
    how = check_places(places, plan)
    with Journal(places.journal) as journal:
        files.write_json(places.beside("settings.json"), how, "choose another output", indent=2)
        work = Run(plan, places, clips, make, journal)
        try:
            asyncio.run(work.label())
        finally:
            summary = work.write()
            logger.info("%s", work.account())
    return summary
