"""The synthetic world as a task of `evaluate` and `report`, which the jobs add.

world/test.jsonl    a line a clip: {"videos": [path], "attributes": {...}}
"""

from collections import Counter
from collections.abc import Sequence

from ugc_jax import files
from ugc_jax.evals.tasks import Form, Sample, clip_id, is_texts, json_rows
from ugc_jax.report.tables import Display
from ugc_jax.toy import world


def read_world(text: str) -> tuple[str, list[Sample]]:
    """(question, samples) of a manifest of the world, as `Form.read`. Raises ValueError."""
    samples = []
    for number, row in enumerate(json_rows(text), 1):
        videos, attributes = row.get("videos"), row.get("attributes")
        if not is_texts(videos):
            raise ValueError(f"row {number}: has no videos")
        if not isinstance(attributes, dict) or attributes.keys() != world.VALUES.keys():
            raise ValueError(f"row {number}: its attributes are not {', '.join(world.VALUES)}")
        samples.append(Sample(clip_id(videos[0]), attributes))
    return world.QUESTION, samples


def is_manifest(text: str) -> bool:
    """True if the first row of a file has attributes."""
    first = next(files.parse_lines(text.lstrip().partition("\n")[0]), None)
    return first is not None and isinstance(first.value, dict) and "attributes" in first.value


def score_caption(sample: Sample, caption: str) -> dict:
    """`caption_scores`, and the attributes that are not right: "wrong", and as a "note"."""
    stated, right = world.parse_caption(caption), world.check(caption, sample.reference)
    wrong = [name for name in sample.reference if not right[name]]
    listed = (
        f"{name} {stated[name] or 'not clear'} instead of {sample.reference[name]}"
        for name in wrong
    )
    note = f"wrong: {', '.join(listed)}" if wrong else "all right"
    return caption_scores(caption, sample.reference) | {"wrong": wrong, "note": note}


def caption_scores(caption: str, attributes: dict[str, str]) -> dict[str, float]:
    """Scores of a caption in percent: "score" (attribute_f1), each of world.GROUPS, "all_right".

    A group's score is the share of its attributes that are right; all_right is 0 or 100.
    """
    right = world.check(caption, attributes)
    groups = {
        group: 100 * sum(right[name] for name in names) / len(names)
        for group, names in world.GROUPS.items()
    }
    score = 100 * world.attribute_f1(caption, attributes)
    return {"score": score} | groups | {"all_right": 100.0 * all(right.values())}


def attribute_shares(samples: Sequence[Sample], scored: Sequence[dict]) -> dict:
    """{"attributes": {attribute: percent of captions that state it right}, None without any}."""
    if not scored:
        return {"attributes": None}
    wrong = Counter(name for clip in scored for name in clip["wrong"])
    shares = {name: 100 * (1 - wrong[name] / len(scored)) for name in world.VALUES}
    return {"attributes": shares}


FORM = Form(
    file="test.jsonl",
    metric="mean F1 of the attributes that a caption states, in percent",
    read=read_world,
    score=score_caption,
    columns=(*world.GROUPS, "all_right"),
    facts=attribute_shares,
    recognize=is_manifest,
    benchmark="world",
    is_caption=True,
)
DISPLAY = Display(
    "World",
    order=("score", *world.GROUPS, "all_right"),
    score="F1",
    lengths="predictions",
    heading="The synthetic world",
    compares="What these captions say is checked word for word, without a model as judge: rows of "
    "the same clips compare.",
)
TASKS = {"world": FORM}
DISPLAYS = {"world": DISPLAY}
