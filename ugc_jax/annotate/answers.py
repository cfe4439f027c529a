"""The values that the store keeps and that agreement, questions and exports are made of."""

import typing
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ugc_jax.data import annotation
from ugc_jax.data.annotation import Both, Picture, Sound, Stage

# What a question rests on: sound alone, picture alone, or both together.
QuestionKind = Literal["sound", "picture", "cross"]


class Answer(NamedTuple):
    """What one annotator said of one stage of a clip. seconds: of work on it."""

    clip: str
    stage: str
    annotator: str
    value: Stage
    seconds: float = 0.0


class Question(NamedTuple):
    """A question about a clip. task: of the released benchmark, such as "tone"; "" for a free one.

    options: of a question with options, else (). source: "template", "llm", "person", "import".
    row: of its row in the file that it was imported from, from 0; None: not imported. Files of a
    benchmark have their clips in different orders, and an export keeps them.
    """

    clip: str
    kind: QuestionKind
    question: str
    answer: str
    options: tuple[str, ...] = ()
    task: str = ""
    source: str = "template"
    row: int | None = None


class Agreed(NamedTuple):
    """The agreed fields of a clip; None for a stage that is not done.

    clip: its id in a benchmark, the name of its file without the suffix (`evals.tasks.clip_id`).
    path: of its file within the folder of clips. questions: those that a person accepted, or that
    were imported; the texts of an imported one are as they were in the file.
    """

    clip: str
    path: str
    sound: Sound | None = None
    picture: Picture | None = None
    both: Both | None = None
    questions: tuple[Question, ...] = ()


def to_json(agreed: Agreed) -> dict[str, Any]:
    """Return the JSON value that `read` takes."""
    stages = {name: getattr(agreed, name) for name in annotation.STAGES}
    return {
        "clip": agreed.clip,
        "path": agreed.path,
        **{name: stage and annotation.to_json(stage) for name, stage in stages.items()},
        "questions": [question_to_json(question) for question in agreed.questions],
    }


def read(value: Any) -> Agreed:
    """Return the agreed fields that a JSON value says.

    Raises ValueError, which names the field, for a missing or wrong one.
    """
    row = _object(value, ("clip", "path"), Agreed._fields)
    stages = {}
    for name in annotation.STAGES:
        if row.get(name) is not None:
            try:
                stages[name] = annotation.read(name, row[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    questions = row.get("questions", [])
    if not isinstance(questions, list):
        raise ValueError("questions: is not a list")
    return Agreed(row["clip"], row["path"], **stages, questions=tuple(map(_question, questions)))


def question_to_json(question: Question) -> dict[str, Any]:
    """Return the JSON value of a question; its texts are kept to the letter."""
    return question._asdict() | {"options": list(question.options)}


def read_question(value: Any) -> Question:
    """Return the question of a JSON value. Raises ValueError, which names the field."""
    texts = ("clip", "kind", "question", "answer")
    row = _object(value, texts, Question._fields)
    if row["kind"] not in typing.get_args(QuestionKind):
        raise ValueError(f"kind: {row['kind']!r:.40} is none of sound, picture, cross")
    options = row.get("options", [])
    if not isinstance(options, list) or not all(isinstance(one, str) for one in options):
        raise ValueError("options: is not a list of texts")
    number = row.get("row")
    if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
        raise ValueError(f"row: {number!r:.40} is not a number")
    return Question(**{**row, "options": tuple(options)})


def answer_to_json(answer: Answer) -> dict[str, Any]:
    """Return the JSON value that `read_answer` takes."""
    return answer._asdict() | {"value": annotation.to_json(answer.value)}


def read_answer(value: Any) -> Answer:
    """Return the answer of a JSON value. Raises ValueError, which names the field."""
    row = _object(value, ("clip", "stage", "annotator"), Answer._fields)
    if row["stage"] not in annotation.STAGES:
        raise ValueError(f"stage: {row['stage']!r:.40} is none of {', '.join(annotation.STAGES)}")
    seconds = row.get("seconds", 0.0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ValueError(f"seconds: {seconds!r:.40} is not a number")
    stage = annotation.read(row["stage"], row.get("value"))
    return Answer(row["clip"], row["stage"], row["annotator"], stage, float(seconds))


def _question(value: Any) -> Question:
    try:
        return read_question(value)
    except ValueError as error:
        raise ValueError(f"questions: {error}") from None


def _object(value: Any, texts: tuple[str, ...], known: tuple[str, ...]) -> Mapping[str, Any]:
    """Return a JSON object whose fields `texts` are texts, and that has no unknown one."""
    if not isinstance(value, dict):
        raise ValueError("is not an object")
    if unknown := [name for name in value if name not in known]:
        raise ValueError(f"{unknown[0]} is not a field; there are {', '.join(known)}")
    for name in texts:
        if not isinstance(value.get(name), str):
            raise ValueError(f"{name}: {value.get(name)!r:.40} is not a text")
    return value
