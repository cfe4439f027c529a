"""Facts on answers to questions with options: majority, recall, confusion counts."""

from collections import Counter
from collections.abc import Sequence

OTHER = "other"  # an answer that names none of the options


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
