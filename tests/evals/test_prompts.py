"""ugc_jax.evals.prompts: the judge's questions, ours and the user's, and what its answers make."""

import re

import pytest

from ugc_jax.errors import UserError
from ugc_jax.evals import prompts
from ugc_jax.evals.prompts import RUBRICS
from ugc_jax.judge import messages

OWN = """\
Compare {reference} with {caption}.
Answer {"visual": N, "more": {"audio": N}}, N from 1 to 5."""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "final_caption.txt"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize("task", RUBRICS)
def test_our_questions(task):
    prompt = prompts.load_prompts(None, [task])[task]
    assert (prompt.name, prompt.is_ours) == ("ugc_jax", True)
    system, user = prompt.messages("It rains {caption}.", "A cat {reference}.")
    assert system["content"] == messages.SYSTEM
    question = user["content"]
    # both texts stand there once, fenced, and are not searched for placeholders
    assert messages.fenced("reference", "It rains {caption}.") in question
    assert messages.fenced("caption", "A cat {reference}.") in question
    assert not re.search(r"\{(?!caption|reference)\w+\}", question)
    # the example of the answer holds what is made into scores
    example = re.search(r"\{.*\}", question.rpartition("Answer with")[2])[0]
    keys = set(re.findall(r'"(\w+)":', example))
    likely = {"consistent": "yes", "matched": 1, "total": 2, "visual": 4, "audio": 4, "details": 4}
    needed = {key: value for key, value in likely.items() if key in keys}
    assert keys == {"reason", *needed}
    assert RUBRICS[task].scores(needed).keys() == {"score", *RUBRICS[task].columns}


@pytest.mark.parametrize(
    ("task", "answer", "scores"),
    [
        (
            "final_caption",
            {"visual": 5, "audio": "3", "details": 4.0, "reason": "Fine."},
            {"score": 80, "visual": 100, "audio": 60, "details": 80},
        ),
        ("audio_caption", {"audio": 1, "details": 2}, {"score": 30, "audio": 20, "details": 40}),
        ("visual_caption", {"visual": 1, "details": 4}, {"score": 50, "visual": 20, "details": 80}),
        ("background", {"consistent": "Yes"}, {"score": 100}),
        ("background", {"consistent": False}, {"score": 0}),
        ("objects", {"matched": 3, "total": "4"}, {"score": 75}),
        ("objects", {"matched": 0, "total": 1}, {"score": 0}),
    ],
)
def test_scores(task, answer, scores):
    assert RUBRICS[task].scores(answer) == pytest.approx(scores)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("final_caption", {"visual": 5, "audio": 3}),
        ("final_caption", {"visual": 0, "audio": 3, "details": 4}),
        ("final_caption", {"visual": 6, "audio": 3, "details": 4}),
        ("final_caption", {"visual": 3.5, "audio": 3, "details": 4}),
        ("final_caption", {"visual": True, "audio": 3, "details": 4}),
        ("background", {"consistent": "partly"}),
        ("background", {"consistent": None}),
        ("background", {"answer": "yes"}),
        ("objects", {"matched": 3, "total": 2}),
        ("objects", {"matched": -1, "total": 2}),
        ("objects", {"matched": 0, "total": 0}),
        ("objects", {"matched": 0.5, "total": 1}),
        ("objects", {"match_score": 0.5}),
    ],
    ids=str,
)
def test_answers_of_another_form(task, answer):
    assert messages.find_fault(answer, RUBRICS[task].scores)


def test_a_file_is_the_whole_message(file):
    prompt = prompts.load_prompts(str(file), ["final_caption"])["final_caption"]
    (message,) = prompt.messages("a {caption}", "b")
    assert message["role"] == "user"
    assert message["content"] == OWN.replace("{caption}", "b").replace("{reference}", "a {caption}")
    assert re.fullmatch(r"final_caption\.txt \([0-9a-f]{12}\)", prompt.name)
    file.write_text(OWN + " ")
    assert prompts.load_prompts(str(file), ["final_caption"])["final_caption"].name != prompt.name


def test_wordings_compare_by_what_they_say(file, tmp_path, monkeypatch):
    def protocol(path, task="final_caption"):
        return prompts.load_prompts(path and str(path), [task])[task].protocol

    own = protocol(file)
    assert re.fullmatch(r"file [0-9a-f]{12}", own)
    other = tmp_path / "other name.txt"
    other.write_text("\ufeff" + OWN, encoding="utf-8")
    assert protocol(other) == own
    other.write_text(OWN + " ")
    assert protocol(other) != own
    ours = protocol(None)
    assert re.fullmatch(r"own wording [0-9a-f]{12}", ours)
    assert len({protocol(None, task) for task in RUBRICS}) == len(RUBRICS)
    monkeypatch.setattr(messages, "SYSTEM", messages.SYSTEM + " Be quick.")
    assert protocol(None) != ours
    assert protocol(file) == own  # it is the whole message


def test_a_folder_holds_one_file_a_task(file):
    (file.parent / "objects.txt").write_text("{caption}{reference}")
    loaded = prompts.load_prompts(str(file.parent), ["objects", "final_caption"])
    assert loaded["objects"].template == "{caption}{reference}"
    assert loaded["final_caption"].template == OWN
    with pytest.raises(UserError, match=r"background\.txt: no such file"):
        prompts.load_prompts(str(file.parent), ["background"])
    with pytest.raises(UserError, match=r"one file for 2 tasks \(objects, final_caption\)"):
        prompts.load_prompts(str(file), ["objects", "final_caption"])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{caption}", r": has no \{reference\}"),
        ("{reference} and { caption }", r": has no \{caption\}"),
        ("{reference}\n{caption} {title}", r":2: unknown placeholder \{title\}; there are"),
        ("{reference}\n{caption} { caption }", r":2: unknown placeholder \{ caption \}"),
        ('{reference}\n{caption}\n{{"visual": N}}', ":3: has a doubled brace"),
        ("{{reference}} {{caption}}", ":1: has a doubled brace"),
        ("{reference}{caption}\n}", ":2: has a stray }"),
        ('{reference}\n{"visual": {caption}', ":2: has a stray {"),
    ],
)
def test_files_that_cannot_be_used(file, text, fault):
    file.write_text(text)
    with pytest.raises(UserError, match=fault) as caught:
        prompts.load_prompts(str(file), ["final_caption"])
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(file, tmp_path):
    file.write_bytes(b"{caption}{reference}\xff")
    with pytest.raises(UserError, match="not UTF-8 text.*; give a UTF-8 text file"):
        prompts.load_prompts(str(file), ["final_caption"])
    with pytest.raises(UserError, match=r"nowhere\.txt: no such file"):
        prompts.load_prompts(str(tmp_path / "nowhere.txt"), ["final_caption"])
