"""Questions about a clip, proposed from its agreed fields: by templates, and by an LLM if asked.

    sound     the released tasks voice_source, tone, bgm; which sounds are heard
    picture   the released tasks objects, background; how many, what colour, where
    cross     which of four statements on sound and picture together is true

A person accepts, edits or rejects each of them; `balance` tells whether a task can be scored.
"""

import asyncio
import json
import threading
import typing
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ugc_jax.annotate import answers as values
from ugc_jax.annotate.answers import Agreed, Question, QuestionKind
from ugc_jax.annotate.tasks import TASKS
from ugc_jax.data.annotation import NO_VOICE
from ugc_jax.evals import metrics
from ugc_jax.judge.client import Judge, JudgeConfig
from ugc_jax.judge.messages import fenced

KINDS: tuple[QuestionKind, ...] = typing.get_args(QuestionKind)
MAJORITY = 0.9  # share of one answer from which guessing it scores as well as hearing and seeing

# (agreed fields of a clip, how many) -> that many questions at most
Asker = Callable[[Agreed, int], list[Question]]


def propose(agreed: Agreed, count: int = 4, asker: Asker | None = None) -> list[Question]:
    """Return `count` questions from templates, and as many of `asker` after them.

    Kinds take turns: sound, picture, cross, sound, ... as far as the fields of the clip have
    something to ask; fewer questions where there is not enough. Of each kind a clip begins at a
    template of its own, so that all tasks are asked about; equal clips get equal questions.
    Raises what `asker` raises.
    """
    found: dict[QuestionKind, list[Question]] = {
        "sound": _of_sound(agreed),
        "picture": _of_picture(agreed),
        "cross": _of_both(agreed),
    }
    turns = zlib.crc32(agreed.clip.encode("utf-8", "backslashreplace"))
    queues = {kind: _rotated(questions, turns) for kind, questions in found.items()}
    proposed = []
    while len(proposed) < count and any(queues.values()):
        for kind in KINDS:
            if queues[kind] and len(proposed) < count:
                proposed.append(queues[kind].pop(0))
    if asker is not None:
        known = {question.question for question in proposed}
        proposed += [one for one in asker(agreed, count) if one.question not in known]
    return proposed


class TaskBalance(NamedTuple):
    """Answers to one question with options, or to the questions of one task.

    name: of the task, or the question itself. counts: answer -> clips, the most frequent first;
    of a question without options {} (its answers are texts). warning: in one line; None without.
    """

    name: str
    total: int
    counts: Mapping[str, int]
    warning: str | None = None


def balance(questions: Iterable[Question], majority: float = MAJORITY) -> tuple[TaskBalance, ...]:
    """Return how the answers to each question are spread, in the order of the questions.

    majority: share of one answer above which there is a warning. A question that was asked once is
    not warned of.
    """
    groups: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        groups[question.task or question.question].append(question)
    return tuple(_balance(name, group, majority) for name, group in groups.items())


def _balance(name: str, group: Sequence[Question], majority: float) -> TaskBalance:
    total = len(group)
    if not any(question.options for question in group):
        return TaskBalance(name, total, {})
    spelled = [_option(question) for question in group]
    counts = dict(Counter(spelled).most_common())
    answer, percent = metrics.majority(spelled)
    warning = None
    if total > 1 and len(counts) == 1:
        warning = (
            f"{name}: all {total} answers are {answer}; the task is degenerate, as a constant "
            "guess is always right: leave it out, or add clips with other answers"
        )
    elif total > 1 and percent > 100 * majority:
        warning = (
            f"{name}: {percent:.1f} % of {total} answers are {answer}; a constant guess scores as "
            "much: add clips with other answers"
        )
    return TaskBalance(name, total, counts, warning)


def _option(question: Question) -> str:
    """The answer in the spelling of its option, in which released answers differ by case."""
    spelling = {option.casefold(): option for option in question.options}
    return spelling.get(question.answer.strip().casefold(), question.answer)


def _rotated(questions: list[Question], turns: int) -> list[Question]:
    start = turns % len(questions) if questions else 0
    return questions[start:] + questions[:start]


def _of_task(agreed: Agreed, name: str) -> list[Question]:
    """The question of a released task, if the clip has something to answer."""
    task = TASKS[name]
    answer = task.write(getattr(getattr(agreed, task.stage), task.field))
    if not answer.strip():
        return []
    return [Question(agreed.clip, task.kind, task.question, answer, task.options, name)]


def _of_sound(agreed: Agreed) -> list[Question]:
    sound = agreed.sound
    if sound is None:
        return []
    found = [one for name in ("voice_source", "tone", "bgm") for one in _of_task(agreed, name)]
    heard = list(dict.fromkeys(event.what for event in sound.sounds))
    if len(heard) > 1:
        question = "Which sounds are heard in the video? List them in the order of time."
        found.append(Question(agreed.clip, "sound", question, "; ".join(heard)))
    return found


