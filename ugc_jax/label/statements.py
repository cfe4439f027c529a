"""What two texts about one clip say against each other, found by rules and without a model.

A statement is a word of a group whose members exclude each other (colours, directions, pitches)
with the word that it belongs to: "a red circle moves left" states red of circle, left of moves.
Two texts contradict each other where they state different members of the same word, where each has
members of an excluding group of nouns that the other lacks (a circle, a square), or where they
order two things differently. What only one of them says is no contradiction.

The rules know English, and only what is listed here. They find what is plainly contradicted; an LLM
(`judge.model`) finds more.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ugc_jax.words import spaced_words

# Group -> words that exclude each other of one thing; synonyms by "=".
_MODIFIERS = {
    "colour": "red green blue yellow pink white black purple=violet grey=gray brown teal orange "
    "beige golden=gold silver",
    "direction": "left=leftward=leftwards right=rightward=rightwards up=upward=upwards "
    "down=downward=downwards",
    "speed": "slow=slowly fast=quick=quickly=rapid=rapidly",
    "pitch": "low=deep middle=medium high=high-pitched",
    "loudness": "quiet=quietly=soft=softly loud=loudly",
    "number": "one=1 two=2 three=3 four=4 five=5 six=6 seven=7 eight=8 nine=9 ten=10",
}
# Things of which one is mistaken for another.
_NOUNS = {
    "shape": "circle=circles square=squares triangle=triangles rectangle=rectangles",
    "sound": "beeps=beep=beeping music=melody=song noise=hiss applause=clapping silence",
    "person": "man=men=male=boy=boys woman=women=female=girl=girls",
}
_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an the and or but of in on at to over with while as it its is are was were be been "
        "being that which then for from by into after before during there this these those some "
        "very against across through near both can one",
    )
)
# Only these take a direction: "up" and "right" mean much else.
_MOVES = re.compile(
    r"(?:mov|walk|run|driv|slid|turn|travel|drift|fl(?:y|ies|ying)|roll|head|point|go(?:es|ing)?$"
    r"|look|fac|swim|jump|shift|pan)"
)
_TOKEN = re.compile(r"[A-Za-z0-9]+(?:[-'’][A-Za-z0-9]+)*|[.,;:!?()\"“”]")
_END = re.compile(r"(?<=[.!?])\s+")
_CUE = re.compile(
    r"\b(?:words?|texts?|reads?|captions?|subtitles?|title|sign|overlay|label|written)\b",
    re.IGNORECASE,
)
_CAPITALS = re.compile(r"\b[A-Z][A-Z0-9'’&-]{1,}\b")
_QUOTED = re.compile(r"[\"“]([^\"“”]{2,200})[\"”]|(?<!\w)['‘]([^'‘’]{2,200})['’](?!\w)")
_NO_TEXT = re.compile(
    r"\b(?:no|without(?: any)?|free of) (?:on-screen |onscreen |visible |written |overlaid )*"
    r"(?:words?|texts?|captions?|writing)\b|\b(?:read|reads|shows?) nothing\b"
    r"|\bnot show(?:n|s)? any (?:text|words?)\b",
    re.IGNORECASE,
)
_COLOURS = "|".join(re.split(r"[ =]", _MODIFIERS["colour"]))
_FILLER = rf"(?:(?:that|which|and|is|it|also|then|slowly|suddenly|later|gradually|{_COLOURS})\s+)*"
_BACKGROUND = re.compile(
    rf"\b(?:background|backdrop|setting)\s+{_FILLER}"
    r"(?:(?P<stays>stays|remains|does not change|is static|is unchanged|unchanged)"
    r"|(?P<turns>turns|changes|becomes|shifts|switches))\b",
    re.IGNORECASE,
)
_MUSIC = re.compile(r"\b(?:music|song|melody|soundtrack)\b", re.IGNORECASE)
BACKGROUND = "background"
_SIMILAR = 80.0  # percent of the letters, for texts that are read almost alike
_SHORT = 8  # letters of a text of which almost alike is another word
_NO_MUSIC = re.compile(
    r"\b(?:no|without(?: any)?) (?:\w+ )?(?:music|song|melody|soundtrack)\b", re.IGNORECASE
)


class Statement(NamedTuple):
    """A member of a group, stated of a word."""

    group: str
    of: str
    value: str

    def __str__(self) -> str:
        return f"{self.of}: {self.value}"


class Contradiction(NamedTuple):
    """What two texts say against each other: about what, and both sides in a phrase."""

    topic: str
    said: str


def _table(groups: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Word -> (group, its first synonym)."""
    found = {}
    for group, words in groups.items():
        for word in words.split():
            first, *others = word.split("=")
            found |= {one: (group, first) for one in (first, *others)}
    return found


_BY_WORD = _table(_MODIFIERS)
_BY_NOUN = _table(_NOUNS)
NOUNS = frozenset(_BY_NOUN)


def statements(text: str) -> list[Statement]:
    """Return the statements of a text, in order."""
    found = []
    for sentence in _END.split(text):
        tokens = [token.lower() for token in _TOKEN.findall(sentence)]
        for place, token in enumerate(tokens):
            if token in _BY_WORD and (of := _of(tokens, place)) is not None:
                group, value = _BY_WORD[token]
                if group == "direction" and not _MOVES.match(of):
                    continue
                found.append(Statement(group, _BY_NOUN.get(of, ("", of))[1], value))
    return found


