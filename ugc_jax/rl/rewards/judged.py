"""Rewards that an LLM judge gives: it reads the caption and, where needed, the reference; no video.

All lie in 0..1, more is better. Where the judge has no usable answer they raise JudgeError, which
counts as a failure and not as a zero.
"""

import asyncio
import random
import string
from collections.abc import Callable

from ugc_jax.judge.client import Judge
from ugc_jax.judge.messages import fenced, integer
from ugc_jax.rl.rewards.local import required

MAX_POINTS = 20  # key points of a reference; further ones are dropped

HOLISTIC = """\
Rate a caption of a short video against a reference that tells the video fully and correctly.
5: tells all that the reference tells of picture, sound, text and theme, and nothing against it
4: misses or blurs a few details
3: tells the main things, but misses many details, or has a wrong one that matters
2: tells little of it, or has several wrong things
1: tells another video, or nothing
What the reference does not support counts against the caption; length and style earn nothing.

{reference}

{caption}

Answer with {{"score": N}}, N a whole number from 1 to 5."""

POINTS = """\
List what a good caption of the video that this reference tells has to mention: settings, people,
objects, actions in their order, speech and sounds, text on the screen, mood. Each point is a short
statement that can be checked on its own; none repeats another; at most {most}, weightiest first.

{reference}

Answer with {{"points": ["...", "..."]}}."""

CHECKLIST = """\
Which of these points does the caption state, in whatever words? A point that it only hints at,
leaves open or contradicts is not stated.

{points}

{caption}

Answer with a key for each point, "1" to "{count}": {{"1": true or false, ...}}."""

CHOICE = """\
Answer a question about a video that you cannot see, from its caption alone. Where the caption does
not tell the answer, do not guess: answer "none".

{caption}

{question}

Answer with {{"answer": "X"}}, X one of the letters {letters}, or "none"."""


def judged_functions(judge: Judge) -> dict[str, Callable]:
    """The judged rewards by name, in the form that `runner.Rewards` calls."""

    async def holistic(prompt, completion, reference, metadata):
        return await rate(judge, completion, required(reference))

    async def checklist(prompt, completion, reference, metadata):
        points = metadata.get("checklist") or await key_points(judge, required(reference))
        if not isinstance(points, list) or not all(isinstance(point, str) for point in points):
            raise ValueError("the row's checklist is not a list of texts")
        return await coverage(judge, completion, points)

    async def mcq(prompt, completion, reference, metadata):
        if not metadata.get("questions"):
            raise ValueError("the row has no questions")
        answers = (answer_mcq(judge, completion, **one) for one in metadata["questions"])
        right = await asyncio.gather(*answers)
        return sum(right) / len(right)

    return {"holistic": holistic, "checklist": checklist, "mcq": mcq}


JUDGED = ("holistic", "checklist", "mcq")


async def rate(judge: Judge, caption: str, reference: str) -> float:
    """The judge's score 1..5 of the whole caption, as 0..1."""
    texts = {"reference": fenced("reference", reference), "caption": fenced("caption", caption)}
    score = await judge.ask(HOLISTIC.format(**texts), lambda answer: integer(answer, "score", 1, 5))
    return (score - 1) / 4


async def key_points(judge: Judge, reference: str) -> list[str]:
    """The points that a caption should mention, as the judge lists them from a reference."""

    def parse(answer: dict) -> list[str]:
        points = answer["points"]
        if not isinstance(points, list) or not points:
            raise ValueError("points is not a list of statements")
        if not all(isinstance(point, str) and point.strip() for point in points):
            raise ValueError("a point is not a statement")
        return [point.strip() for point in points[:MAX_POINTS]]

    question = POINTS.format(reference=fenced("reference", reference), most=MAX_POINTS)
    return await judge.ask(question, parse)


async def coverage(judge: Judge, caption: str, points: list[str]) -> float:
    """The share of the points that the caption states (AVoCaDO's R_C, arXiv 2510.10395)."""
    numbers = [str(number) for number in range(1, len(points) + 1)]

    def parse(answer: dict) -> float:
        stated = [answer[number] for number in numbers]
        if not all(isinstance(value, bool) for value in stated):
            raise ValueError("a point is neither true nor false")
        return sum(stated) / len(stated)

    listed = "\n".join(f"{number}. {point}" for number, point in zip(numbers, points, strict=True))
    question = CHECKLIST.format(
        points=fenced("points", listed), caption=fenced("caption", caption), count=len(points)
    )
    return await judge.ask(question, parse)


async def answer_mcq(
    judge: Judge, caption: str, question: str, options: list[str], answer: str
) -> bool:
    """True if the judge finds the right option from the caption alone (CapRL, arXiv 2509.22647).

    answer: the right option, or its letter in the given order. Options are shuffled, in the same
    way each time for one question, so that no letter is favoured. Raises ValueError if `answer` is
    none of the options.
    """
    letters = string.ascii_uppercase[: len(options)]
    right = answer if answer in options else dict(zip(letters, options, strict=False)).get(answer)
    if right is None or len(options) > len(letters):
        raise ValueError(f"answer {answer!r:.40} of {question!r:.60} is none of the options")
    shuffled = random.Random(question).sample(options, len(options))

    def parse(reply: dict) -> str | None:
        letter = str(reply["answer"]).strip().strip(".()").upper()
        if letter not in (*letters, "NONE"):
            raise ValueError(f"answer is {letter!r:.40}, not one of the letters {letters}")
        return None if letter == "NONE" else shuffled[letters.index(letter)]

    lines = [
        question,
        *(f"{letter}. {option}" for letter, option in zip(letters, shuffled, strict=True)),
    ]
    asked = CHOICE.format(
        caption=fenced("caption", caption),
        question=fenced("question", "\n".join(lines)),
        letters=", ".join(letters),
    )
    return await judge.ask(asked, parse) == right
