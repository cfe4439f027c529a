"""How right evidence is on the world, where it is known what each word rests on.

caption -> expected -> {attribute: (word's start, verdict)} -> accuracy of verdicts
attributes -> one replaced -> caption with one wrong word -> AUROC of unsupported words
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ugc_jax.generate.captioner import Captioner
from ugc_jax.generate.evidence import VERDICTS, Explanation, is_content
from ugc_jax.toy import world
from ugc_jax.words import WORD

RESTS = dict.fromkeys(("shape", "colour", "motion", "background", "text"), "seen")
RESTS |= dict.fromkeys(("sound", "pitch", "rhythm"), "heard")
# The order of shape and sound. A sound that begins at the middle time says nothing about it; any
# other time of the sound determines it (world.ORDERS).
RESTS |= {"first": "both", "first, by sound": "heard"}
# The caption that begins with the one that comes first: its first words tell the order, too.
_PAIR = 2


class Figures(NamedTuple):
    """verdicts: attribute -> verdict -> count. auroc: of finding the wrong word of a caption, among
    all its content words. wrong: captions with one. shares: of verdicts in right captions.
    """

    verdicts: dict[str, Counter]
    auroc: float
    wrong: int
    shares: dict[str, float]

    def accuracy(self, name: str) -> float:
        """The share of an attribute's words whose verdict is that of RESTS."""
        counts = self.verdicts[name]
        return counts[RESTS[name]] / max(counts.total(), 1)


def phrasing_of(caption: str, attributes: Mapping[str, str]) -> int:
    """Return the number of a right caption's phrasing. Raises ValueError for any other caption."""
    every = range(len(world.PHRASINGS))
    return [world.write_caption(attributes, number) for number in every].index(caption)


def expected(
    caption: str, attributes: Mapping[str, str], begins: Mapping[str, str]
) -> dict[str, int]:
    """Return where the word of each name of RESTS starts in a right caption.

    The first time that it is stated: afterwards it is known from the text. Left out are a word that
    states the order too, and the absence of a text. begins: of the world's row.
    """
    pair = phrasing_of(caption, attributes) == _PAIR
    words = [(match[0], match.start()) for match in WORD.finditer(caption)]

    def first(*those: str) -> int:
        return next(start for word, start in words if word in those)

    starts = {}
    for name in RESTS.keys() & attributes.keys() - {"first"}:
        if (value := attributes[name]) != world.NO_TEXT:
            starts[name] = first(value, value.capitalize())
    if not pair:
        name = "first" if begins["sound"] == "middle" else "first, by sound"
        starts[name] = first("before", "after")
    if pair and attributes["first"] == "sound":
        del starts["rhythm"]
    return starts


def replaced(
    caption: str, attributes: Mapping[str, str], random: np.random.Generator
) -> tuple[str, str, int]:
    """Return (name of a random attribute, the caption with another value, start of the first word
    that is wrong).

    Attributes whose first wrong word is none that states anything are not taken.
    """
    number = phrasing_of(caption, attributes)
    right = list(WORD.finditer(caption))
    while True:
        name = str(random.choice(list(world.VALUES)))
        others = [value for value in world.VALUES[name] if value != attributes[name]]
        value = str(random.choice(others))
        text = world.write_caption({**attributes, name: value}, number)
        for old, new in zip(right, WORD.finditer(text), strict=False):
            if old[0] != new[0]:
                if is_content(new[0]) and is_content(old[0]):
                    return name, text, new.start()
                break


def measure(
    captioner: Captioner, folder: Path, rows: Sequence[dict], seed: int = 0, **options
) -> Figures:
    """Explain the right captions of clips, and the same with one attribute replaced.

    rows: of the world's manifest in `folder`. seed: of the replaced attributes.
    """
    random = np.random.default_rng(seed)
    captions = [row["messages"][-1]["content"] for row in rows]
    wrong = [
        replaced(text, row["attributes"], random)
        for text, row in zip(captions, rows, strict=True)
    ]  # fmt: skip
    clips = [str(folder / row["videos"][0]) for row in rows]
    texts = [*captions, *(text for _, text, _ in wrong)]
    told = captioner.explain([*clips, *clips], texts, **options)
    verdicts = {name: Counter() for name in RESTS}
    right, others = told[: len(rows)], told[len(rows) :]
    for row, one in zip(rows, right, strict=True):
        found = {word.start: word for word in one.words}
        for name, start in expected(one.text, row["attributes"], row["begins"]).items():
            verdicts[name][found[start].verdict] += 1
    scores: tuple[list[float], list[float]] = ([], [])  # of words that are right, and wrong
    for one, (_, _, start) in zip(others, wrong, strict=True):
        for word in one.words:
            if word.content and (word.start <= start or not _repeats(one, word.text, start)):
                scores[word.start == start].append(-word.support)
    content = Counter(word.verdict for one in right for word in one.words if word.content)
    shares = {verdict: content[verdict] / content.total() for verdict in VERDICTS}
    return Figures(verdicts, auroc(*scores), len(wrong), shares)


def _repeats(told: Explanation, text: str, start: int) -> bool:
    """Whether a word is the one at `start` again."""
    return any(word.start == start and word.text.lower() == text.lower() for word in told.words)


def auroc(negative: Sequence[float], positive: Sequence[float]) -> float:
    """Return the probability that a positive score is above a negative one; ties count half."""
    from scipy.stats import rankdata

    ranks = rankdata([*negative, *positive])[len(negative) :]
    below = ranks.sum() - len(positive) * (len(positive) + 1) / 2
    return float(below / (len(positive) * len(negative)))
