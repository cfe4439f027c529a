"""ugc_jax.annotate.questions: what is proposed, and whether a task can be scored."""

import pytest
from fake_judge import FakeJudge

from ugc_jax.annotate.answers import Agreed, Question
from ugc_jax.annotate.questions import LlmAsker, balance, propose
from ugc_jax.data.annotation import Both, Picture, Sound, SoundEvent, Thing
from ugc_jax.judge.client import JudgeConfig, JudgeError

SOUNDS = (SoundEvent("bell", 1.0), SoundEvent("drum", 2.0), SoundEvent("bell", 3.0))
FULL = Agreed(
    "x",
    "x.mp4",
    Sound("Narration", "Positive", True, SOUNDS, "A man."),
    Picture(
        ("SALE",),
        (Thing("car", 1, "red", "on the left"), Thing("dog", 2), Thing("tree"), Thing("tree")),
        "",
        "A car.",
    ),
    Both("A man and a car."),
)


def by_text(agreed, count=99):
    return {one.question: one for one in propose(agreed, count)}


def test_four_questions_of_all_kinds():
    kinds = [one.kind for one in propose(FULL)]
    assert kinds == ["sound", "picture", "cross", "sound"]
    assert propose(FULL) == propose(FULL)
    assert [one.kind for one in propose(FULL, 2)] == ["sound", "picture"]


def test_answers_follow_from_the_fields():
    found = by_text(FULL)
    by_task = {one.task: one for one in found.values() if one.task}
    assert by_task.keys() == {"voice_source", "tone", "bgm", "objects"}  # the background is still
    assert by_task["voice_source"].answer == "Narration"
    assert by_task["voice_source"].options == ("Narration", "In-Video Voice", "Out-Video Voice")
    assert by_task["bgm"].answer == "Yes"
    assert by_task["objects"].answer.startswith("car (count: 1, color: red, position: on the left)")
    heard = next(one for one in found.values() if one.question.startswith("Which sounds"))
    assert heard.answer == "bell; drum"
    assert found["What color is the car in the video?"].answer == "red"
    assert found["Where is the car in the video?"].answer == "on the left"
    assert not any("tree" in question for question in found)  # there are two entries


@pytest.mark.parametrize(
    ("voice", "music", "text", "change", "expected"),
    [
        ("Narration", True, ("A",), "", {
            "Background music, and text on the screen",
            "A human voice, and a background that stays the same",
            "Background music, and a background that stays the same",
            "A human voice, and text on the screen",
        }),
        ("None", False, (), "It turns dark.", {
            "No background music, and no text on the screen",
            "No human voice, and a background that changes",
            "No background music, and a background that changes",
            "No human voice, and no text on the screen",
        }),
    ],
)  # fmt: skip
def test_cross_questions_need_both(voice, music, text, change, expected):
    agreed = Agreed(
        "x", "x.mp4", Sound(voice, "Neutral", music, (), ""), Picture(text, (), change, "")
    )
    crossed = [one for one in propose(agreed, 99) if one.kind == "cross"]
    assert {one.answer for one in crossed} == expected
    assert all(one.answer in one.options and len(set(one.options)) == 4 for one in crossed)


def test_stages_that_are_not_done_are_not_asked_about():
    assert propose(Agreed("x", "x.mp4")) == []
    silent = Agreed("x", "x.mp4", Sound("None", "Neutral", False, (), ""))
    assert {one.task for one in propose(silent, 99)} == {"tone", "bgm"}


def test_clips_begin_at_different_templates():
    first = {propose(FULL._replace(clip=f"clip{n}"), 1)[0].task for n in range(40)}
    assert first == {"voice_source", "tone", "bgm", ""}


def question(answer, task="bgm", options=("Yes", "No"), text="Is there music?"):
    return Question("x", "sound", text, answer, options, task)


def test_balance_warns_of_the_released_music_task():
    (one,) = balance([question("No")] * 999)
    assert (one.name, one.total, one.counts) == ("bgm", 999, {"No": 999})
    assert one.warning.startswith("bgm: all 999 answers are No; the task is degenerate")


def test_balance_warns_of_a_majority():
    (one,) = balance([question("Yes")] * 5 + [question("No")] * 95)
    assert one.counts == {"No": 95, "Yes": 5}
    assert one.warning.startswith("bgm: 95.0 % of 100 answers are No; a constant guess")
    (one,) = balance([question("Yes")] * 26 + [question("No")] * 74)
    assert one.warning is None
    (one,) = balance([question("Yes")] * 26 + [question("No")] * 74, majority=0.7)
    assert "74.0 %" in one.warning


def test_balance_counts_spellings_as_one_and_texts_not():
    found = balance(
        [
            question("yes"),
            question("Yes"),
            question("No"),
            question("a red car", "objects", (), "List all objects."),
            question("A", "", ("A", "B"), "Which?"),
        ]
    )
    assert [(one.name, one.total, one.counts) for one in found] == [
        ("bgm", 3, {"Yes": 2, "No": 1}),
        ("objects", 1, {}),
        ("Which?", 1, {"A": 1}),
    ]
    assert [one.warning for one in found] == [None] * 3


# ---- an LLM --------------------------------------------------------------------------------------

ROWS = [
    {"kind": "cross", "question": " Who speaks? ", "answer": "the driver", "options": []},
    {"kind": "sound", "question": "Loud?", "answer": "no", "options": ["yes", "no"]},
]


@pytest.fixture
def server():
    pytest.importorskip("openai")
    server = FakeJudge(lambda question: {"questions": ROWS})
    yield server
    server.stop()


def asker(server):
    return LlmAsker(JudgeConfig(model="fake", base_url=server.url, malformed=1, retries=0))


def test_an_llm_adds_its_questions(server):
    with asker(server) as ask:
        found = propose(FULL, 4, ask)
        assert len(propose(FULL, 1, ask)) == 2  # one of each
    assert [one.source for one in found] == ["template"] * 4 + ["llm"] * 2
    assert found[4] == Question("x", "cross", "Who speaks?", "the driver", source="llm")
    assert found[5].options == ("yes", "no")
    (asked, _) = server.questions
    assert '"voice_source": "Narration"' in asked
    assert "Write 4 questions" in asked


@pytest.mark.parametrize(
    "row",
    [
        {"kind": "smell", "question": "What?", "answer": "it"},
        {"kind": "sound", "question": "", "answer": "it"},
        {"kind": "sound", "question": "What?", "answer": "it", "options": ["a", "b"]},
        {"kind": "sound", "question": "What?", "answer": "a", "options": ["a", "a"]},
        "What?",
    ],
)
def test_an_llm_that_answers_otherwise_is_asked_again(server, row):
    server.answer = lambda question: {"questions": [row]}
    with asker(server) as ask, pytest.raises(JudgeError, match="question 1"):
        propose(FULL, 4, ask)
    assert len(server.requests) == 2
