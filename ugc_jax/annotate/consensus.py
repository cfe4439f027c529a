"""Several annotators' answers of one stage that do not differ much -> the one that holds."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from rapidfuzz import fuzz

from ugc_jax.data.annotation import Stage, to_json


def merge(values: Sequence[Stage]) -> Stage:
    """Return the answer that holds of at least one answer of the same stage.

    A choice is that of most annotators, of the first of them if equally many chose it. Any other
    field is the one that is most similar to those of the others (their medoid), word for word.
    """
    first = values[0]
    merged = {
        field.name: _merge([getattr(one, field.name) for one in values], field.type)
        for field in dataclasses.fields(first)
    }
    return dataclasses.replace(first, **merged)


def _merge(said: list, kind) -> object:
    if isinstance(said[0], bool) or "Literal" in str(kind):
        return Counter(said).most_common(1)[0][0]
    texts = [_text(one) for one in said]
    likeness = [sum(fuzz.token_sort_ratio(one, other) for other in texts) for one in texts]
    return said[likeness.index(max(likeness))]


def _text(value) -> str:
    """The words of a field, for comparison."""
    if isinstance(value, str):
        return value
    items = [to_json(one) if hasattr(one, "_asdict") else one for one in value]
    return "; ".join(
        " ".join(str(part) for part in item.values()) if isinstance(item, dict) else item
        for item in items
    )
