"""ugc_jax.evals.metrics: what an accuracy hides."""

import json

import pytest

from ugc_jax.evals import metrics
from ugc_jax.evals.metrics import OTHER

TONE = ("Positive", "Negative", "Neutral")


def test_majority():
    assert metrics.majority(["Yes", "No", "No", "No"]) == ("No", 75.0)
    assert metrics.majority(["No"]) == ("No", 100.0)


@pytest.mark.parametrize(
    ("task", "expected"), [("voice_source", 94.6), ("tone", 74.4), ("BGM", 100.0)]
)
def test_majority_of_the_benchmark(shared_data, task, expected):
    samples = json.loads((shared_data / f"ugc_videocap/qa/{task}.json").read_text())["samples"]
    _, share = metrics.majority([sample["answer"] for sample in samples])
    assert share == pytest.approx(expected, abs=0.05)


def test_recall_and_confusion():
    answers = ["Positive", "Positive", "Positive", "Neutral"]
    said = ["Positive", OTHER, "Neutral", "Neutral"]
    assert metrics.recall(metrics.confusion_counts(answers, said, TONE)) == pytest.approx(
        {"Positive": 100 / 3, "Neutral": 100}
    )
    assert metrics.confusion_counts(answers, said, TONE) == {
        "answers": list(TONE),
        "said": [*TONE, OTHER],
        "counts": [[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0]],
    }
    json.dumps(metrics.confusion_counts(answers, said, TONE))


def test_without_answers():
    assert metrics.recall(metrics.confusion_counts([], [], TONE)) == {}
    assert metrics.confusion_counts([], [], TONE)["counts"] == [[0] * 4] * 3
