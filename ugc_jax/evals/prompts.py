"""The prompts of the judged tasks, and the scores from the judge's answers.

The criteria are the benchmark's (arXiv 2507.11336), the wording is ours. A caption cannot instruct
the judge: it is between tags that it cannot close (`messages.fenced`). The judge answers
    final_caption           {"visual": N, "audio": N, "details": N}, each N from 1 to 5
    audio_, visual_caption  the same with two of them (the release does not describe these tasks)
    background              {"consistent": "yes" or "no"}
    objects                 {"matched": M, "total": N}, M of the N objects of the reference
and may add a "reason", which is kept beside the scores.

A user's own wording is a text file with {reference} and {caption}. It is the whole message to the
judge, with the two texts inserted unchanged, so that it can follow another protocol exactly; other
braces are part of the text, as in JSON.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ugc_jax import files
from ugc_jax.errors import UserError
from ugc_jax.judge.messages import fenced, integer, with_system

PLACEHOLDERS = ("{reference}", "{caption}")

RATE = """\
Rate a caption of a short video against a reference, which tells correctly what is {content} in it.
Rate each of these on its own:
{aspects}

5: tells all of it, exactly, and nothing that the reference does not support
4: tells nearly all of it; small things are missing or blurred
3: tells most of it, but without depth, or with a small mistake
2: tells one or two things of it; much is missing, vague or wrong
1: tells nearly nothing of it, or another video; most is missing, wrong or invented
Length and style earn nothing. Where the reference tells that there is nothing, such as a video
without sound, a caption that tells so is right.

{reference}

{caption}

Answer with {"reason": "...", {ratings}}:
"reason" one short sentence, each N a whole number from 1 to 5."""

ASPECTS = {
    "visual": "the setting, people and objects, what they do, text on the screen",
    "audio": "speech and what it says, voices, music, sounds, and their mood",
    "details": "how complete and precise the whole is: its course, its theme and purpose",
}

BACKGROUND = """\
Do these two texts tell of the same changes of a video's background? They do if they agree on
whether it changes, and on the places in their order. The caption may use other words or tell less
of each place; a place or a change that it invents, leaves out or puts wrongly is a difference.

{reference}

{caption}

Answer with {"reason": "...", "consistent": "yes" or "no"}: "reason" one short sentence."""

OBJECTS = """\
Which objects of the reference does the caption list? Both list objects of a video with their count,
colour and position. An object of the reference is matched if the caption lists one of the same
kind, count, colour and position, in whatever words. Objects that only the caption lists do not
count.

{reference}

{caption}