def _of(tokens: Sequence[str], place: int) -> str | None:
    """Return the word that a modifier belongs to: the next one, or the last one before it."""
    for token in tokens[place + 1 :]:
        if token in _BY_WORD:
            continue
        if token[0].isalnum() and token not in _STOP:
            return token
        break
    for token in reversed(tokens[:place]):
        if not token[0].isalnum():
            return None
        if token not in _BY_WORD and token not in _STOP:
            return token
    return None


def contradictions(one: str, other: str) -> list[Contradiction]:
    """Return what two texts say against each other."""
    found = []
    ours, theirs = statements(one), statements(other)
    for group, of in dict.fromkeys((each.group, each.of) for each in ours):
        mine = {each.value for each in ours if (each.group, each.of) == (group, of)}
        yours = {each.value for each in theirs if (each.group, each.of) == (group, of)}
        if mine and yours and mine.isdisjoint(yours):
            said = f"{of}: {_listed(mine)} / {_listed(yours)}"
            found.append(Contradiction(f"{group} of {of}", said))
    mine, yours = _nouns(one), _nouns(other)
    for group in _NOUNS:
        only_mine, only_yours = mine[group] - yours[group], yours[group] - mine[group]
        if only_mine and only_yours:
            said = f"{group}: {_listed(only_mine)} / {_listed(only_yours)}"
            found.append(Contradiction(group, said))
    states = background(one), background(other)
    if None not in states and states[0] != states[1]:
        found.append(Contradiction(BACKGROUND, f"the background {states[0]} / {states[1]}"))
    return found


def _nouns(text: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {group: set() for group in _NOUNS}
    for token in _TOKEN.findall(text):
        if (known := _BY_NOUN.get(token.lower())) is not None:
            found[known[0]].add(known[1])
    return found


def background(text: str) -> str | None:
    """Return "stays" or "turns" where a text says that of the background; None for both or none."""
    found = {match.lastgroup for match in _BACKGROUND.finditer(text)}
    return found.pop() if len(found) == 1 else None


# ---- text on the screen --------------------------------------------------------------------------


def shown_texts(text: str) -> list[str]:
    """Return the texts that a caption says are shown: quoted or in capitals, beside a cue."""
    found = []
    for sentence in _END.split(text):
        if _CUE.search(sentence) is None or _NO_TEXT.search(sentence):
            continue
        quoted = [one or two for one, two in _QUOTED.findall(sentence)]
        found += quoted or _CAPITALS.findall(sentence)
    return found


def denies_text(text: str) -> bool:
    """Return whether a caption says that no text is shown."""
    return _NO_TEXT.search(text) is not None and not shown_texts(text)


def text_contradictions(texts: Iterable[str], caption: str, drafts: str) -> list[Contradiction]:
    """Return what a caption says against the texts that were seen.

    drafts: all that was heard and seen; what the caption quotes of it is no contradiction.
    """
    texts = list(texts)
    seen = _listed(texts) or "none"
    found = [_of_text(seen, one) for one in shown_texts(caption) if not _is_in(one, drafts)]
    if texts and denies_text(caption):
        found.append(_of_text(seen, "none"))
    return found


def text_differences(one: str, other: str) -> list[Contradiction]:
    """Return where two captions say that different texts, or text and none, are shown."""
    mine, yours = shown_texts(one), shown_texts(other)
    if mine and yours:
        alike = any(_is_in(a, b) or _is_in(b, a) for a in mine for b in yours)
        return [] if alike else [_of_text(mine[0], yours[0])]
    if mine and denies_text(other):
        return [_of_text(mine[0], "none")]
    if yours and denies_text(one):
        return [_of_text("none", yours[0])]
    return []


def _of_text(one: str, other: str) -> Contradiction:
    return Contradiction("text", f"text on the screen: {one} / {other}")


def _is_in(text: str, longer: str) -> bool:
    """Return whether a text stands in a longer one; one of some length, nearly."""
    from rapidfuzz.fuzz import partial_ratio

    text, longer = spaced_words(text), spaced_words(longer)
    if f" {text} " in f" {longer} ":
        return True
    return len(text) >= _SHORT and partial_ratio(text, longer) >= _SIMILAR


# ---- music, and the order of things --------------------------------------------------------------


def music_contradictions(music: bool, heard: str, caption: str) -> list[Contradiction]:
    """Return what a caption says against the presence of music. heard: what the sound pass says."""
    denies = _NO_MUSIC.search(caption) is not None
    claims = _MUSIC.search(_NO_MUSIC.sub("", caption)) is not None
    if music and denies and not claims:
        return [Contradiction("music", "music: heard / none")]
    if not music and claims and not _MUSIC.search(_NO_MUSIC.sub("", heard)):
        return [Contradiction("music", "music: none heard / some")]
    return []


def order(text: str, things: Iterable[str]) -> set[tuple[str, str]]:
    """Return the pairs (earlier, later) of things that a text orders by before, after or then."""
    known = {thing.lower() for thing in things}
    pairs = set()
    for sentence in _END.split(text):
        tokens = [token.lower() for token in _TOKEN.findall(sentence)]
        for place, token in enumerate(tokens):
            if token not in ("before", "after", "then"):
                continue
            left = next((one for one in reversed(tokens[:place]) if one in known), None)
            right = next((one for one in tokens[place + 1 :] if one in known), None)
            if left is not None and right is not None and left != right:
                pairs.add((right, left) if token == "after" else (left, right))
    return pairs


def order_differences(one: str, other: str, things: Iterable[str]) -> list[Contradiction]:
    """Return where two texts order the same two things differently."""
    things = list(things)
    mine, yours = order(one, things), order(other, things)
    return [
        Contradiction("order", f"order: {first} before {second} / {second} before {first}")
        for first, second in sorted(mine)
        if (second, first) in yours and (first, second) not in yours
    ]


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))
