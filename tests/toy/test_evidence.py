"""ugc_jax.toy.evidence: what each word of a right caption rests on, and wrong words, by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ugc_jax.generate.evidence import Word, is_content
from ugc_jax.toy import world
from ugc_jax.toy.evidence import RESTS, auroc, expected, measure, replaced
from ugc_jax.words import WORD

TRUTH = {
    "shape": "circle",
    "colour": "white",
    "motion": "left",
    "background": "grey",
    "change": "purple",
    "sound": "music",
    "pitch": "high",
    "rhythm": "slow",
    "text": "JUMP",
    "first": "sound",
}
# (phrasing, when the sound begins) -> name -> word. The order is in a word of its own, and rests on
# the sound alone where that begins before or after both of the shape's times.
COMMON = {
    name: TRUTH[name]
    for name in ("shape", "colour", "motion", "background", "sound", "pitch", "rhythm", "text")
}
CASES = {
    (0, "middle"): COMMON | {"rhythm": "Slow", "first": "before"},
    (0, "early"): COMMON | {"rhythm": "Slow", "first, by sound": "before"},
    (1, "late"): COMMON | {"first, by sound": "before"},
    # "Slow high music, then a white circle": that the sound comes first is in the word slow
    (2, "middle"): {name: word for name, word in COMMON.items() if name != "rhythm"},
    (3, "middle"): COMMON | {"first": "before"},
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_where_words_start(case):
    phrasing, begins = case
    caption = world.write_caption(TRUTH, phrasing)
    found = expected(caption, TRUTH, {"shape": "early", "sound": begins})
    words = {match.start(): match[0] for match in WORD.finditer(caption)}
    assert {name: words[start] for name, start in found.items()} == CASES[case]
    assert found.keys() <= RESTS.keys()


def test_no_text_is_no_word():
    caption = world.write_caption(TRUTH | {"text": world.NO_TEXT}, 0)
    found = expected(caption, TRUTH | {"text": world.NO_TEXT}, {"sound": "middle"})
    assert "text" not in found
    assert "first" in found


def test_the_sound_alone_tells_the_order_unless_it_begins_in_the_middle():
    orders = {}
    for first, pairs in world.ORDERS.items():
        for shape, sound in pairs:
            orders.setdefault(sound, []).append(first)
            appears, begins = world.SHAPE_BEGINS[shape], world.SOUND_BEGINS[sound]
            assert (first == "shape") == (appears[1] < begins[0])
    assert sorted(orders["middle"]) == ["shape"] * 3 + ["sound"] * 3
    assert set(orders["early"]) == {"sound"}
    assert set(orders["late"]) == {"shape"}


def test_a_replaced_attribute():
    caption, random = world.write_caption(TRUTH, 0), np.random.default_rng(0)
    seen = set()
    for _ in range(50):
        name, text, start = replaced(caption, TRUTH, random)
        right = [one for one, is_right in world.check(text, TRUTH).items() if is_right]
        assert set(right) == TRUTH.keys() - {name}
        assert text[:start] == caption[:start]
        assert text[start:] != caption[start:]
        seen.add(name)
    assert len(seen) > 5


def test_auroc():
    assert auroc([0, 1], [1, 2]) == 0.875  # three pairs in order, and one tie
    assert auroc([1.0], [0.0]) == 0


class Listener:
    """A captioner that is right about the captions of `rows`, but finds a colour in both media."""

    def __init__(self, rows: list[dict]):
        self.right = [row["messages"][-1]["content"] for row in rows]

    def explain(self, clips: list[str], texts: list[str]) -> list[SimpleNamespace]:
        assert clips == [f"world/test/00000{n}.mp4" for n in (0, 1, 0, 1)]
        assert texts[:2] == self.right
        return [
            SimpleNamespace(text=text, words=list(self.words(text, self.right[place % 2])))
            for place, text in enumerate(texts)
        ]

    def words(self, text: str, right: str):
        verdicts = {TRUTH[name]: RESTS[name] for name in COMMON} | {"before": "both"}
        if right == self.right[1]:
            verdicts["white"] = "either"
        truth = [match[0] for match in WORD.finditer(right)]
        is_right = True
        for match, true in zip(WORD.finditer(text), truth, strict=False):
            support = -2.0 if is_right and match[0] != true else 1.0
            is_right &= match[0] == true
            logprobs = (-3.0 + support, -3.0, -3.0, -3.0)
            verdict = verdicts.get(match[0], verdicts.get(match[0].lower(), "text"))
            yield Word(match[0], *match.span(), logprobs, verdict, is_content(match[0]))


def test_figures_by_hand():
    rows = [
        {
            "videos": [f"test/{number:06d}.mp4"],
            "messages": [{"content": "?"}, {"content": world.write_caption(TRUTH, phrasing)}],
            "attributes": TRUTH,
            "begins": {"shape": "late", "sound": "middle"},
        }
        for number, phrasing in enumerate((0, 3))
    ]
    found = measure(Listener(rows), Path("world"), rows)
    assert found.accuracy("colour") == 0.5
    others = RESTS.keys() - {"colour", "first, by sound"}
    assert {name: found.accuracy(name) for name in others} == dict.fromkeys(others, 1)
    assert not found.verdicts["first, by sound"]
    assert (found.wrong, found.auroc) == (2, 1.0)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.shares["either"] == pytest.approx(found.shares["both"] / 2)
