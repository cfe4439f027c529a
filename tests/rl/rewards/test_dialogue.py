"""ugc_jax.rl.rewards.dialogue: who says what, found in captions and compared."""

import itertools
import time

import pytest

from ugc_jax.rl.rewards.dialogue import Quotation, f1, likeness, listed, quoted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('It rains. A man asks, "Where are you?" Then it ends.', [("A man", "Where are you?")]),
        ("A young woman in red says: “Look at this!”", [("A young woman in red", "Look at this!")]),
        ('"Come here," the coach shouted, and ran.', [("the coach", "Come here,")]),
        ('"Come here," shouts the coach. He runs.', [("the coach", "Come here,")]),
        (
            'The boy says, "Yes." and the girl replies, "No."',
            [("The boy", "Yes."), ("the girl", "No.")],
        ),
        ('He waves as Rachel Zegler tells a joke, saying, "Hi."', [("", "Hi.")]),
        ('Rain falls, followed by a calm male voice saying "Yes"', [("a calm male voice", "Yes")]),
        (
            'She whispers to her dog, "Come," and then "Sit."',
            [("", "Come,"), ("", "Sit.")],
        ),
        ('There is chatter, featuring a girl who explains: "So."', [("", "So.")]),
        ('A jingle, featuring a man singing, "La."', [("a man", "La.")]),
        ('The sign reads "EXIT". It rains.', []),
        ('White text states, "EXIT" and a man says "Hi".', [("a man", "Hi")]),
        ('The word "EXIT" is seen, a man says "Hi".', [("a man", "Hi")]),
        ("Nobody speaks. It's a dog's life.", []),
    ],
)
def test_quoted(text, expected):
    assert quoted(text) == [Quotation(*line) for line in expected]


def test_a_degenerate_caption_takes_no_time():
    began = time.perf_counter()
    assert quoted('"Hi" ' + " " * 8000 + "x" * 70 + " said.") == []  # no name is so long
    assert quoted('"Hi"' + " " * 8000 + "Ann said.") == [("Ann", "Hi")]
    assert time.perf_counter() - began < 1


def test_listed():
    lines = [{"speaker": "a man", "text": "Hi"}, {"text": "Ho"}, ["a dog", "Wuff"]]
    assert listed(lines) == [
        Quotation("a man", "Hi"),
        Quotation("", "Ho"),
        Quotation("a dog", "Wuff"),
    ]
    for wrong in ({"speaker": "a man"}, "Hi", ["a", "b", "c"], 7, {"speaker": 3, "text": "Hi"}):
        with pytest.raises(ValueError, match="dialogue holds"):
            listed([wrong])


@pytest.mark.parametrize(
    ("line", "expected", "score"),
    [
        (("the woman", "Hello there"), ("a young woman in red", "hello, there!"), 1.0),
        (("a man", "Hello there"), ("a woman", "Hello there"), 0.5),
        (("", "Hello there"), ("a woman", "Hello there"), 0.5),
        (("a man", "Hello there"), ("", "Hello there"), 1.0),
        (("a man", "abcdefghij"), ("a man", "abcdefXXXX"), (1 + 0.6) / 2),
        (("a man", "abcdefghij"), ("a man", "abcdeXXXXX"), 0.0),
        (
            ("a man", "我爱你们。"),
            ("a man", "「我爱他们」"),
            (1 + 0.75) / 2,
        ),  # no spaces between them
        (("a man", "नमस्ते दुनिया"), ("a man", "नमस्ते, दुनिया!"), 1.0),
        (("a man", "Cafe\u0301"), ("a man", "café"), 1.0),
    ],
)
def test_likeness(line, expected, score):
    assert likeness(Quotation(*line), Quotation(*expected)) == pytest.approx(score)


def best_in_order(said, expected):
    """The best sum of likenesses over all ways to match lines in their order."""
    return max(
        sum(likeness(said[i], expected[j]) for i, j in zip(mine, theirs, strict=True))
        for count in range(min(len(said), len(expected)) + 1)
        for mine in itertools.combinations(range(len(said)), count)
        for theirs in itertools.combinations(range(len(expected)), count)
    )


def test_f1_is_the_best_match_in_order():
    words = ["come over here", "come over there", "go away", "go away now", "what is that"]
    lines = [Quotation(speaker, text) for speaker in ("a man", "a girl") for text in words]
    said, expected = lines[::2], lines[1:8][::-1] + lines[:2]
    total = len(said) + len(expected)
    assert f1(said, expected) == pytest.approx(2 * best_in_order(said, expected) / total)
    assert f1(lines, lines) == pytest.approx(1)


def test_nothing_said():
    line = Quotation("a man", "Hello")
    assert f1([], []) == 1
    assert f1([line], []) == 0
    assert f1([], [line]) == 0
    assert f1([line, line], [line]) == pytest.approx(2 / 3)  # what is made up costs precision
