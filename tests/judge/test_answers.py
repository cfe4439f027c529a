"""ugc_jax.judge.answers: what is on record stays, whatever kills the run."""

import pytest

from ugc_jax.errors import UserError
from ugc_jax.judge.answers import Answers


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "judge.jsonl"


def test_without_a_file(tmp_path):
    answers = Answers(None)
    answers.put("a", {"score": 1})
    assert answers.get("a") == {"score": 1}
    assert answers.get("b") is None
    assert not list(tmp_path.iterdir())


def test_it_is_in_the_file_at_once(path):
    answers = Answers(path)
    answers.put("a", {"score": 1, "why": "größer 猫"})
    answers.put("b", {"score": 2})
    again = Answers(path)  # the first is not closed
    assert again.get("a") == {"score": 1, "why": "größer 猫"}
    assert again.get("b") == {"score": 2}
    assert len(path.read_text().splitlines()) == 2


def test_a_half_written_end_is_passed_over(path, caplog):
    first = Answers(path)
    first.put("a", {"score": 1})
    first.put("b", {"score": 2})
    first.close()
    path.write_bytes(path.read_bytes()[:-9])
    second = Answers(path)
    assert (second.get("a"), second.get("b")) == ({"score": 1}, None)
    assert "1 unreadable line" in caplog.text
    second.put("c", {"score": 3})  # stands on a line of its own
    second.close()
    third = Answers(path)
    assert (third.get("a"), third.get("c")) == ({"score": 1}, {"score": 3})


def test_what_cannot_be_used_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        Answers(tmp_path)  # a folder
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"judge\.jsonl: the judge's answers cannot be kept"):
        Answers(tmp_path / "file" / "judge.jsonl")


@pytest.mark.parametrize(
    "content",
    [
        '{"video_id": "a", "caption": "x"}\n',
        '{"key": "a", "answer": "Yes"}\n',
        '{"key": 1, "answer": {}}\n',
        "[1]\n\n3\n",
        "A text.",
        "[" * 99_999,
    ],
    ids=lambda content: content[:40],
)
def test_another_file_is_left_alone(tmp_path, content):
    path = tmp_path / "captions.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=r"captions\.jsonl: holds no answers of a judge"):
        Answers(path)
    assert path.read_text() == content


def test_empty_files_are_used(tmp_path):
    path = tmp_path / "judge.jsonl"
    path.write_text("\n \n")
    Answers(path).put("a", {"score": 1})
    assert Answers(path).get("a") == {"score": 1}


def test_what_answers_took(path):
    answers = Answers(path)
    answers.put("a", {"score": 1}, (100, 10))
    answers.put("b", {"score": 2}, (100, 10))
    assert answers.earlier("a") == (0, 0)  # it was in this process
    answers.close()
    with path.open("a") as file:
        file.write('{"key": "old", "answer": {"score": 3}, "rules": 2}\n')
    again = Answers(path)
    assert [again.earlier("a") for _ in range(2)] == [(100, 10), (0, 0)]
    assert (again.get("old"), again.earlier("old")) == ({"score": 3}, (0, 0))
    again.put("b", {"score": 4}, (200, 20))  # anew
    assert again.earlier("b") == (0, 0)


def test_answers_of_weaker_rules_are_asked_again(path, caplog):
    """0.1.0 took any object of a reply: its cache may have a draft, and does not tell."""
    old = '{"key": "a", "answer": {"score": 1}, "tokens_in": 100, "tokens_out": 900}\n'
    path.parent.mkdir()
    path.write_text(old * 2 + old.replace('"a"', '"b"'))
    answers = Answers(path)
    assert (answers.get("a"), answers.earlier("a")) == (None, (0, 0))
    assert "2 answers of a version that could take a draft" in caplog.text
    answers.put("a", {"score": 4})
    caplog.clear()
    assert Answers(path).get("a") == {"score": 4}
    assert ": 1 answers of a version" in caplog.text
