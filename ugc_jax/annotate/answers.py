"""The values that the store keeps and that agreement, questions and exports are made of."""

from typing import Literal, NamedTuple

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
    """

    clip: str
    kind: QuestionKind
    question: str
    answer: str
    options: tuple[str, ...] = ()
    task: str = ""
    source: str = "template"


class Agreed(NamedTuple):
    """The agreed fields of a clip; None for a stage that is not done. path: within the folder."""

    clip: str
    path: str
    sound: Sound | None = None
    picture: Picture | None = None
    both: Both | None = None
    questions: tuple[Question, ...] = ()
