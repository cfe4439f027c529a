"""ugc_jax.evals.summary: what a task's clips come to."""

import pytest

from ugc_jax.evals.summary import AVERAGED, average, result_table, summarize
from ugc_jax.evals.tasks import FORMS, Sample, Task


def options_task(answers):
    samples = tuple(Sample(str(i), answer, ("Yes", "No")) for i, answer in enumerate(answers))
    return Task("bgm", FORMS["bgm"], "?", samples)


def clips_of(task, said):
    return [
        {"id": s.id, "failure": "missing"}
        if one is None
        else {"id": s.id, "score": 100.0 * (one == s.reference), "said": one, "answer": s.reference}
        for s, one in zip(task.samples, said, strict=True)
    ]


def test_degenerate_task_is_flagged():
    task = options_task(["No"] * 4)
    facts = summarize(task, clips_of(task, ["No", "No", "Yes", "other"]), {})
    assert facts["score"] == 50
    assert facts["majority"] == {"answer": "No", "score": 100}
    assert "degenerate" in facts["flags"][0]
    assert facts["recall"] == {"No": 50}
    assert any("1 answers name no option" in note for note in facts["notes"])


def test_classes():
    task = options_task(["No", "No", "No", "Yes"])
    facts = summarize(task, clips_of(task, ["No", None, "Yes", "Yes"]), {})
    assert (facts["n"], facts["failed"]) == (3, 1)
    assert facts["score"] == pytest.approx(200 / 3)
    assert facts["floor"] == pytest.approx(50)
    assert facts["recall"] == {"No": 50, "Yes": 100}
    assert facts["confusion"]["answers"] == ["Yes", "No"]
    assert facts["confusion"]["counts"] == [[1, 0, 0], [1, 1, 0]]
    assert facts["majority"]["score"] == pytest.approx(200 / 3)  # of the same clips
    assert facts["flags"] == []


def test_nothing_scored():
    task = options_task(["No", "Yes"])
    facts = summarize(task, clips_of(task, [None, None]), {})
    assert (facts["score"], facts["interval"], facts["floor"], facts["n"]) == (None, None, None, 0)
    result = {"tasks": {"bgm": facts}, "average": None, "unscored": {"tone": "it is late"}}
    assert "tone: not scored, it is late" in result_table(result)


def test_average_is_that_of_the_paper():
    """Qwen2.5-Omni-3B, table 2: 48.6, the OCR fraction counted as percent."""
    tasks = {
        "voice_source": {"score": 93.0, "unit": "percent"},
        "tone": {"score": 46.9, "unit": "percent"},
        "ocr": {"score": 0.561, "unit": "fraction"},
        "background": {"score": 18.4, "unit": "percent"},
        "objects": {"score": 18.3, "unit": "percent"},
        "final_caption": {"audio": 48.2, "visual": 55.6, "details": 52.6, "unit": "percent"},
    }
    assert average(tasks) == pytest.approx(48.6, abs=0.05)
    for name in AVERAGED:
        assert average({key: value for key, value in tasks.items() if key != name}) is None
    assert average(tasks | {"tone": {"score": None, "unit": "percent"}}) is None
