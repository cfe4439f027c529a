"""Scores of single answers, and what an accuracy hides. Pure functions.

Scores of the OCR task are in ocr.py.
"""

import re
from collections import Counter
from collections.abc import Sequence

from ugc_jax.judge import messages as talk
from ugc_jax.toy import world

OTHER = "other"  # an answer that is none of the options, or several

# "B", "(b)", "B. In-Video Voice", "Answer: B", "The answer is B."
_LETTER = re.compile(
    r"(?:(?:the )?(?:correct )?(?:answer|option)(?: is)?:? *)?\(?([a-z])(?:[.):\n]|$)",
    re.IGNORECASE,
)
# "I think it is B", "A is the answer"; none in "A man speaks", "I think", "B-roll", "A.I. voice"
_LONE = re.compile(
    r"(?<![\w.'’-])"
    r"(?:[B-HJ-Z](?![\w'’-]|\.\w)|[AI](?=$|[.,;:!?)\n](?!\w)| +(?:is|or|and|nor)\b))"
)


# ---- options -------------------------------------------------------------------------------------


def choose(text: str, options: Sequence[str]) -> str | None:
    """The option that an answer names, in the option's spelling; None if it is not clear which.

    Understood are, in any case: the one option that the text holds as whole words, however they are
    joined; an option's letter at the beginning ("B", "(B)", "B. ..."), unless the text names other
    options; the only capital that stands alone ("I think it is B"), if the text names no option;
    any of them in JSON under the key "answer".
    """
    for key, value in (talk.json_object(text) or {}).items():
        if key.lower() == "answer":
            text = str(value)
    text = re.sub(r"[*`\"]", "", text).strip()
    found = _named(text, options)
    if len(found) == 1:
        return found.pop()
    match = _LETTER.match(text)
    place = ord(match[1].lower()) - ord("a") if match else len(options)
    if place < len(options) and (not found or options[place] in found):
        return options[place]
    letters = set(_LONE.findall(text))
    place = ord(letters.pop()) - ord("A") if len(letters) == 1 else len(options)
    return options[place] if place < len(options) and not found else None


def _named(text: str, options: Sequence[str]) -> set[str]:
    """Options that a text holds as whole words; none inside a longer one."""
    found = set()
    joined = {o: r"[\W_]*".join(map(re.escape, re.findall(r"[^\W_]+", o))) for o in options}
    # longest first: "not applicable" is not "not"
    for option in sorted(options, key=len, reverse=True):
        words = joined[option]
        if not words or list(joined.values()).count(words) > 1:  # "+" and "-"
            words = re.escape(option)
        text, count = re.subn(rf"(?<![^\W_]){words}(?![^\W_])", "|", text, flags=re.IGNORECASE)
        if words and count:
            found.add(option)
    return found


def majority(answers: Sequence[str]) -> tuple[str, float]:
    """The most frequent of at least one answer, and the accuracy of always saying it, percent."""
    ((answer, count),) = Counter(answers).most_common(1)
    return answer, 100 * count / len(answers)


def recall(answers: Sequence[str], said: Sequence[str], options: Sequence[str]) -> dict[str, float]:
    """Option -> percent of the clips with this answer of which it was said; only where there are.

    answers, said: of n clips, the right option and the one that was said (or OTHER).
    """
    from sklearn.metrics import recall_score

    present = [option for option in options if option in answers]
    if not present:
        return {}
    shares = recall_score(answers, said, labels=present, average=None, zero_division=0)
    return dict(zip(present, (100 * shares).tolist(), strict=True))


def confusion(answers: Sequence[str], said: Sequence[str], options: Sequence[str]) -> dict:
    """{"answers": options, "said": options and OTHER, "counts": clips, a row for each answer}."""
    from sklearn.metrics import confusion_matrix

    labels = [*options, OTHER]
    counts = [[0] * len(labels) for _ in options]
    if answers:  # scikit-learn refuses none
        counts = confusion_matrix(answers, said, labels=labels)[: len(options)].tolist()
    return {"answers": list(options), "said": labels, "counts": counts}


# ---- the synthetic world -------------------------------------------------------------------------


def attribute_f1(text: str, attributes: dict[str, str]) -> float:
    """F1 of the world's attributes that the caption states: 2 * right / (said + all)."""
    said = world.parse(text)
    right = sum(said[name] == attributes[name] for name in world.VALUES)
    return 2 * right / (sum(value is not None for value in said.values()) + len(world.VALUES))


def world_scores(caption: str, attributes: dict[str, str]) -> dict[str, float]:
    """Of a caption, in percent: "score" (attribute_f1), each of world.GROUPS, "all_right".

    A group's is the share of its attributes that are stated right; all_right is 0 or 100.
    """
    right = world.check(caption, attributes)
    groups = {
        group: 100 * sum(right[name] for name in names) / len(names)
        for group, names in world.GROUPS.items()
    }
    all_right = 100.0 * all(right.values())
    return {"score": 100 * attribute_f1(caption, attributes)} | groups | {"all_right": all_right}