Answer with {"reason": "...", "matched": M, "total": N}: "reason" one short sentence, N the number
of objects (entries) in the reference, M the number of those that are matched."""


class Item(NamedTuple):
    """One caption, or answer, that is judged; its texts are not empty.

    sample: of the task (`tasks.Sample`), for rubrics that read more than the reference as text.
    """

    id: str
    reference: str
    prediction: str
    sample: Any = None


def _reference(item: Item) -> dict[str, str]:
    return {"reference": item.reference}


class Rubric(NamedTuple):
    """One judged task.

    wording: the question, in which `placeholders` are replaced.
    scores: (the judge's JSON object, the task's sample) -> {"score", each of `columns` that the
      sample has} in percent, and further facts of the clip; raises ValueError, TypeError or
      KeyError for an object of another form.
    texts: what replaces the placeholders beside {caption}, by their names.
    """

    wording: str
    scores: Callable[..., dict]
    columns: tuple[str, ...] = ()
    placeholders: tuple[str, ...] = PLACEHOLDERS
    texts: Callable[[Item], dict[str, str]] = _reference


def fill(template: str, **texts: str) -> str:
    """`template` with each {name} of `texts` replaced; all other braces stay."""
    return re.sub(r"\{(\w+)\}", lambda found: texts.get(found[1], found[0]), template)


def numbered(texts: Sequence[str]) -> str:
    """Texts, a line each, by number from 1."""
    return "\n".join(f"{n}. {' '.join(text.split())}" for n, text in enumerate(texts, 1))


def verdicts(answer: object, count: int, allowed: Sequence[str]) -> list[str]:
    """The words in {"1": word, "2": word, ...}, one for each of `count` numbers and no other.

    Each is one of `allowed`, exactly: "not told" is not "told". Raises ValueError or KeyError.
    """
    if not isinstance(answer, dict):
        raise ValueError("the verdicts are not an object by number")
    numbers = [str(number) for number in range(1, count + 1)]
    if others := [key for key in answer if key not in numbers and key != "reason"]:
        raise ValueError(f"a verdict on {others[0]!r:.40}, but the numbers are 1 to {count}")
    found = []
    for number in numbers:
        value = answer[number]
        word = value.strip().lower() if isinstance(value, str) else None
        if word not in allowed:
            raise ValueError(f"verdict {number} is {value!r:.40}, not {', '.join(allowed)}")
        found.append(word)
    return found


def _ratings(content: str, *columns: str) -> Rubric:
    """A rubric with ratings 1..5 in each column; the score is their mean."""
    ratings = ", ".join(f'"{column}": N' for column in columns)
    aspects = "\n".join(f"{column}: {ASPECTS[column]}" for column in columns)
    wording = fill(RATE, content=content, aspects=aspects, ratings=ratings)

    def scores(answer: dict, _=None) -> dict[str, float]:
        rated = {column: integer(answer, column, 1, 5) / 5 * 100 for column in columns}
        return {"score": sum(rated.values()) / len(rated)} | rated

    return Rubric(wording, scores, columns)


def _is_consistent(answer: dict, _=None) -> dict[str, float]:
    verdict = str(answer["consistent"]).strip().lower()
    if verdict not in ("yes", "true", "no", "false"):
        raise ValueError(f'consistent is {verdict!r:.40}, not "yes" or "no"')
    return {"score": 100.0 if verdict in ("yes", "true") else 0.0}


def _share_matched(answer: dict, _=None) -> dict[str, float]:
    total = integer(answer, "total", 1, 10**6)
    return {"score": integer(answer, "matched", 0, total) / total * 100}


RUBRICS = {
    "background": Rubric(BACKGROUND, _is_consistent),
    "objects": Rubric(OBJECTS, _share_matched),
    "audio_caption": _ratings("heard", "audio", "details"),
    "visual_caption": _ratings("seen", "visual", "details"),
    "final_caption": _ratings("seen and heard", "visual", "audio", "details"),
}


class Prompt(NamedTuple):
    """A wording. name: for display, "ugc_jax" or that of a file. is_ours: not from a file."""

    name: str
    template: str
    is_ours: bool
    placeholders: tuple[str, ...] = PLACEHOLDERS

    @property
    def protocol(self) -> str:
        """An identifier of the wording, equal for equal wordings in files of any name."""
        unfilled = {name.strip("{}"): name for name in self.placeholders}
        text = "\n".join(message["content"] for message in self.filled(unfilled))
        return f"{'own wording' if self.is_ours else 'file'} {_number(text)}"

    def messages(self, reference: str, caption: str) -> list[dict]:
        """The messages of the question about two texts."""
        return self.filled({"reference": reference, "caption": caption})

    def filled(self, texts: Mapping[str, str]) -> list[dict]:
        """The messages of the question with a text for each placeholder."""
        if self.is_ours:
            tagged = {name: fenced(name, text) for name, text in texts.items()}
            return with_system(fill(self.template, **tagged))
        return [{"role": "user", "content": fill(self.template, **texts)}]


def load_prompts(
    path: str | None, tasks: Iterable[str], rubrics: Mapping[str, Rubric] = RUBRICS
) -> dict[str, Prompt]:
    """The wording for each of the tasks, which are keys of rubrics.

    path: a text file for the one task, or a folder with TASK.txt of each; None for our wording.
    Raises UserError for a file that is missing or cannot be used.
    """
    tasks = list(tasks)
    if path is None:
        return {
            task: Prompt("ugc_jax", rubrics[task].wording, True, rubrics[task].placeholders)
            for task in tasks
        }
    folder = Path(path)
    if folder.is_dir():
        return {task: _read(folder / f"{task}.txt", rubrics[task].placeholders) for task in tasks}
    if len(tasks) > 1:
        raise UserError(
            f"judging.prompt={path}: is one file for {len(tasks)} tasks ({', '.join(tasks)}); "
            "give a folder with TASK.txt of each, or one task"
        )
    return {task: _read(folder, rubrics[task].placeholders) for task in tasks}


def _read(path: Path, placeholders: tuple[str, ...]) -> Prompt:
    """The wording in a user's file. Raises UserError with the line of a fault."""
    text = files.read_text(path, "give a UTF-8 text file as judging.prompt")
    text = re.sub("\r\n?", "\n", text)  # equal on all systems
    for placeholder in placeholders:
        if placeholder not in text:
            raise UserError(f"{path}: has no {placeholder}; write it where that text belongs")
    if fault := _fault(text, placeholders):
        place, reason = fault
        raise UserError(f"{path}:{text.count(chr(10), 0, place) + 1}: {reason}")
    return Prompt(f"{path.name} ({_number(text)})", text, False, placeholders)


def _number(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _fault(text: str, placeholders: tuple[str, ...]) -> tuple[int, str] | None:
    """(place, description) of a fault in the braces of a template; None without one."""
    if doubled := re.search(r"\{\s*\{", text):
        return doubled.start(), "has a doubled brace; write each brace once, in JSON as well"
    for found in re.finditer(r"\{\s*(\w+)\s*\}", text):
        if found[0] not in placeholders:
            names = " and ".join(placeholders)
            return found.start(), f"unknown placeholder {found[0]}; there are {names}"
    unclosed = []
    for found in re.finditer(r"[{}]", text):
        if found[0] == "{":
            unclosed.append(found.start())
        elif unclosed:
            unclosed.pop()
        else:
            return found.start(), "has a stray }; write braces in pairs"
    return (unclosed[-1], "has a stray {; write braces in pairs") if unclosed else None
