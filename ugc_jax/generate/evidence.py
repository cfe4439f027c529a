"""What each word of a caption rests on: log-probabilities with and without media -> verdicts.

    texts -> split -> words; scoring.py -> log-probabilities of tokens under WAYS -> explain
        -> Explanation: words, sentences, shares

The log-probability of a word falls where what it rests on is hidden: the sound (heard), the
picture (seen), either of them alone (both).
It falls only without both where one is enough (either), and stays where the text before it is
enough (text). A content word that the media make no likelier, and that the text does not foretell,
is unsupported: a candidate for a hallucination.
docs/evidence.md has the rules, their reasons and their limits. Imports no jax.
"""

import codecs
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import regex

from ugc_jax.data.hiding import PICTURE, SOUND
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.words import WORD, plain

# What is hidden in each of the four prompts, in the order of all their log-probabilities.
WAYS = ((), (SOUND,), (PICTURE,), (SOUND, PICTURE))
VERDICTS = ("heard", "seen", "both", "either", "text", "unsupported")
SUPPORTED = VERDICTS[:4]  # by the media

LEAST = 0.15  # nats that a log-probability falls by, at least, where something is missed
# Of two falls, the lesser counts if it is at least so much of the greater.
LESSER = 0.25
# Added to each probability: below it, a model's log-probabilities are noise (-14 or -16 nats).
SMOOTHING = 1e-3
UNEXPECTED = math.log(0.1)  # a word less likely than this, which the media do not explain

# English words that state nothing to be seen or heard. In other languages all words count.
_FUNCTION_WORDS = """
a an and are as at be been being but by can could did do does for from had has have he her his i
if in into is it its may might of on one or our over she so some such than that the their them
then there these they this those to was we were what when where which while who will with would
you your also both each other any all not no
"""
_FUNCTION = frozenset(_FUNCTION_WORDS.split())
_CLUSTER = regex.compile(r"\X")
_SENTENCE = regex.compile(
    r"(?:[^\p{Sentence_Terminal}…\n]|(?<=\d)[.](?=\d))*+(?:[\p{Sentence_Terminal}…]++|\n|$)"
    r"[\p{Pe}\p{Pf}\p{Pi}\"']*+",
    regex.V1,
)


class Word(NamedTuple):
    """A word of a caption, text[start:end].

    logprobs: in nats under each of WAYS, of the word after the text before it. verdict: of
    VERDICTS. content: whether it states anything. curve: of an explanation by time, nats that the
    log-probability falls by without each part of the time, {"audio": [...], "vision": [...]}.
    """

    text: str
    start: int
    end: int
    logprobs: tuple[float, float, float, float]
    verdict: str
    content: bool
    curve: dict[str, list[float]] | None = None

    @property
    def support(self) -> float:
        """Nats that sound and picture together add to the log-probability; below 0: take away."""
        return gains(self.logprobs)[2]

    def record(self) -> dict:
        """Return the word as a JSON object."""
        fields = {
            "word": self.text,
            "start": self.start,
            "end": self.end,
            "verdict": self.verdict,
            "support": round(self.support, 3),
            "logprobs": [round(value, 3) for value in self.logprobs],
            "content": self.content,
        }
        if self.curve is not None:
            fields["curve"] = {
                kind: [round(value, 3) for value in values] for kind, values in self.curve.items()
            }
        return fields


class Sentence(NamedTuple):
    """A sentence of a caption, text[start:end], with the verdict on all of it."""

    start: int
    end: int
    verdict: str


