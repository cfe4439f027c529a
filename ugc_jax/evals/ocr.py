"""Scores of read text as released: BLEU-1 and ROUGE after one of two normalisations.

"raw" was used for some published models and "cleaned" for others; both are kept as they are, quirks
included, since every published figure comes out of one of them to three decimals.
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

    reference: the texts on record. prediction: a model's answer, at best {"ocr": [...]} as JSON.
    None where the normalisation leaves the sample out: "raw" one without a reference, "cleaned" one
    without a text on either side, such as a prediction that is neither JSON nor holds quotes.
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


def bleu_1(reference: str, text: str) -> float:
    """Share of the text's tokens that the reference has, each at most as often as it has it.

    No brevity penalty. 0 for a text without tokens.
    """
    expected, found = Counter(_TOKEN.findall(reference)), Counter(_TOKEN.findall(text))
    return (expected & found).total() / found.total() if found else 0.0


@functools.cache
def _scorer():
    """The package's ROUGE with stemming, which is most of its time: stems are remembered."""
    from nltk.stem.porter import PorterStemmer
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenize import tokenize

    stemmer = SimpleNamespace(stem=functools.lru_cache(2**16)(PorterStemmer().stem))
    tokenizer = SimpleNamespace(tokenize=lambda text: tokenize(text, stemmer))
    return RougeScorer(list(_ROUGE.values()), tokenizer=tokenizer)


def _raw(text: str) -> str:
    """A prediction under "raw": its list joined, or else all of it; what is left without marks."""
    text = _unfenced(text)
    listed = _listed(_json(text))
    if listed is not None and all(isinstance(one, str) for one in listed):
        text = " ".join(listed)
    text = text.lower().replace("\\n", " ")  # a line end that is written out
    text = re.sub(r'```(?:json)?|[\\"\[\]{}]', "", text)
    text = re.sub(r"\bocr\b\s*:", "", text)
    return " ".join(re.sub(r"[^\w\s']", "", text).split())


def _texts(text: str) -> list[str]:
    """A prediction under "cleaned": the texts of its list, before they are cleaned.

    Of broken JSON all that stands between double quotes, which includes the key "ocr".
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
    """What a text is as JSON; None if it is not (or is null)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _listed(content: object) -> list | None:
    """The list that JSON holds as the benchmark asks for; None if it holds another thing."""
    if isinstance(content, dict):
        content = content.get("ocr")
        content = [content] if isinstance(content, str) else content
    return content if isinstance(content, list) else None
