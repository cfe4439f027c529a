"""ugc_jax.evals.benchmarks.questions: answers from the caption alone, by hand."""

import pytest

from ugc_jax.evals.benchmarks import questions
from ugc_jax.evals.prompts import Item, load_prompts
from ugc_jax.evals.summary import summarize
from ugc_jax.evals.tasks import Task

ROW = {"video": "x/v1.mp4", "question": "Who sings?", "choices": ["A dog", "A man"], "answer": "B"}


def read(*changes):
    return questions.read([ROW | change for change in changes])


def reference(**changes):
    (one,) = read(changes)
    return one.reference


def test_rows():
    first, second, third = read({}, {"video": "v2"}, {"question": "Why?"})
    assert [one.id for one in (first, second, third)] == ["v1#1", "v2#1", "v1#2"]
    assert [one.of for one in (first, second, third)] == ["v1", "v2", "v1"]
    assert first.reference == {
        "question": "Who sings?", "A": "A dog", "B": "A man", "answer": "B",
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"answer": "B."},
        {"answer": "(B)"},
        {"answer": "A man"},
        {"answer": "B. A man"},
        {"choices": ["A. A dog", "B. A man"], "answer": "B. A man"},
        {"choices": ["(A) A dog", "(B) A man"], "answer": "A man"},
        {"choices": ["A. A dog", "A man"], "answer": "B"},
        {"choices": ["A. A dog", "A man"], "answer": "A man"},
        {"choices": ["A dog", "(B) A man"], "answer": "B. A man"},
        {"choices": ["A dog", "(B) A man"], "answer": "(B) A man"},
    ],
)
def test_letters_before_choices_and_forms_of_answers(changes):
    assert reference(**changes) == reference()


@pytest.mark.parametrize(
    "choices",
    [["A.M.", "noon"], ["T. Jefferson", "B. Franklin"], ["C. Bale", "Someone"], ["A-flat", "B"]],
)
def test_letters_that_are_of_the_choices(choices):
    assert list(reference(choices=choices, answer=choices[0]).values())[1:3] == choices


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"choices": ["B. x", "A. y"], "answer": "B"},
            "row 1: the letters before the choices are B, A",
        ),
        ({"answer": "C"}, "row 1: the answer 'C' is none of the choices"),
        ({"answer": "a man"}, "none of the choices"),
        ({"answer": ""}, "row 1: answer is '', not a text"),
        ({"answer": 1}, "row 1: answer is 1, not a text"),
        ({"choices": ["B", "A"]}, "row 1: the answer 'B' may be several of the choices"),
        ({"choices": {"A": "x", "B": "y"}}, "row 1: choices is .*, not a list of texts"),
        ({"choices": ["x"]}, "row 1: choices is"),
        ({"choices": ["x", "x"]}, "row 1: two choices are equal"),
        ({"choices": [str(n) for n in range(27)]}, "27 choices"),
        ({"question": None}, "row 1: question is None"),
        ({"video": ""}, "row 1: video is ''"),
    ],
)
def test_wrong_rows(changes, message):
    with pytest.raises(ValueError, match=message):
        read(changes)


@pytest.mark.parametrize(
    ("said", "letter", "score"),
    [
        ("B", "B", 100), ("b.", "B", 100), ("(B)", "B", 100), ("A", "A", 0),
        ("not mentioned", "not mentioned", 0), ("Not  mentioned.", "not mentioned", 0),
    ],
)  # fmt: skip
def test_scores(said, letter, score):
    (sample,) = read({})
    found = questions.scores({"answer": said}, sample)
    assert found == {"score": score, "said": letter, "answer": "B"}


@pytest.mark.parametrize(
    "said",
    [
        "INCORRECT", "CORRECT", "C", "AB", "A or B", "A man", "The answer is B", "mentioned",
        "B, not mentioned", "", None, 1, True, ["B"],
    ],
)  # fmt: skip
def test_answers_that_are_none(said):
    """No option is found in a longer text: a substring of "INCORRECT" is "CORRECT", and "C"."""
    (sample,) = read({"choices": ["x", "y"]})
    with pytest.raises(ValueError, match="not one of A, B or"):
        questions.scores({"answer": said}, sample)


def test_the_question_has_no_right_answer_in_it():
    (sample,) = read({})
    rubric = questions.KIND.form.rubric
    prompt = load_prompts(None, ["q"], {"q": rubric})["q"]
    item = Item(sample.id, "", "A caption.", sample)
    asked = prompt.filled(rubric.texts(item) | {"caption": item.prediction})[1]["content"]
    assert "Who sings?\nA. A dog\nB. A man\n" in asked
    assert "A caption." in asked
    other = reference(answer="A")
    other = rubric.texts(item._replace(sample=sample._replace(reference=other)))
    assert other == rubric.texts(item)


def test_facts_by_hand():
    """2 of 4 right; a failure is no wrong answer; always "B" would have 75."""
    samples = read({}, {}, {"answer": "A"}, {"video": "v2"}, {"video": "v2"})
    said = ["B", "not mentioned", "B", "B"]
    clips = [
        {"id": one.id, "clip": one.clip} | questions.scores({"answer": word}, one)
        for one, word in zip(samples, said, strict=False)
    ]
    clips.append({"id": samples[4].id, "clip": "v2", "failure": "judge"})
    task = Task("daily_omni", questions.KIND.form, "?", tuple(samples))
    facts = summarize(task, clips, {})
    assert (facts["score"], facts["n"], facts["failures"]) == (50, 4, {"judge": 1})
    assert facts["floor"] == 40
    assert facts["majority"] == {"answer": "B", "score": 75}
    assert facts["notes"] == [
        "4 questions about 2 videos", '1 answers are "not mentioned"; they count as wrong',
    ]  # fmt: skip
    assert task.ids == ("v1", "v2")
