"""Questions by caption: a text-only LLM answers questions about a video from its caption alone.

The answerer sees the caption, a question and its options, and may say that the caption does not
mention the answer, which counts as wrong. Its answer is one letter or "not mentioned", exactly; any
other answer is asked again, and then a failure, which is no wrong answer.
"""

import re
import string
from collections.abc import Mapping, Sequence

from ugc_jax.evals import metrics
from ugc_jax.evals.benchmarks.benchmark import Kind, text_of, video_of
from ugc_jax.evals.prompts import Item, Rubric
from ugc_jax.evals.tasks import Form, Sample, is_texts

NOT_MENTIONED = "not mentioned"

WORDING = """\
Answer a question about a video that you cannot see and hear, from a caption of it alone. Where the
caption does not tell the answer, do not guess: the answer is "not mentioned".

{caption}

{question}

Answer with {"answer": "X"}, X the letter of one of the options, or "not mentioned"."""

_LETTERED = re.compile(r"\(?([A-Z])[.):]\s*(\S.*)", re.DOTALL)


def read(rows: Sequence[dict]) -> list[Sample]:
    """A sample a question, called VIDEO#1, VIDEO#2, ... Raises ValueError.

    choices: a list of texts, with or without letters before them, or before some of them.
    answer: a letter, or one of the choices. The reference is {"question", "A", "B", ..., "answer":
    letter}.
    """
    samples: list[Sample] = []
    counts: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        video, question = video_of(row, number), text_of(row, "question", number)
        options = _options(row["choices"], number)
        answer = _letter(text_of(row, "answer", number), options, number)
        counts[video] = counts.get(video, 0) + 1
        reference = {"question": question, **options, "answer": answer}
        samples.append(Sample(f"{video}#{counts[video]}", reference, clip=video))
    return samples


def _options(choices: object, number: int) -> dict[str, str]:
    """{letter: text} of the choices of a row."""
    if not is_texts(choices) or len(choices) < 2:
        raise ValueError(f"row {number}: choices is {choices!r:.40}, not a list of texts")
    letters = string.ascii_uppercase[: len(choices)]
    if len(choices) > len(letters):
        raise ValueError(f"row {number}: {len(choices)} choices, more than there are letters")
    texts = _unlettered([choice.strip() for choice in choices], letters, number)
    if len(set(texts)) < len(texts) or "" in texts:
        raise ValueError(f"row {number}: two choices are equal, or one is blank")
    return dict(zip(letters, texts, strict=True))


def _unlettered(texts: Sequence[str], letters: str, number: int) -> list[str]:
    """The texts of choices without the letters before them.

    Letters before some of them count, too, if a space follows: "A.M." is a text. With a letter that
    is not the choice's own, all are texts, such as names ("T. Jefferson", "B. Franklin").
    """
    found = [_LETTERED.fullmatch(text) for text in texts]
    labels = [match and match[1] for match in found]
    if None in labels:
        found = [match if re.match(r"\(?.[.):]\s", text) else None
                 for match, text in zip(found, texts, strict=True)]  # fmt: skip
        labels = [match and match[1] for match in found]
    elif labels != list(letters) and set(labels) == set(letters):
        raise ValueError(f"row {number}: the letters before the choices are {', '.join(labels)}")
    if any(own not in (None, letter) for own, letter in zip(labels, letters, strict=True)):
        return list(texts)
    return [match[2].strip() if match else text for match, text in zip(found, texts, strict=True)]


def _letter(answer: str, options: Mapping[str, str], number: int) -> str:
    """The letter of the right option, which `answer` gives, or the text of the option."""
    bare = re.fullmatch(r"\(?([A-Z])[.):]?", answer)
    lettered = _LETTERED.fullmatch(answer)
    found = {letter for letter, text in options.items() if text == answer}
    if bare and bare[1] in options:
        found.add(bare[1])
    if lettered and options.get(lettered[1]) == lettered[2].strip():
        found.add(lettered[1])
    if len(found) != 1:
        fault = "is none of the choices" if not found else "may be several of the choices"
        raise ValueError(f"row {number}: the answer {answer!r:.40} {fault}")
    return found.pop()


def letters(sample: Sample) -> list[str]:
    """The letters of a sample's options."""
    return [key for key in sample.reference if len(key) == 1]


def scores(answer: dict, sample: Sample) -> dict:
    """{"score": 100 or 0, "said", "answer"} of an answer. Raises ValueError or KeyError.

    An answer is compared as a whole: "INCORRECT" is not "C", nor is it an option.
    """
    value = answer["answer"]
    text = " ".join(value.split()) if isinstance(value, str) else ""
    bare = re.fullmatch(r"\(?([A-Za-z])[.):]?", text)
    said = bare[1].upper() if bare else text.lower().removesuffix(".")
    if said not in (*letters(sample), NOT_MENTIONED):
        allowed = ", ".join(letters(sample))
        raise ValueError(f'answer is {value!r:.40}, not one of {allowed} or "{NOT_MENTIONED}"')
    right = sample.reference["answer"]
    return {"score": 100.0 * (said == right), "said": said, "answer": right}


def _texts(item: Item) -> dict[str, str]:
    reference = item.sample.reference
    lines = [reference["question"], *(f"{x}. {reference[x]}" for x in letters(item.sample))]
    return {"question": "\n".join(lines)}


def _facts(samples: Sequence[Sample], scored: Sequence[dict]) -> dict:
    """The accuracy of always giving one letter, and how often nothing is mentioned."""
    right = [clip["answer"] for clip in scored] or [one.reference["answer"] for one in samples]
    answer, share = metrics.majority(right)
    silent = sum(clip["said"] == NOT_MENTIONED for clip in scored)
    videos = len({clip["clip"] for clip in scored})
    return {
        "majority": {"answer": answer, "score": share},
        "notes": [
            f"{len(scored)} questions about {videos} videos",
            f'{silent} answers are "{NOT_MENTIONED}"; they count as wrong',
        ],
    }


KIND = Kind(
    ("video", "question", "choices", "answer"),
    read,
    Form(
        "",
        "questions that a text-only judge answers right from the caption alone, in percent",
        lambda _: ("", []),
        None,
        facts=_facts,
        is_caption=True,
        rubric=Rubric(WORDING, scores, (), ("{question}", "{caption}"), _texts),
    ),
)
