"""Scores of the OCR task as released: BLEU-1 and ROUGE after one of two normalisations.

"raw" was used for some published models and "cleaned" for others. Both follow the release exactly,
quirks included: one of them gives each published figure to three decimals.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from types import SimpleNamespace
from typing import Literal

Normalisation = Literal["raw", "cleaned"]

_ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
_TOKEN = re.compile(r"[A-Za-z0-9]+(?:'[A-Za-z0-9]+)?")
_QUOTED = re.compile(r'"([^"]+)"')


def scores(
    reference: Sequence[str], prediction: str, normalisation: Normalisation
) -> dict[str, float] | None:
    """{"score", "bleu_1", "rouge_1", "rouge_2", "rouge_l"}: fractions; the score is their mean.

    reference: the texts in the video. prediction: a model's answer, ideally JSON: {"ocr": [...]}.
    None if the normalisation leaves the sample out: "raw" without a reference, "cleaned" without a
    text on either side, such as a prediction that is not JSON and has no quotes.
    """
    if normalisation == "raw":
        expected, predicted = " ".join(reference).lower(), _raw(prediction)
        is_left_out = not reference
    else:
        expected_texts = [_cleaned(text) for text in reference]
        predicted_texts = [_cleaned(text) for text in _texts(prediction)]
        expected, predicted = " ".join(expected_texts), " ".join(predicted_texts)
        is_left_out = not expected_texts or not predicted_texts
    if is_left_out:
        return None
    rouge = _scorer().score(expected, predicted)
    parts = {"bleu_1": bleu_1(expected, predicted)}
    parts |= {name: rouge[key].fmeasure for name, key in _ROUGE.items()}
    return {"score": fmean(parts.values())} | parts


def has_key_twice(prediction: str) -> bool:
    """True for JSON with a key twice in an object, of which a parser would silently take the last.

    No released prediction is of that kind.
    """
    twice = []

    def check(pairs: list[tuple[str, object]]) -> dict:
        found = dict(pairs)
        twice.extend(found if len(found) < len(pairs) else ())
        return found

    try:
        json.loads(_unfenced(prediction), object_pairs_hook=check)
    except (ValueError, RecursionError):
        return False
    return bool(twice)


def bleu_1(reference: str, text: str) -> float:
    """The share of the text's tokens that match one of the reference (clipped counts).

    Without brevity penalty. 0 for a text without tokens.
    """
    expected, found = Counter(_TOKEN.findall(reference)), Counter(_TOKEN.findall(text))
    return (expected & found).total() / found.total() if found else 0.0


@functools.cache
def _scorer():
    """rouge_score with stemming. Stems are cached, as computing them takes most of the time."""
    from nltk.stem.porter import PorterStemmer
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenize import tokenize

    stemmer = SimpleNamespace(stem=functools.lru_cache(2**16)(PorterStemmer().stem))
    tokenizer = SimpleNamespace(tokenize=lambda text: tokenize(text, stemmer))
    return RougeScorer(list(_ROUGE.values()), tokenizer=tokenizer)


def _raw(text: str) -> str:
    """A prediction normalised as "raw": its list joined, or else all of it, without punctuation."""
    text = _unfenced(text)
    listed = _listed(_json(text))
    if listed is not None and all(isinstance(one, str) for one in listed):
        text = " ".join(listed)
    text = text.lower().replace("\\n", " ")  # an escaped line break
    text = re.sub(r'```(?:json)?|[\\"\[\]{}]', "", text)
    text = re.sub(r"\bocr\b\s*:", "", text)
    return " ".join(re.sub(r"[^\w\s']", "", text).split())


def _texts(text: str) -> list[str]:
    """The texts of a prediction for "cleaned", not cleaned yet: those of its list.

    Of broken JSON all texts between double quotes, which includes the key "ocr".
    """
    text = _unfenced(text)
    content = _json(text)
    if content is None:
        return _QUOTED.findall(text)
    listed = _listed(content)
    return [text] if listed is None else [one for one in listed if isinstance(one, str)]


def _cleaned(text: str) -> str:
    text = re.sub(r"\\[nt]", " ", text.lower())
    return " ".join(re.sub(r"[^\w\s'\"]", "", text).split())


def _unfenced(text: str) -> str:
    text = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    return text.strip()


def _json(text: str) -> object:
    """The parsed JSON of a text; None if it is not JSON (or null)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _listed(content: object) -> list | None:
    """The list in JSON of the form that the benchmark asks for; None for another form."""
    if isinstance(content, dict):
        content = content.get("ocr")
        content = [content] if isinstance(content, str) else content
    return content if isinstance(content, list) else None