class Explanation(NamedTuple):
    """What the words of a caption rest on; or only an `error`, one line.

    times: of an explanation by time, the seconds (begin, end) of the parts of the curves.
    """

    video: str
    text: str = ""
    words: tuple[Word, ...] = ()
    sentences: tuple[Sentence, ...] = ()
    times: tuple[tuple[float, float], ...] = ()
    error: str | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Verdict -> its share of the content words; empty without any."""
        counts = Counter(word.verdict for word in self.words if word.content)
        total = sum(counts.values())
        return {verdict: counts[verdict] / total for verdict in VERDICTS} if total else {}

    @property
    def unsupported(self) -> tuple[Word, ...]:
        """The content words that nothing supports: candidates for hallucinations."""
        return tuple(word for word in self.words if word.verdict == "unsupported")

    def record(self) -> dict:
        """Return it as a JSON object, without the text."""
        fields = {
            "shares": {name: round(share, 4) for name, share in self.shares.items()},
            "unsupported": [word.text for word in self.unsupported],
            "sentences": [one._asdict() for one in self.sentences],
            "words": [word.record() for word in self.words],
        }
        if self.times:
            fields["times"] = [list(part) for part in self.times]
        return fields


def balance(explanation: Explanation) -> float:
    """Return the share of content words that the media support, minus that of unsupported ones.

    In -1..1; 0 for a text without content words.
    """
    shares = explanation.shares
    return sum(shares.get(one, 0.0) for one in SUPPORTED) - shares.get("unsupported", 0.0)


def explain(
    video: str,
    text: str,
    spans: Sequence[tuple[int, int]],
    logprobs: np.ndarray,
    times: Sequence[tuple[float, float]] = (),
    curves: np.ndarray | None = None,
) -> Explanation:
    """Return the explanation of a text from the log-probabilities of its tokens.

    spans: of the tokens in the text, in characters (`token_spans`). logprobs: f32[4, tokens] under
    WAYS. curves: f32[2, parts, tokens] under hidden parts of the sound and of the picture.
    """
    smooth = smoothed(logprobs)
    parts = None if curves is None else np.maximum(smooth[0] - smoothed(curves), 0.0)
    words = []
    for start, end, tokens in word_tokens(text, spans):
        word = text[start:end]
        values = tuple(float(x) for x in smooth[:, tokens].sum(axis=1))
        content = is_content(word)
        curve = None
        if parts is not None:
            falls = parts[:, :, tokens].sum(axis=2)
            curve = dict(zip((SOUND, PICTURE), falls.tolist(), strict=True))
        words.append(Word(word, start, end, values, verdict(values, content), content, curve))
    found = tuple(words)
    return Explanation(video, text, found, tuple(_sentences(text, found)), tuple(times))


def smoothed(logprobs: np.ndarray) -> np.ndarray:
    """Return log(p + SMOOTHING) of log-probabilities, at most 0; f64."""
    values = np.logaddexp(np.asarray(logprobs, np.float64), math.log(SMOOTHING))
    return np.minimum(values, 0.0)


def gains(logprobs: Sequence[float]) -> tuple[float, float, float]:
    """Return the nats lost without the sound, without the picture, and without both."""
    full, no_sound, no_picture, neither = logprobs
    return full - no_sound, full - no_picture, full - neither


def verdict(logprobs: Sequence[float], content: bool = True) -> str:
    """Return the verdict on a word from its log-probabilities under WAYS.

    content: whether it states anything, without which it cannot be unsupported.
    """
    sound, picture, media = gains(logprobs)
    if content and (media <= -LEAST or (media < LEAST and logprobs[0] < UNEXPECTED)):
        return "unsupported"
    return _verdict(sound, picture, media)


def _verdict(sound: float, picture: float, media: float) -> str:
    greater = max(sound, picture)
    # Of a word that the text half foretells, each fall is small.
    if greater < LEAST and (media < LEAST or greater < LESSER * media):
        return "either" if media >= LEAST else "text"
    if min(sound, picture) >= max(LEAST, LESSER * greater):
        return "both"
    return "heard" if sound > picture else "seen"


def is_content(word: str) -> bool:
    """Whether a word states something that could be seen or heard: all but a list of English."""
    return plain(word) not in _FUNCTION


def token_spans(
    ids: Iterable[int], tokenizer: ChatTokenizer, text: str | None = None
) -> list[tuple[int, int]]:
    """Return the characters of a text that each token writes any part of, (start, end).

    Spans of tokens that share a character overlap. text: what was encoded, whose characters are
    meant; the tokens may write another form of it (é for e and an accent). None: the text that the
    tokens decode to, where a malformed character is one U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    spans, parts, done = [], [], 0
    for token in ids:
        part = decoder.decode(tokenizer.bytes_of(token))
        start, done = done, done + len(part)
        spans.append((start, done + bool(decoder.getstate()[0])))
        parts.append(part)
    written = "".join(parts) + decoder.decode(b"", final=True)
    if text is None or text == written:
        return spans
    places = _places(text, written, tokenizer)
    return [
        (places[start][0], places[end - 1][1]) if start < end else places[start][:1] * 2
        for start, end in spans
    ]


def _places(text: str, written: str, tokenizer: ChatTokenizer) -> list[tuple[int, int]]:
    """Return where each character of a normalised text, and its end, stand in the original.

    text: the original. written: its normalised form. The characters of a cluster (a letter with its
    marks, a syllable) that normalisation changes stand for the whole cluster.
    """
    places: list[tuple[int, int]] = []
    for match in _CLUSTER.finditer(text):
        start, end = match.span()
        if written.startswith(match[0], len(places)):
            places += [(place, place + 1) for place in range(start, end)]
        else:
            places += [(start, end)] * len(tokenizer.normalized(match[0]))
    missing = len(written) + 1 - len(places)  # the end is one more
    return places + [(len(text), len(text))] * missing


def word_tokens(
    text: str, spans: Sequence[tuple[int, int]]
) -> Iterable[tuple[int, int, list[int]]]:
    """Yield (start, end) of each word of a text, and the tokens that write it.

    A token of two words counts for the first of them; a word without a token of its own is left
    out, as its log-probability is unknown.
    """
    place = 0
    for match in WORD.finditer(text):
        start, end = match.span()
        while place < len(spans) and spans[place][1] <= start:
            place += 1
        tokens = []
        while place < len(spans) and spans[place][0] < end:
            tokens.append(place)
            place += 1
        if tokens:
            yield start, end, tokens


def _sentences(text: str, words: Sequence[Word]) -> Iterable[Sentence]:
    """Yield the sentences that have words.

    A sentence is unsupported if a content word of it is; else its verdict is that on the sums of
    what its words lose.
    """
    for match in _SENTENCE.finditer(text):
        own = [word for word in words if match.start() <= word.start < match.end()]
        if not own:
            continue
        start = own[0].start
        if any(word.verdict == "unsupported" for word in own):
            yield Sentence(start, match.end(), "unsupported")
            continue
        lost = np.maximum([gains(word.logprobs) for word in own], 0.0).sum(axis=0)
        yield Sentence(start, match.end(), _verdict(*lost.tolist()))
