"""Known faults of released evaluation scripts, each of which ours is shown not to have.

zero scores dropped from a mean · failed calls left out · "INCORRECT" counted as correct, as its
substring · a rating [[90]] clipped to the top of the scale
"""

import re

import pytest
from fake_judge import FakeJudge

from ugc_jax.evals import evaluate
from ugc_jax.evals.benchmarks.table import BENCHMARKS
from ugc_jax.evals.judged import JudgedTasks
from ugc_jax.evals.predictions import Predictions
from ugc_jax.evals.structured import RUBRIC
from ugc_jax.evals.summary import result_table, summarize
from ugc_jax.evals.tasks import FORMS, Sample, Task
from ugc_jax.judge.client import JudgeConfig

pytest.importorskip("openai")

UNITS = [{"text": "It rains", "kind": "visual"}] * 4
QUESTION = {"question": "What is it?", "A": "a cat", "B": "a dog", "answer": "A"}
SAMPLES = {
    "objects": "a cat; a dog; a car; a tree",
    "final_caption": "It rains.",
    "final_caption_units": UNITS,
    "video_salmonn_2": ["It rains.", "A dog barks.", "A man waves.", "A horn sounds."],
    "daily_omni": QUESTION,
}
# The judge's words -> the score that they are; None: they are no answer.
ANSWERS = {
    "objects": {
        '{"matched": 0, "total": 4}': 0, '{"matched": 3, "total": 4}': 75,
        '{"matched": 5, "total": 4}': None, "[[90]]": None,
    },
    "final_caption": {
        '{"visual": 1, "audio": 1, "details": 1}': 20, '{"visual": 90, "audio": 90, "details": 90}':
        None, '{"visual": 5.4, "audio": 5, "details": 5}': None, "[[90]]": None, "[[5]]": None,
        '{"visual": 0, "audio": 0, "details": 0}': None,
    },
    "final_caption_units": {
        '{"1": "missed", "2": "missed", "3": "missed", "4": "missed"}': 0,
        '{"1": "told", "2": "untold", "3": "told", "4": "told"}': None,
        '{"1": "told", "2": "told", "3": "told"}': None,
    },
    "video_salmonn_2": {
        '{"events": {"1": "told", "2": "told", "3": "told", "4": "told"}, "invented": []}': 0,
        '{"events": {"1": "told"}, "invented": ["a", "b"]}': None,
        '{"events": {"1": "told", "2": "told", "3": "told", "4": "told"},'
        ' "invented": ["a", "b", "c", "d", "e"]}': 125,
    },
    "daily_omni": {
        '{"answer": "A"}': 100, '{"answer": "B"}': 0, '{"answer": "not mentioned"}': 0,
        '{"answer": "INCORRECT"}': None, '{"answer": "a cat"}': None, "A": None,
        '{"answer": "A and B"}': None,
    },
}  # fmt: skip
TASKS = {
    **{name: FORMS[name] for name in ("objects", "final_caption")},
    "final_caption_units": FORMS["final_caption"]._replace(rubric=RUBRIC, columns=RUBRIC.columns),
    **{one.task: one.form for one in BENCHMARKS.values() if one.task in SAMPLES},
}


@pytest.fixture(scope="module")
def server():
    server = FakeJudge()
    yield server
    server.stop()


@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_is_counted_as_what_it_is(server, name):
    """One clip for each answer: scores are its own, zeros are in the mean, failures are apart."""
    answers = list(ANSWERS[name].items())
    server.answer = lambda question: answers[int(re.search(r"Caption (\d+)", question)[1])][0]
    weight = 4 if name == "video_salmonn_2" else 1
    samples = tuple(Sample(f"c{n}", SAMPLES[name], weight=weight) for n in range(len(answers)))
    if name == "daily_omni":
        samples = tuple(one._replace(clip=one.id, id=f"{one.id}#1") for one in samples)
    task = Task(name, TASKS[name], "?", samples)
    texts = Predictions({f"c{n}": f"Caption {n}" for n in range(len(answers))})
    config = JudgeConfig(model="fake", base_url=server.url, malformed=0)
    with JudgedTasks(config, [name], rubrics={name: task.form.rubric}) as judge:
        clips, _, notes = evaluate.score_task(task, texts, judge)
    assert [clip.get("score") for clip in clips] == [score for _, score in answers]
    known = [score for _, score in answers if score is not None]
    failed = len(answers) - len(known)
    assert [clip.get("failure") for clip in clips].count("judge") == failed
    facts = summarize(task, clips, {}, notes=notes)
    assert facts["score"] == pytest.approx(sum(known) / len(known))
    assert (facts["n"], facts["failures"]) == (len(known), {"judge": failed})
    bound = (sum(known) + task.form.worst * failed) / len(answers)
    assert facts["floor"] == pytest.approx(bound)
    shown = result_table({"tasks": {name: facts}, "average": None, "unscored": {}})
    assert f"failed, and not in the means: {failed} judge; {bound:.2f} if they" in shown
