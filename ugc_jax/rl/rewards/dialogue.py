"""How well a caption reports who says what: dialogue F1 (AVoCaDO, arXiv 2510.10395, R_D).

    A man asks, "Where are you?"  ->  Quotation("A man", "Where are you?")

The dialogue of a caption is its quotations with a verb of saying before or after them; the name
beside the verb is the speaker. Quotations without such a verb (signs, titles, sounds) do not count.
The sentences around a quotation are read as English; the quotations may be of any language.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from ugc_jax.words import spaced_words, words

SAME = 0.6  # the least similarity of two quotations that can be the same

_QUOTE = re.compile(r"“([^”]+)”|\"([^\"]+)\"")
_SENTENCE = re.compile(r"[.!?。！？]\s+")
_VERB = re.compile(
    r"\b(?:said|sang|spoke|(?:say|ask|answer|shout|yell|whisper|exclaim|explain|add|sing|speak|respond|"
    r"remark|comment|murmur|stat|narrat|announc|declar|continu|repl)(?:s|es|ies|e|y|ed|ied|y?ing)?)\b",
    re.IGNORECASE,
)
_TO_QUOTE = re.compile(r"[^,;:]{0,60}[,:]?\s*")  # from the verb to its quotation: " to her, "
_GAP = re.compile(r"[\s,]*")
_SPEAKER = re.compile(r"[^,;:]{0,60}")  # from a quotation to its verb, without the gaps
# between two quotations of one speaker: ", and then "
_ON = re.compile(r"[\s,;.]*(?:and|then|or|and then)?[\s,:]*")
_CLAUSE = re.compile(r"[,;:]|\b(?:and|as|while|when|where|before|after|then|but|by|who)\b")
_NAME = re.compile(r"(?i:\b(?:an?|the|another|one|his|her|their)\s.*)|[A-Z]\w+(?:\s[A-Z]\w+)*")
_WRITTEN = re.compile(r"\b(?:text|sign|captions?|overlay|title|subtitles?|screen)\b", re.IGNORECASE)
_PRONOUNS = {"he", "she", "they", "it", "who", "i", "we", "you"}
_ARTICLES = {"a", "an", "the", "his", "her", "their", "its"}


class Quotation(NamedTuple):
    """A quotation. speaker: "" if unknown."""

    speaker: str
    words: str


def quoted(text: str) -> list[Quotation]:
    """The quotations of a text that are speech, in their order."""
    lines, end, speaker = [], 0, None
    for match in _QUOTE.finditer(text):
        between = text[end : match.start()]
        if end == 0 or not _ON.fullmatch(between):  # else the one before goes on speaking
            after = _SENTENCE.split(text[match.end() :], maxsplit=1)[0]
            speaker = _speaker(_SENTENCE.split(between)[-1], after)
        if speaker is not None:
            lines.append(Quotation(speaker, (match[1] or match[2]).strip()))
        end = match.end()
    return lines


def listed(lines: Sequence) -> list[Quotation]:
    """The quotations in a manifest's "dialogue" column: {"speaker", "text"} objects or pairs.

    Raises ValueError for anything else.
    """
    found = []
    for line in lines:
        match line:
            case {"speaker": str(speaker), "text": str(words)} | [str(speaker), str(words)]:
                found.append(Quotation(speaker, words))
            case {"text": str(words), **others} if others.get("speaker") is None:
                found.append(Quotation("", words))
            case _:
                raise ValueError(
                    f'dialogue holds {line!r:.60}, not {{"speaker": ..., "text": ...}}'
                )
    return found


def f1(stated: Sequence[Quotation], expected: Sequence[Quotation]) -> float:
    """2 * S / (number stated + number expected); S is the best score of matching them in order.

    S follows from the longest-common-subsequence recurrence; a matched pair adds its `likeness`.
    1.0 if both are empty.
    """
    if not stated and not expected:
        return 1.0
    best = [0.0] * (len(expected) + 1)  # [n]: of `stated` so far with the first n of `expected`
    for line in stated:
        above = best.copy()
        for n, other in enumerate(expected, 1):
            best[n] = max(above[n], best[n - 1], above[n - 1] + likeness(line, other))
    return 2 * best[-1] / (len(stated) + len(expected))


def likeness(line: Quotation, expected: Quotation) -> float:
    """The score of a pair, 0..1: (speaker + words) / 2, or 0 where the words are below SAME.

    Words: 1 - edit distance / longer length. Speaker: common words over those of the shorter name,
    without articles, so that "the woman" matches "a young woman in red" but no man. Where no
    speaker is expected, only the words count.
    """
    from rapidfuzz.distance import Levenshtein

    said = [spaced_words(quotation.words) for quotation in (line, expected)]
    similarity = Levenshtein.normalized_similarity(*said)
    if similarity < SAME:
        return 0.0
    names = [set(words(quotation.speaker)) - _ARTICLES for quotation in (line, expected)]
    if not names[1]:
        return similarity
    speaker = len(names[0] & names[1]) / max(1, min(map(len, names)))
    return (speaker + similarity) / 2


def _speaker(before: str, after: str) -> str | None:
    """The speaker by the sentence around a quotation; "" if unknown, None if it is not speech."""
    for verb in reversed(list(_VERB.finditer(before))):
        if _TO_QUOTE.fullmatch(before, verb.end()):
            return _named(_CLAUSE.split(before[: verb.start()])[-1])
    beside = _QUOTE.split(after, maxsplit=1)[0]
    verb = _VERB.search(beside)
    if verb is None or (beside != after and _TO_QUOTE.fullmatch(beside, verb.end())):
        return None  # no verb, or that of the next quotation
    first = beside[_GAP.match(beside).end() : verb.start()].rstrip()
    if _SPEAKER.fullmatch(first) is None:
        return None
    return _named(first or _CLAUSE.split(beside[verb.end() :])[0])


def _named(clause: str) -> str | None:
    """The speaker's name in the clause beside a verb of saying; None for something written."""
    if _WRITTEN.search(clause):
        return None
    match = _NAME.search(clause)
    name = match[0].strip() if match else ""
    return "" if name.lower() in _PRONOUNS else name
