"""Captions scored by atomic units of the reference, instead of by ratings from 1 to 5.

    reference -> units, once (a file beside the benchmark, for all judges)
    units, caption -> a verdict on each unit: told, missed, contradicted
    verdicts -> score, by rules

Of the same captions, ratings of the whole differ by 20 points between judges, decisions on units by
2 (OmniCapBench, table 5). The rules: the score is the share of the units that are told; visual and
audio are the shares of the units of that kind; contradicted is the share that the caption
contradicts, low is good. What a caption tells beyond the reference earns and costs nothing.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ugc_jax import files
from ugc_jax.errors import UserError
from ugc_jax.evals.judged import Case, JudgedTasks
from ugc_jax.evals.predictions import Failure, Predictions
from ugc_jax.evals.prompts import Rubric, fill, numbered, verdicts
from ugc_jax.evals.tasks import Form, Sample, Task
from ugc_jax.files import encodable
from ugc_jax.judge.client import JudgeError
from ugc_jax.judge.messages import fenced, one_line, with_system

logger = logging.getLogger(__name__)

KINDS = ("visual", "audio", "other")
VERDICTS = ("told", "missed", "contradicted")
SUFFIX = "_units"  # of the task's name in a result
MOST = 40  # units of a reference

EXTRACT = """\
Take apart what this reference tells of a short video into atomic units: statements of one fact
each, that can be checked on their own and do not repeat each other. Take all facts, at most {most},
in the order of the reference, without adding or interpreting any.

{reference}

Answer with {"units": [{"text": "...", "kind": "visual" or "audio" or "other"}, ...]}:
visual: settings, people, objects, their looks and actions, shots, text on the screen
audio: speech and what it says, voices, music, sounds, or that there are none
other: mood, theme and purpose of the whole"""

WORDING = """\
Which of these statements on a video does a caption of it tell?

{units}

{caption}

Decide each statement on its own:
told: the caption states it, in whatever words
missed: the caption does not state it, only hints at it, or leaves it open
contradicted: the caption states something that cannot be true together with it

