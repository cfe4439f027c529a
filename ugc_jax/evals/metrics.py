"""Answers to questions with options: the chosen option, majority, recall, confusion counts."""

import re
from collections import Counter
from collections.abc import Sequence

from ugc_jax.judge.messages import final_object

OTHER = "other"  # an answer that names no option, or several

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


def chosen_option(text: str, options: Sequence[str]) -> str | None:
    """The option that an answer names, in the option's spelling; None if that is ambiguous.

    Upper and lower case are equal. An option is chosen by its words, if the text has those of no
    other (whatever joins them); by its letter at the beginning ("B", "(B)", "B. ..."), unless the
    text has the words of other options; by the only capital letter that stands alone ("I think it
    is B"), if the text has the words of none; by any of these in JSON under the key "answer".
    """
    for key, value in (final_object(text) or {}).items():
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
    """The options whose words a text has; one inside a longer option does not count."""
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
    """(the most frequent of n > 0 answers, the accuracy of always giving it in percent)."""
    ((answer, count),) = Counter(answers).most_common(1)
    return answer, 100 * count / len(answers)


def confusion_counts(answers: Sequence[str], chosen: Sequence[str], options: Sequence[str]) -> dict:
    """{"answers": options, "said": options and OTHER, "counts": [answers][said] numbers of clips}.

    answers, chosen: of n clips, the right option and the chosen one (or OTHER).
    """
    labels, pairs = [*options, OTHER], Counter(zip(answers, chosen, strict=True))
    counts = [[pairs[answer, label] for label in labels] for answer in options]
    return {"answers": list(options), "said": labels, "counts": counts}


def recall(confusion: dict) -> dict[str, float]:
    """Option -> percent of the clips with this answer for which it was chosen, if there are any."""
    rows = enumerate(zip(confusion["answers"], confusion["counts"], strict=True))
    return {option: 100 * (row[i] / sum(row)) for i, (option, row) in rows if any(row)}
