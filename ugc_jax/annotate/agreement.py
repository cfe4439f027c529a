"""How far annotators agree, field by field, and what they agreed on.

| fields | two answers agree by | over all answers |
|---|---|---|
| voice_source, tone, music | 1 if equal, else 0 | and Krippendorff's alpha |
| text, sounds | F1 of matched texts, sounds | |
| objects | F1 of their names, counts, colours and positions | |
| captions, background_change | ROUGE-L F1 of their words | |

Each is a fraction, averaged over the pairs of annotators of a clip, then over clips.
"""

import statistics
import types
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from ugc_jax import words
from ugc_jax.annotate.answers import Answer
from ugc_jax.data.annotation import STAGE_TYPES, STAGES, SoundEvent, Stage, Thing, fields_of

SAME_TEXT = 0.8  # similarity of two texts from which they are the same one, spelled otherwise
OPTIONS = ("voice_source", "tone", "music")
# Agreement below which a field is in dispute. Two people never write the same caption.
DISPUTED: Mapping[str, float] = types.MappingProxyType(
    {"text": 0.5, "objects": 0.4, "sounds": 0.4, "background_change": 0.2, "caption": 0.1}
    | dict.fromkeys(OPTIONS, 1.0)
)


class FieldAgreement(NamedTuple):
    """Agreement on one field. mean: a fraction, over clips. clips: with two answers or more.

    alpha: Krippendorff's, nominal, of a field with options; None for another, without clips, and
    where all answers are equal, as chance then explains all of the agreement.
    """

    stage: str
    field: str
    mean: float
    clips: int
    alpha: float | None = None


class AnnotatorAgreement(NamedTuple):
    """Agreement of one annotator with all others of the same clips. seconds: mean of a stage."""

    annotator: str
    stage: str
    field: str
    mean: float
    clips: int
    seconds: float


class Dispute(NamedTuple):
    """A stage of a clip on which annotators differ. fields: field in dispute -> agreement."""

    clip: str
    stage: str
    fields: Mapping[str, float]


class Report(NamedTuple):
    """Agreement by field, by annotator, and by clip and stage: {(clip, stage): {field: mean}}."""

    fields: tuple[FieldAgreement, ...]
    annotators: tuple[AnnotatorAgreement, ...]
    clips: Mapping[tuple[str, str], Mapping[str, float]]

    def disputes(self, threshold: float | Mapping[str, float] = DISPUTED) -> tuple[Dispute, ...]:
        """Return the stages of clips in which a field's agreement is below the threshold.

        threshold: of all fields, or by the name of the field; a field without one is not in
          dispute. In the order of the answers.
        """
        found = []
        for (clip, stage), scores in self.clips.items():
            limits = (
                threshold if isinstance(threshold, Mapping) else dict.fromkeys(scores, threshold)
            )
            fields = {name: score for name, score in scores.items() if score < limits.get(name, 0)}
            if fields:
                found.append(Dispute(clip, stage, fields))
        return tuple(found)


def measure(answers: Sequence[Answer]) -> Report:
    """Return the agreement of answers; of an annotator's answers to one stage the last counts.

    Stages with one answer have no agreement and are left out of all but the annotators' seconds.
    """
    groups: dict[tuple[str, str], dict[str, Answer]] = defaultdict(dict)
    seconds: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for answer in answers:
        groups[answer.clip, answer.stage][answer.annotator] = answer
        seconds[answer.annotator, answer.stage][answer.clip] = answer.seconds
    clips: dict[tuple[str, str], dict[str, float]] = {}
    own: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for (clip, stage), group in groups.items():
        if len(group) < 2:
            continue
        clips[clip, stage] = {}
        for field in fields_of(stage):
            values = {name: getattr(answer.value, field) for name, answer in group.items()}
            pairs = {
                pair: similarity(field, *(values[name] for name in pair))
                for pair in combinations(values, 2)
            }
            clips[clip, stage][field] = statistics.fmean(pairs.values())
            for name in values:
                with_others = [score for pair, score in pairs.items() if name in pair]
                own[name, stage, field].append(statistics.fmean(with_others))
    fields = []
    for stage in STAGES:
        for field in fields_of(stage):
            scores = [one[field] for (_, of), one in clips.items() if of == stage]
            if scores:
                alpha = _alpha(groups, stage, field) if field in OPTIONS else None
                mean = statistics.fmean(scores)
                fields.append(FieldAgreement(stage, field, mean, len(scores), alpha))
    annotators = [
        AnnotatorAgreement(
            name,
            stage,
            field,
            statistics.fmean(scores),
            len(scores),
            statistics.fmean(seconds[name, stage].values()),
        )
        for (name, stage, field), scores in sorted(own.items(), key=_in_order)
    ]
    return Report(tuple(fields), tuple(annotators), clips)


