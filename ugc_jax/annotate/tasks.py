"""The nine tasks of the released benchmark as fields of an annotated clip.

| task | stage, field | answer |
|---|---|---|
| voice_source, tone, bgm | sound: voice_source, tone, music | one of the options |
| audio_caption | sound: caption | text |
| ocr | picture: text | JSON list of texts, in order |
| objects | picture: objects | name (count: 2, color: red, position: left); ... |
| background | picture: background_change | text |
| visual_caption, final_caption | picture, both: caption | text |
"""

import json
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ugc_jax.annotate.answers import QuestionKind
from ugc_jax.data.annotation import (
    NO_VOICE,
    TONES,
    VOICE_SOURCES,
    Both,
    Picture,
    Sound,
    Stage,
    Thing,
)
from ugc_jax.evals.tasks import OCR_QUESTION
from ugc_jax.media.presets import QUESTION

MANY = 2  # count of "multiple" and the like: two or more
_COUNTS = {
    **dict.fromkeys(("a", "an", "one", "single"), 1),
    **dict.fromkeys(("two", "pair", "a pair", "both"), 2),
    **dict.fromkeys(("multiple", "several", "many", "numerous", "various", "a few"), MANY),
    "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
}  # fmt: skip
# The position may have brackets of its own; the next thing begins after "); ".
_THING = re.compile(
    r"\s*(?P<name>[^;]*?)\s*\(\s*count:\s*(?P<count>[^,;]*?)\s*,\s*color:\s*(?P<color>[^;]*?)\s*,"
    r"\s*position:\s*(?P<position>[^;]*?)\s*\)\s*(?:;|\Z)",
    re.IGNORECASE,
)


class Task(NamedTuple):
    """How a field becomes the answer of a task, and an answer the field.

    question: as released. write: value of the field -> answer; "" if it says that there is nothing
    to ask. read: answer -> value of the field; raises ValueError for an answer that has none.
    is_short: asked about by QA questions; captions and OCR are asked of every clip.
    """

    kind: QuestionKind
    stage: str
    field: str
    question: str
    write: Callable[[Any], str]
    read: Callable[[str], Any]
    options: tuple[str, ...] = ()
    is_short: bool = False


def write_objects(things: tuple[Thing, ...]) -> str:
    """Return objects in the released form."""
    return "; ".join(
        f"{thing.name} (count: {thing.count}, color: {thing.color}, position: {thing.position})"
        for thing in things
    )


def read_objects(answer: str) -> tuple[Thing, ...]:
    """Return the objects of an answer in the released form.

    Counts may be words; "multiple", "several" and the like are read as `MANY`.
    Raises ValueError for an answer that is not of this form as a whole.
    """
    things, end = [], 0
    while answer[end:].strip():
        match = _THING.match(answer, end)
        if match is None:
            raise ValueError(
                f"is not of the form name (count: 1, color: ...): {answer[end:]!r:.60}"
            )
        things.append(
            Thing(match["name"], _count(match["count"]), match["color"], match["position"])
        )
        end = match.end()
    if not things or not all(thing.name for thing in things):
        raise ValueError("names no object")
    return tuple(things)


def _count(text: str) -> int:
    word = text.strip().casefold()
    count = int(word) if word.isdecimal() else _COUNTS.get(word, 0)
    if count < 1:
        raise ValueError(f"count: {text!r:.40} is not a number")
    return count


def _option(options: tuple[str, ...]) -> Callable[[str], str]:
    spelling = {option.casefold(): option for option in options}

    def read(answer: str) -> str:
        if (option := spelling.get(answer.strip().casefold())) is None:
            raise ValueError(f"{answer!r:.40} is none of {', '.join(options)}")
        return option

    return read


def _read_texts(answer: str) -> tuple[str, ...]:
    texts = json.loads(answer)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("is not a list of texts")
    return tuple(text.strip() for text in texts)


def _write_texts(texts: tuple[str, ...]) -> str:
    return json.dumps(list(texts), ensure_ascii=False) if texts else ""


def _caption(kind: QuestionKind, stage: str, question: str) -> Task:
    return Task(kind, stage, "caption", question, str, str.strip)


_CHOOSE = " Please answer with one of the following options."
TASKS: Mapping[str, Task] = types.MappingProxyType(
    {
        "voice_source": Task(
            "sound",
            "sound",
            "voice_source",
            f"What is the source of the human voice in the audio?{_CHOOSE}",
            lambda value: "" if value == NO_VOICE else value,
            _option(VOICE_SOURCES),
            VOICE_SOURCES,
            True,
        ),
        "tone": Task(
            "sound",
            "sound",
            "tone",
            f"What is the tone and mood of the speakers?{_CHOOSE}",
            str,
            _option(TONES),
            TONES,
            True,
        ),
        "bgm": Task(
            "sound",
            "sound",
            "music",
            f"Is background music (BGM) present in the video?{_CHOOSE}",
            lambda value: "Yes" if value else "No",
            lambda answer: _option(("Yes", "No"))(answer) == "Yes",
            ("Yes", "No"),
            True,
        ),
        "ocr": Task("picture", "picture", "text", OCR_QUESTION, _write_texts, _read_texts),
        "background": Task(
            "picture",
            "picture",
            "background_change",
            "Does the background change during the video? Describe it in detail.",
            str,
            str.strip,
            is_short=True,
        ),
        "objects": Task(
            "picture",
            "picture",
            "objects",
            "List all major objects in the video, including their category, count, color, and "
            "position. Please format your answer as: object (count: X, color: Y, position: Z); ...",
            write_objects,
            read_objects,
            is_short=True,
        ),
        "audio_caption": _caption(
            "sound",
            "sound",
            "You are given an video clip with audio track. Write a detailed and coherent paragraph "
            "that describes the content based solely on the audio. Your description should "
            "include: significant audio cues such as voices, background music, sound effects, and "
            "their emotional tone. Ensure the output is a fluent and objective paragraph, not a "
            "bullet-point list, and captures the auditory experience in a human-like, narrative "
            "style.",
        ),
        "visual_caption": _caption(
            "picture",
            "picture",
            "You are given a video. Write a detailed and coherent paragraph that describes the "
            "visual content. Your description should include: (1) the primary scene and background "
            "setting; (2) key characters or objects and their actions or interactions; (3) any "
            "on-screen text (OCR) and its role in the video context; Ensure the output is a fluent "
            "and objective paragraph, not a bullet-point list, and captures the visual experience "
            "in a human-like, narrative style.",
        ),
        "final_caption": _caption("cross", "both", QUESTION),
    }
)
# The values of fields that an imported file says nothing of.
UNKNOWN: Mapping[str, Stage] = types.MappingProxyType(
    {
        "sound": Sound(NO_VOICE, "Neutral", False, (), ""),
        "picture": Picture((), (), "", ""),
        "both": Both(""),
    }
)


def imported_value(name: str, answer: str | None) -> Any:
    """Return the field that an imported answer of a task gives; None: the file has no answer."""
    task = TASKS[name]
    if answer is not None:
        try:
            return task.read(answer)
        except ValueError:
            pass  # free text: it stays as the question's answer, see exports
    return getattr(UNKNOWN[task.stage], task.field)
