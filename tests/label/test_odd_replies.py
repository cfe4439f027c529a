"""Replies that no teacher should give: each is kept or asked again, and none ends the job."""

import json

import pytest
from label_job import Job, known

from ugc_jax.errors import UserError
from ugc_jax.toy import teacher as toy
from ugc_jax.toy.teacher import VERSION, Teacher

HUGE = int("9" * 400)  # a number of JSON that no float holds


@pytest.fixture
def teacher(clips):
    """A teacher without errors."""
    with Teacher(known(clips), errors=0.0) as server:
        yield server


@pytest.fixture
def one(teacher, clips, tmp_path):
    """A function: kind -> a run on one clip, with few attempts."""

    def make(kind: str) -> Job:
        done = Job(teacher, clips, tmp_path / "train.jsonl", kind)
        done.words[1] = str(teacher.clips.paths[0])
        done.words += ["--teacher.stills", "2", "--retries", "1", "--unusable", "1"]
        return done

    return make


def reply_with(teacher, monkeypatch, change):
    """Let `change(content, response)` return the content, or change the response in place."""

    def reply(handler, form, fault, content, counts):
        content = change(content, None) or content
        body = form(content, "STOP", counts, toy._count_out("answered", content), teacher.version)
        change(None, body)
        toy._send(handler, 200, body)
        return "answered"

    monkeypatch.setattr(teacher, "_reply", reply)


def send(teacher, monkeypatch, data: bytes, status: int = 200, headers=()):
    """Let each request have this body."""

    def reply(handler, *_):
        toy._begin(handler, status, len(data), dict(headers))
        handler.wfile.write(data)
        return "odd"

    monkeypatch.setattr(teacher, "_reply", reply)


@pytest.mark.parametrize("kind", ["gemini", "openai"])
def test_a_number_that_is_too_large(one, teacher, monkeypatch, kind):
    def change(content, body):
        if content is None or "sounds" not in (said := json.loads(content)):
            return None
        return json.dumps(said | {"sounds": [{"what": "a beep", "start": HUGE}]})

    reply_with(teacher, monkeypatch, change)
    done = one(kind)
    assert done.run() == 0
    assert done.rows() == []
    (row,) = done.rows("rejected.jsonl")
    assert row["reason"].startswith("sounds[0].start: 999")
    assert row["reason"].endswith("(pass sound)")


@pytest.mark.parametrize("kind", ["gemini", "openai"])
def test_half_a_surrogate_pair_is_replaced(one, teacher, monkeypatch, kind):
    def change(content, body):
        if content is None:
            return None
        said = json.loads(content)
        return json.dumps(said | {"caption": f"{said['caption'][:-1]} \ud83d."})

    reply_with(teacher, monkeypatch, change)
    done = one(kind)
    assert done.run() == 0
    (row,) = done.rows()
    assert row["solution"].endswith(" \N{REPLACEMENT CHARACTER}.")


@pytest.mark.parametrize("kind", ["gemini", "openai"])
@pytest.mark.parametrize("told", [None, -5, HUGE, float("nan")])
def test_the_estimate_counts_where_no_tokens_are_told(one, teacher, monkeypatch, kind, told):
    """Else --max_cost would never stop."""
    if kind == "gemini" and isinstance(told, float):
        pytest.skip("its client refuses the reply")

    def change(content, body):
        for name in ("usage", "usageMetadata"):
            if body is not None and name in body:
                body[name] = {key: told for key in body[name] if "etails" not in key}

    reply_with(teacher, monkeypatch, change)
    done = one(kind)
    assert done.run() == 0
    totals = done.totals()
    assert totals["answers"] == 3
    assert totals["tokens_out"] == 3 * 600
    assert totals["cost"] > 3 * 600 * 2 / 1e6


@pytest.mark.parametrize("kind", ["gemini", "openai"])
@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[1]"])
def test_a_body_of_something_else_is_no_version_of_the_model(one, teacher, monkeypatch, kind, body):
    done = one(kind)
    with monkeypatch.context() as patch:
        send(teacher, patch, body)
        assert done.run() == 1
    (row,) = done.rows("rejected.jsonl")
    assert row["reason"].startswith("2 attempts failed: ")
    assert done.totals()["unknown"] == 4
    assert done.run() == 0
    assert done.totals()["versions"] == {f"{kind} toy": VERSION}
    assert len(done.rows()) == 1


@pytest.mark.parametrize("kind", ["gemini", "openai"])
@pytest.mark.parametrize(
    "body",
    [
        {"error": "nope"},
        {"error": {"code": 500, "message": ["x"], "details": {"a": 1}}},
        {"error": {"code": 500, "message": "x", "details": ["a", {"retryDelay": "1..s"}]}},
        {"error": {"code": 500, "message": "x", "details": [{"retryDelay": 7}]}},
    ],
)
def test_an_error_of_another_form(one, teacher, monkeypatch, kind, body):
    send(teacher, monkeypatch, json.dumps(body).encode(), 500)
    done = one(kind)
    assert done.run() == 1
    (row,) = done.rows("rejected.jsonl")
    assert row["reason"].startswith("2 attempts failed: HTTP 500")


def test_an_answer_that_is_too_deep_for_the_client(one, teacher, monkeypatch):
    reply_with(teacher, monkeypatch, lambda content, body: content and '{"a":' * 100_000)
    done = one("gemini")
    assert done.run() == 1
    (row,) = done.rows("rejected.jsonl")
    assert row["reason"].startswith("2 attempts failed: RecursionError")


@pytest.mark.parametrize("status", [500, 503])
def test_no_pause_is_longer_than_the_wait(one, teacher, monkeypatch, status):
    send(teacher, monkeypatch, b"{}", status, {"Retry-After": "86400"}.items())
    done = one("openai")
    if status == 503:
        with pytest.raises(UserError, match=r"cannot be reached for 0\.01 min"):
            done.run("--wait", "0.01")
    else:
        assert done.run("--wait", "0.01") == 1


def test_a_busy_server_that_asks_for_no_pause_is_not_flooded(one, teacher, monkeypatch):
    send(teacher, monkeypatch, b"{}", 429, {"Retry-After": "0"}.items())
    assert one("openai").run("--wait", "0.03", "--backoff", "0.3") == 1
    assert 4 <= len(teacher.times) <= 12