def merge(stages: Sequence[Stage]) -> Stage:
    """Return what several answers to a stage say together, field by field.

    Of an option the most frequent, of any other field the one that agrees best with the others; the
    earlier one where two are equal. Raises ValueError without an answer.
    """
    if not stages:
        raise ValueError("no answer to merge")
    merged = {
        field: _central(field, [getattr(stage, field) for stage in stages])
        for field in fields_of(_name_of(stages[0]))
    }
    return type(stages[0])(**merged)


def similarity(field: str, a: Any, b: Any) -> float:
    """Return the agreement of two values of a field, a fraction; 1.0 for equal ones."""
    if a == b:
        return 1.0
    if field in OPTIONS:
        return 0.0
    if field == "text":
        return _f1(a, b, _same_text)
    if field == "sounds":
        return _f1(a, b, _same_sound)
    if field == "objects":
        return _f1(a, b, _same_thing)
    return _rouge_l(a, b)


def _central(field: str, values: list) -> Any:
    agreement = [sum(similarity(field, one, other) for other in values) for one in values]
    return values[agreement.index(max(agreement))]


def _name_of(stage: Stage) -> str:
    return next(name for name, cls in STAGE_TYPES.items() if isinstance(stage, cls))


def _in_order(item: tuple[tuple[str, str, str], list[float]]) -> tuple:
    name, stage, field = item[0]
    return name, STAGES.index(stage), fields_of(stage).index(field)


def _alpha(groups: Mapping[tuple[str, str], Mapping[str, Answer]], stage: str, field: str):
    """Krippendorff's alpha of a field with options; None where it is not defined."""
    from nltk.metrics.agreement import AnnotationTask

    rows = [
        (name, clip, str(getattr(answer.value, field)))
        for (clip, of), group in groups.items()
        if of == stage and len(group) > 1
        for name, answer in group.items()
    ]
    if len({label for *_, label in rows}) < 2:
        return None
    return float(AnnotationTask(data=rows).alpha())


def _f1(a: Sequence, b: Sequence, credit: Callable[[Any, Any], float]) -> float:
    """F1 of the best matching of two lists, one to one. credit: of a match, a fraction."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    if not a or not b:
        return float(not a and not b)
    credits = np.array([[credit(one, other) for other in b] for one in a])
    matched = credits[linear_sum_assignment(credits, maximize=True)].sum()
    return float(2 * matched / (len(a) + len(b)))


def _same_text(a: str, b: str) -> float:
    from rapidfuzz.distance import Indel

    return float(Indel.normalized_similarity(_plain(a), _plain(b)) >= SAME_TEXT)


def _same_sound(a: SoundEvent, b: SoundEvent) -> float:
    """1.0 for two sounds of one name that overlap, as far as their times are known."""
    ends = [sound.end if sound.end is not None else sound.start for sound in (a, b)]
    timed = None not in (a.start, b.start, *ends)
    # Half a second: how far two people differ when they mark the same beginning or end.
    apart = timed and (a.start > ends[1] + 0.5 or b.start > ends[0] + 0.5)
    return 0.0 if apart else _same_text(a.what, b.what)


def _same_thing(a: Thing, b: Thing) -> float:
    """0.0 for other names; else the share of name, count, colour and position that agrees."""
    if not _same_text(a.name, b.name):
        return 0.0
    facts = [1.0, float(a.count == b.count)]
    for one, other in ((a.color, b.color), (a.position, b.position)):
        if one or other:
            facts.append(_rouge_l(one, other))
    return statistics.fmean(facts)


def _rouge_l(a: str, b: str) -> float:
    """F1 of the longest common subsequence of the words of two texts."""
    from rapidfuzz.distance import Indel

    # 2 LCS / (m + n), which is the F1 of LCS / m and LCS / n
    return Indel.normalized_similarity(words.words(a), words.words(b))


def _plain(text: str) -> str:
    return words.spaced_words(text) or text
