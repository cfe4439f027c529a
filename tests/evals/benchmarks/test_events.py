"""ugc_jax.evals.benchmarks.events: missed and hallucinated events, by hand."""

import pytest

from ugc_jax.evals.benchmarks import events
from ugc_jax.evals.summary import summarize
from ugc_jax.evals.tasks import Sample, Task

FIVE = ["A dog barks.", "A man waves.", "It rains.", "A horn sounds.", "A text says GO."]


def sample(texts, video="v"):
    return Sample(video, texts, weight=len(texts))


def said(*verdicts, invented=()):
    return {
        "events": {str(n): word for n, word in enumerate(verdicts, 1)}, "invented": list(invented)
    }  # fmt: skip


def test_rows():
    rows = [{"video": "clips/a.mp4", "events": [" x ", "y"]}, {"video": 7, "events": ["z"]}]
    assert events.read(rows) == [
        Sample("a", ["x", "y"], weight=2), Sample("7", ["z"], weight=1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"video": "b", "events": "x; y"}, "row 2: events is 'x; y', not a list of texts"),
        ({"video": "b", "events": []}, r"row 2: events is \[\], not a list"),
        ({"video": "b", "events": ["x", " "]}, "row 2: events is"),
        ({"video": None, "events": ["x"]}, "row 2: video is None"),
        ({"video": "a.mp4", "events": ["x"]}, "row 2: a second row of the video a"),
    ],
)
def test_wrong_rows(row, message):
    with pytest.raises(ValueError, match=message):
        events.read([{"video": "a", "events": ["x"]}, row])


def test_scores_by_hand():
    answer = said("told", "missed", "wrong", "Told ", "missed", invented=["A cat.", " "])
    found = events.scores(answer, sample(FIVE))
    # 2 of 5 missed; one wrong and one invented of 5
    assert (found["missed"], found["hallucinated"], found["score"]) == (40, 40, 80)
    assert found["note"] == (
        "missed: A man waves.; A text says GO.\nwrong: It rains.\ninvented: A cat."
    )
    assert events.scores(said(*["told"] * 5), sample(FIVE)) == {
        "score": 0, "missed": 0, "hallucinated": 0, "note": "all told, nothing invented",
    }  # fmt: skip


def test_inventions_are_not_clipped():
    """Released scripts clip values beyond the scale; here three inventions of one event are 300."""
    found = events.scores(said("told", invented=["a", "b", "c"]), sample(["x"]))
    assert (found["hallucinated"], found["score"]) == (300, 300)


@pytest.mark.parametrize(
    "answer",
    [
        said("told"),  # not all events
        said("told", "told", "told"),  # more than all
        said("told", "not told"),
        said("told", "untold"),
        said("told", "told or missed"),
        said("told", True),
        said("told", None),
        {"events": {"1": "told", "2": "told"}},
        {"events": ["told", "told"], "invented": []},
        said("told", "told") | {"invented": "a cat"},
        said("told", "told") | {"invented": 1},
    ],
)
def test_answers_that_are_none(answer):
    with pytest.raises((ValueError, KeyError)):
        events.scores(answer, sample(["x", "y"]))


def test_errors_are_in_percent_of_all_events():
    """Not the mean of the videos' percents; zeros count, failures are apart and bounded by 100."""
    samples = [sample(FIVE[:1], "a"), sample(FIVE[:4], "b"), sample(FIVE, "c")]
    task = Task("video_salmonn_2", events.KIND.form, "?", tuple(samples))
    clips = [
        {"id": "a"} | events.scores(said("missed"), samples[0]),
        {"id": "b", "weight": 4}
        | events.scores(said("told", "told", "wrong", "told", invented=["A cat."]), samples[1]),
        {"id": "c", "weight": 5, "failure": "missing"},
    ]
    facts = summarize(task, clips, {})
    # of 5 events: 1 missed, 1 wrong, 1 invented; the mean of the videos would be 75
    assert (facts["missed"], facts["hallucinated"], facts["score"]) == (20, 40, 60)
    assert (facts["n"], facts["failures"]) == (2, {"missing": 1})
    assert facts["floor"] == pytest.approx((60 * 5 + 100 * 5) / 10)
    assert facts["lower"] == ["score", "missed", "hallucinated"]
    assert facts["notes"] == ["errors are in percent of 5 events of 2 videos"]
    zeros = [dict(clip, score=0.0, missed=0.0, hallucinated=0.0) for clip in clips[:1]]
    facts = summarize(task, [*zeros, clips[1]], {})
    assert facts["score"] == pytest.approx(100 * 2 / 5)  # a score of 0 is in the mean
