"""ugc_jax.evals.metrics: options out of whatever is said, and what an accuracy hides."""

import json

import pytest

from ugc_jax.evals import metrics
from ugc_jax.evals.metrics import OTHER, chosen_option

VOICE = ("Narration", "In-Video Voice", "Out-Video Voice")
TONE = ("Positive", "Negative", "Neutral")


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("Positive", TONE, "Positive"),
        (" neutral.\n", TONE, "Neutral"),
        ("**Negative**", TONE, "Negative"),
        ("In-Video Voice", VOICE, "In-Video Voice"),
        ("in video voice", VOICE, "In-Video Voice"),
        ("IN_VIDEO_VOICE", VOICE, "In-Video Voice"),
        ("The voice is an out-video voice (off-screen).", VOICE, "Out-Video Voice"),
        ("B", VOICE, "In-Video Voice"),
        ("b.", VOICE, "In-Video Voice"),
        ("(C)", VOICE, "Out-Video Voice"),
        ("**B**\nShe is on screen.", VOICE, "In-Video Voice"),
        ("Answer: B", VOICE, "In-Video Voice"),
        ("The correct answer is (A).", VOICE, "Narration"),
        ("B. In-Video Voice", VOICE, "In-Video Voice"),
        ("B) In-Video Voice rather than Narration", VOICE, "In-Video Voice"),
        ("A. In-Video Voice", VOICE, "In-Video Voice"),  # the words count, not a letter of its own
        ("I think it is B", VOICE, "In-Video Voice"),
        ("I would say B, since she is on screen.", VOICE, "In-Video Voice"),
        ("B is the answer", VOICE, "In-Video Voice"),
        ("A is the answer", VOICE, "Narration"),
        ("I believe it's A.", VOICE, "Narration"),
        ("A man speaks, so it must be C.", VOICE, "Out-Video Voice"),
        ("-", ("+", "-"), "-"),
        ("I say A-.", ("A+", "A-"), "A-"),
        ('{"answer": "Neutral"}', TONE, "Neutral"),
        ('```json\n{"Answer": "C", "reason": "It is neither positive nor negative."}\n```', TONE,
         "Neutral"),
        ('{"tone": "Positive"}', TONE, "Positive"),
        ("No, there is no music.", ("Yes", "No"), "No"),
        ("Not applicable", ("Not", "Not applicable"), "Not applicable"),
        # not clear which
        ("", TONE, None),
        ("   ", TONE, None),
        ("Cheerful", TONE, None),
        ("positively glowing", TONE, None),
        ("Neither positive nor negative", TONE, None),
        ("A man narrates.", VOICE, None),
        ("Here A 'happy' man speaks.", VOICE, None),
        ("It is B or C", VOICE, None),
        ("It is A or B", VOICE, None),
        ("Some B-roll, made with A.I. tools", VOICE, None),
        ("In-video", VOICE, None),
        ("I think so", [f"option {n}" for n in range(9)], None),
        ("I think it is D", VOICE, None),
        ("The answer is a question.", VOICE, None),
        ("D", VOICE, None),
        ("There is nothing to know", ("Yes", "No"), None),
        ("Voice", VOICE, None),
        ("C) Positive or Negative", TONE, None),
        ('{"answer": null}', TONE, None),
        ("Positive", (), None),
    ],
)  # fmt: skip
def test_choosing(text, options, expected):
    assert chosen_option(text, options) == expected


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