Answer with a verdict for each statement by its number:
{"1": "told" or "missed" or "contradicted", "2": ...}"""


def scores(answer: dict, sample: Sample) -> dict:
    """Shares in percent, by the rules above. Raises ValueError or KeyError."""
    units: Sequence[dict] = sample.reference
    decided = verdicts(answer, len(units), VERDICTS)
    told = [verdict == "told" for verdict in decided]
    found: dict = {"score": 100 * sum(told) / len(told)}
    for kind in ("visual", "audio"):
        of = [one for one, unit in zip(told, units, strict=True) if unit["kind"] == kind]
        found |= {kind: 100 * sum(of) / len(of)} if of else {}
    found["contradicted"] = 100 * decided.count("contradicted") / len(decided)
    lines = []
    for word in VERDICTS[1:]:
        texts = [u["text"] for u, v in zip(units, decided, strict=True) if v == word]
        lines += [f"{word}: {'; '.join(texts)}"] if texts else []
    return found | {"note": "\n".join(lines) or "all told"}


RUBRIC = Rubric(
    WORDING,
    scores,
    ("visual", "audio", "contradicted"),
    ("{units}", "{caption}"),
    lambda item: {"units": numbered([unit["text"] for unit in item.sample.reference])},
)


def as_units(benchmark: Mapping[str, Task], form: str) -> dict[str, Task]:
    """The tasks of a benchmark with captions scored as `form` says.

    form: "holistic": as they are; "structured": captions by units, as tasks of their own whose
    names end with SUFFIX; "both". Tasks without ratings stay. The references are still texts:
    `UnitFile.fill` makes units of them.
    """
    tasks: dict[str, Task] = {}
    for name, task in benchmark.items():
        is_rated = task.is_judged and bool(task.form.columns)
        if not is_rated or form != "structured":
            tasks[name] = task
        if is_rated and form != "holistic":
            tasks[name + SUFFIX] = dataclasses.replace(
                task, name=name + SUFFIX, form=_form(task.form)
            )
    return tasks


def _form(form: Form) -> Form:
    return form._replace(
        metric="mean share of the reference's atomic units that captions tell, in percent; the "
        "judge decides unit by unit",
        columns=RUBRIC.columns,
        rubric=RUBRIC,
        lower=("contradicted",),
    )


def base_of(name: str) -> str:
    """The task whose captions a task of `as_units` scores."""
    return name.removesuffix(SUFFIX)


def is_by_units(task: Task) -> bool:
    """True for a task that `as_units` made."""
    return task.form.rubric is RUBRIC


_LINE_START = '{"id": '  # of a line of `UnitFile`, as `_put` writes it


class UnitFile:
    """The units of references, in a JSON Lines file beside the benchmark.

    A line is {"id", "reference": its digest, "wording", "by": the model, "units": [{"text",
    "kind"}]}. Units of a reference are extracted once, for all judges and captions. A line that
    cannot be read, such as one that a killed run left incomplete, is logged and extracted again.
    """

    @classmethod
    def beside(cls, qa: str, task: Task, path: str | None = None) -> "UnitFile":
        """The file at `path`, or beside the task's file. qa: folder or file of the benchmark."""
        file = Path(qa) / task.form.file if Path(qa).is_dir() else Path(qa)
        return cls(path or file.with_name(f"{file.stem}.units.jsonl"))

    def __init__(self, path: str | Path):
        """Raises UserError if the file cannot be read, or has lines but none of units."""
        self.path = Path(path)
        self._known: dict[str, dict] = {}  # by digest of the reference
        if not self.path.exists():
            return
        unreadable, is_of_units = 0, False
        for line in files.read_lines(self.path, "name another file: judging.units"):
            match line.value:
                case {"reference": str(key), "wording": str(wording), "by": str(), "units": units}:
                    is_of_units = True
                    try:
                        units = parse_units({"units": units})
                    except (ValueError, TypeError, LookupError):
                        unreadable += 1
                        continue
                    if wording == _digest(EXTRACT):
                        self._known[key] = line.value | {"units": units}
                case _:
                    unreadable += 1
                    # a run was killed while it wrote the first line
                    is_cut = not line.whole and line.text.startswith(_LINE_START)
                    is_of_units |= is_cut and line.error is not None and unreadable == 1
        if unreadable and not is_of_units:
            raise UserError(
                f"{self.path}: exists and has no units of references, which would be added to it; "
                "name another file: judging.units"
            )
        if unreadable:
            logger.warning(
                "%s: %d lines have no units that can be read; these are extracted again",
                self.path, unreadable,
            )  # fmt: skip

    def fill(
        self, task: Task, predicted: Predictions, judge: JudgedTasks
    ) -> tuple[Task, Predictions, dict[str, str]]:
        """(the task with units as references, its predictions, what its protocol has in addition).

        References whose caption is to be judged and that have no units yet are put to the judge.
        Where it has no usable answer, the clip's prediction becomes a failure "units". Raises
        UserError if the file cannot be written, and as `JudgedTasks.judge`.
        """
        todo = [s for s in task.samples if s.of in predicted.texts and not self._has(s)]
        failed: dict[str, Failure] = {}
        if todo:
            self._check()
            cases = [Case(_question(sample), parse_units) for sample in todo]
            outcomes = judge.ask(f"{base_of(task.name)}: units of references", cases)
            for sample, (outcome,) in zip(todo, outcomes, strict=True):
                if isinstance(outcome, JudgeError):
                    failed[sample.of] = Failure("units", one_line(str(outcome)))
                else:
                    self._put(sample, outcome, judge.config.model)
        samples = [
            s._replace(reference=self._units(s)) if self._has(s) else s for s in task.samples
        ]
        texts = {one: text for one, text in predicted.texts.items() if one not in failed}
        kept = dataclasses.replace(predicted, texts=texts, failures=predicted.failures | failed)
        scored = [s for s in task.samples if s.of in texts]
        by = sorted({self._known[_digest(s.reference)]["by"] for s in scored})
        facts = {"units": f"by {', '.join(by)}, wording {_digest(EXTRACT)}"}
        return dataclasses.replace(task, samples=tuple(samples)), kept, facts

    def _has(self, sample: Sample) -> bool:
        return _digest(sample.reference) in self._known

    def _units(self, sample: Sample) -> list[dict]:
        return self._known[_digest(sample.reference)]["units"]

    def _check(self):
        """Raise UserError, before the judge is paid, if the file cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                if file.tell():
                    file.seek(-1, 2)
                    if file.read(1) != b"\n":  # an incomplete line: begin a new one
                        file.write(b"\n")
        except OSError as error:
            raise UserError(
                f"{self.path}: the units of references cannot be kept there ({error}); name "
                "another file: judging.units"
            ) from None

    def _put(self, sample: Sample, units: list[dict], model: str):
        key = _digest(sample.reference)
        row = {"id": sample.id, "reference": key, "wording": _digest(EXTRACT), "by": model}
        self._known[key] = row | {"units": units}
        with self.path.open("ab") as file:
            file.write((files.to_json(self._known[key]) + "\n").encode())


def parse_units(answer: dict) -> list[dict]:
    """The units in a judge's JSON object, one or more. Raises ValueError, TypeError or KeyError."""
    units = answer["units"]
    if not isinstance(units, list) or not units:
        raise ValueError("units is no list of units")
    if len(units) > MOST:
        raise ValueError(f"there are {len(units)} units, more than {MOST}")
    found = []
    for unit in units:
        text, kind = unit["text"], unit["kind"]
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"the text of a unit is {text!r:.40}")
        if kind not in KINDS:
            raise ValueError(f"the kind of a unit is {kind!r:.40}, not {', '.join(KINDS)}")
        found.append({"text": encodable(text.strip()), "kind": kind})
    return found


def _question(sample: Sample) -> list[dict]:
    reference = fenced("reference", sample.reference)
    return with_system(fill(EXTRACT, reference=reference, most=str(MOST)))


def _digest(text: str) -> str:
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()[:12]
