"""Rewards that are computed in place: pure functions of a caption, its reference and its metadata.

All lie in 0..1 (evidence: -1..1), more is better. A function without an input that it needs (a
reference) raises ValueError, which counts as a failure and not as a zero.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Literal

import regex

from ugc_jax.errors import UserError
from ugc_jax.rl.rewards import dialogue
from ugc_jax.settings import check_minimum
from ugc_jax.words import WORD, count_words, plain, words

LONGEST = 30  # characters of a word, or between two words; what is longer is no ordinary text
# With any script's mark at the end of a sentence; Thai and Lao have none.
_SENTENCE_END = regex.compile(
    r"(?:[\p{Sentence_Terminal}…][\p{Pe}\p{Pf}\p{Pi}\"']*+|[\p{Thai}\p{Lao}])$", regex.V1
)


@dataclasses.dataclass(frozen=True)
class LocalConfig:
    """Parameters of the shipped rewards."""

    # length: 1 between length_low and length_high; falls linearly to 0 at 0 words and at
    # 2 * length_high. In scripts without spaces, such as Chinese and Thai, a character is a word
    length_low: int = 130
    length_high: int = 400  # 133 to 400 words are the lengths of the released training captions
    length_unit: Literal["words", "tokens"] = "words"  # what length counts
    # repetition: length of the runs of words that should be all different
    repetition_words: int = 4
    # format: regular expression that the whole caption has to match, within rewards.timeout;
    # default: the caption must end by itself, with a complete sentence
    format_pattern: str | None = None

    def __post_init__(self):
        if not 0 < self.length_low <= self.length_high:
            raise UserError(
                f"length_low is {self.length_low} and length_high is "
                f"{self.length_high}; give 0 < length_low <= length_high"
            )
        check_minimum(self, repetition_words=1)
        try:
            re.compile(self.format_pattern or "")
        except re.error as error:
            raise UserError(
                f"format_pattern {self.format_pattern!r} is not a regular expression ({error})"
            ) from None


def local_functions(config: LocalConfig) -> dict[str, Callable]:
    """The shipped local rewards by name, in the form that `runner.Rewards` calls."""

    def length(prompt, completion, reference, metadata):
        in_words = config.length_unit == "words"
        count = count_words(completion) if in_words else metadata["completion_tokens"]
        return length_band(count, config.length_low, config.length_high)

    def repetition(prompt, completion, reference, metadata):
        return distinct_runs(completion, config.repetition_words)

    def form(prompt, completion, reference, metadata):
        if config.format_pattern is not None:  # it may take for ever: `runner` calls it elsewhere
            return float(bool(re.fullmatch(config.format_pattern, completion, re.DOTALL)))
        return float(metadata["finish_reason"] == "stop" and is_complete(completion))

    def rouge(prompt, completion, reference, metadata):
        return rouge_l(completion, required(reference))

    def spoken(prompt, completion, reference, metadata):
        lines = metadata.get("dialogue")
        if lines is None:
            lines = dialogue.quoted(required(reference))
        return dialogue.f1(dialogue.quoted(completion), dialogue.listed(lines))

    def evidence(prompt, completion, reference, metadata):
        if "evidence" not in metadata:  # rl/supported.py computes it where a policy is at hand
            raise ValueError("the completion was not scored with media hidden")
        return metadata["evidence"]

    return {
        "length": length,
        "repetition": repetition,
        "format": form,
        "rouge": rouge,
        "dialogue": spoken,
        "evidence": evidence,
    }


def required(reference: str | None) -> str:
    """`reference`; ValueError if there is none."""
    if not reference:
        raise ValueError("the row has no reference (neither an answer nor a solution)")
    return reference


def length_band(count: int, low: int, high: int) -> float:
    """1 from `low` to `high`; below linear to 0 at 0, above to 0 at 2 * high (AVoCaDO's R_L)."""
    return min(1.0, count / low, max(0.0, 2 - count / high))


def distinct_runs(text: str, length: int) -> float:
    """The share of different runs among all runs of `length` words: 1 without repetition.

    1 for a text that is too short for two runs, 0 for one without words. A loop inside a word, of
    punctuation, emoji or spaces counts as a loop of words does: what is longer than LONGEST
    characters, as nothing of ordinary text is, is taken character by character.
    """
    units, end = [], 0
    for match in WORD.finditer(text):
        units += _long(text[end : match.start()])
        units += _long(match[0]) or [plain(match[0])]
        end = match.end()
    if not end:
        return 0.0
    units += _long(text[end:])
    runs = [tuple(units[i : i + length]) for i in range(len(units) - length + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def _long(text: str) -> list[str]:
    """The characters of a text that is too long to be a word or a gap between two."""
    return list(text) if len(text) > LONGEST else []


def is_complete(text: str) -> bool:
    """True if the text ends as a sentence of its script does."""
    return bool(_SENTENCE_END.search(text.rstrip()))


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L F1: the longest common subsequence of words over the mean length of the two texts.

    Equals the rouge-score package (without stemming) for text whose words are of a-z and 0-9 only.
    """
    from rapidfuzz.distance import LCSseq

    found, expected = words(text), words(reference)
    total = len(found) + len(expected)
    return 2 * LCSseq.similarity(found, expected) / total if total else 0.0