def _of_picture(agreed: Agreed) -> list[Question]:
    picture = agreed.picture
    if picture is None:
        return []
    found = [one for name in ("objects", "background") for one in _of_task(agreed, name)]
    names = Counter(thing.name.casefold() for thing in picture.objects)
    for thing in picture.objects:
        if names[thing.name.casefold()] > 1:  # "What colour is the car?" of two cars
            continue
        is_one = thing.count == 1
        if thing.color:
            verb = "is" if is_one else "are"
            question = f"What color {verb} the {thing.name} in the video?"
            found.append(Question(agreed.clip, "picture", question, thing.color))
        if thing.position:
            verb = "is" if is_one else "are"
            question = f"Where {verb} the {thing.name} in the video?"
            found.append(Question(agreed.clip, "picture", question, thing.position))
    return found


def _of_both(agreed: Agreed) -> list[Question]:
    """Choices that neither the sound nor the picture alone decides."""
    if agreed.sound is None or agreed.picture is None:
        return []
    sound, picture = agreed.sound, agreed.picture
    music = ("Background music", "No background music")
    voice = ("A human voice", "No human voice")
    text = ("text on the screen", "no text on the screen")
    change = ("a background that changes", "a background that stays the same")
    has_voice = sound.voice_source != NO_VOICE
    return [
        _pair(agreed.clip, music, sound.music, text, bool(picture.text)),
        _pair(agreed.clip, voice, has_voice, change, bool(picture.background_change)),
        _pair(agreed.clip, music, sound.music, change, bool(picture.background_change)),
        _pair(agreed.clip, voice, has_voice, text, bool(picture.text)),
    ]


def _pair(
    clip: str, heard: tuple[str, str], is_heard: bool, seen: tuple[str, str], is_seen: bool
) -> Question:
    """A choice of four: each of two statements on the sound with each of two on the picture."""
    options = tuple(f"{one}, and {other}" for one in heard for other in seen)
    answer = f"{heard[not is_heard]}, and {seen[not is_seen]}"
    about = f"{heard[0].lower()} and {seen[0]}"
    question = (
        f"Which statement about {about} fits both the sound and the picture of the video? Please "
        "answer with one of the following options."
    )
    return Question(clip, "cross", question, answer, options)


# ---- an LLM --------------------------------------------------------------------------------------

_PROMPT = """\
Here is what people agreed on about a short video. The sound was described without the picture, and
the picture without the sound.

{fields}

Write {count} questions about this video that test whether a model listened and watched. Each has
one answer, which follows from the fields above. Kinds: "sound" is answered by the sound alone,
"picture" by the picture alone, "cross" needs both. Use each kind. No question contains its answer.
Answer with JSON of this form; "options" is a list of two to four texts of which one is the answer,
to the letter, or an empty list for a question with a free answer:
{{"questions": [{{"kind": "sound", "question": "...", "answer": "...", "options": []}}]}}"""


class LlmAsker:
    """Asks an LLM for questions; an `Asker`, and a context manager.

    Calls may come from several threads; each waits for its answer. Not for use in an event loop.
    """

    def __init__(self, config: JudgeConfig):
        """Asks nothing yet. Raises UserError as `Judge`."""
        self._judge = Judge(config)
        self._runner = asyncio.Runner()
        self._lock = threading.Lock()

    def __call__(self, agreed: Agreed, count: int) -> list[Question]:
        """Return `count` questions at most. Raises JudgeError without a usable answer."""
        fields = values.to_json(agreed)
        known = {name: fields[name] for name in ("sound", "picture", "both") if fields[name]}
        text = fenced("fields", json.dumps(known, ensure_ascii=False, indent=1))
        question = _PROMPT.format(fields=text, count=count)
        with self._lock:
            found = self._runner.run(
                self._judge.ask(question, lambda answer: _parse(agreed.clip, answer))
            )
        return found[:count]

    def __enter__(self) -> "LlmAsker":
        return self

    def __exit__(self, *_):
        with self._lock:
            try:
                self._runner.run(self._judge.close())
            finally:
                self._runner.close()


def _parse(clip: str, answer: dict) -> list[Question]:
    """Raises ValueError for an object of another form."""
    rows = answer["questions"]
    if not isinstance(rows, list) or not rows:
        raise ValueError("questions is not a list of at least one")
    found = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"question {number} is not an object")
        texts = {name: row.get(name) for name in ("kind", "question", "answer")}
        for name, text in texts.items():
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"question {number}: {name} is not a text")
        texts = {name: text.strip() for name, text in texts.items()}
        if texts["kind"] not in KINDS:
            raise ValueError(f"question {number}: kind is none of {', '.join(KINDS)}")
        options = row.get("options") or []
        if not isinstance(options, list) or not all(isinstance(one, str) for one in options):
            raise ValueError(f"question {number}: options is not a list of texts")
        options = tuple(option.strip() for option in options)
        if options and (texts["answer"] not in options or len(set(options)) < len(options)):
            raise ValueError(f"question {number}: the answer is not one of its options")
        found.append(Question(clip, **texts, options=options, source="llm"))
    return found
