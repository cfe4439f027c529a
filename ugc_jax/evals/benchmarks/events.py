"""Events: which of a video's atomic events a caption misses, and which it makes up.

The judge decides each event of the reference (told, missed, wrong) and lists what the caption
invents. Both errors are in percent of the reference's events, over all events of the set:
    missed         events of which the caption does not tell
    hallucinated   events that it tells otherwise than they are, and events that are not there
    score          their sum, low is good; it is not clipped: inventions have no upper limit
An event that is told wrongly is hallucinated, not missed as well.
"""

from collections.abc import Sequence

from ugc_jax.evals.benchmarks.benchmark import Kind, video_of
from ugc_jax.evals.prompts import Rubric, numbered, verdicts
from ugc_jax.evals.tasks import Form, Sample, is_texts

VERDICTS = ("told", "missed", "wrong")

WORDING = """\
What does a caption of a video tell of the events of the video, and what does it make up?

The events of the video, by number:
{events}

{caption}

Decide each event on its own:
told: the caption tells it, in whatever words, also together with others
missed: the caption does not tell it, or leaves it open
wrong: the caption tells it otherwise than it is, such as another person, action, order or text
Then list what the caption tells and none of the events supports or contradicts: things that happen,
are heard or are shown only in the caption. Opinions on mood and purpose are none.

Answer with {"events": {"1": "told", "2": "missed" or "wrong", ...}, "invented": ["...", ...]}: a
verdict for each event by its number, and a short statement for each invention, [] for none."""


def read(rows: Sequence[dict]) -> list[Sample]:
    """A sample a video, with the list of its events. Raises ValueError."""
    samples, seen = [], set()
    for number, row in enumerate(rows, 1):
        video, events = video_of(row, number), row["events"]
        if not is_texts(events) or not all(event.strip() for event in events):
            raise ValueError(f"row {number}: events is {events!r:.40}, not a list of texts")
        if video in seen:
            raise ValueError(f"row {number}: a second row of the video {video}")
        seen.add(video)
        samples.append(Sample(video, [event.strip() for event in events], weight=len(events)))
    return samples


def scores(answer: dict, sample: Sample) -> dict:
    """Errors in percent of the sample's events. Raises ValueError or KeyError."""
    found, invented = verdicts(answer["events"], sample.weight, VERDICTS), answer["invented"]
    if not isinstance(invented, list) or not all(isinstance(one, str) for one in invented):
        raise ValueError(f"invented is {invented!r:.40}, not a list of statements")
    invented = [one.strip() for one in invented if one.strip()]
    told = dict.fromkeys(VERDICTS, ())
    for event, verdict in zip(sample.reference, found, strict=True):
        told[verdict] = (*told[verdict], event)
    share = 100 / sample.weight
    missed = share * len(told["missed"])
    hallucinated = share * (len(told["wrong"]) + len(invented))
    listed = {"missed": told["missed"], "wrong": told["wrong"], "invented": invented}
    lines = [f"{name}: {'; '.join(texts)}" for name, texts in listed.items() if texts]
    return {
        "score": missed + hallucinated,
        "missed": missed,
        "hallucinated": hallucinated,
        "note": "\n".join(lines) or "all told, nothing invented",
    }


def _facts(samples: Sequence[Sample], scored: Sequence[dict]) -> dict:
    events = sum(clip.get("weight", 1) for clip in scored)
    return {"notes": [f"errors are in percent of {events} events of {len(scored)} videos"]}


KIND = Kind(
    ("video", "events"),
    read,
    Form(
        "",
        "events that captions miss and that they make up, in percent of all events, by the judge; "
        "low is good",
        lambda _: ("", []),
        None,
        ("missed", "hallucinated"),
        facts=_facts,
        is_caption=True,
        rubric=Rubric(
            WORDING,
            scores,
            ("missed", "hallucinated"),
            ("{events}", "{caption}"),
            lambda item: {"events": numbered(item.sample.reference)},
        ),
        lower=("score", "missed", "hallucinated"),
        worst=100.0,  # all events missed
    ),
)
