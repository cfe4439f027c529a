"""ugc_jax.serve.reading: the messages of a prompt."""

import json

import pytest

from ugc_jax.data.prompt import Medium
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.serve.protocol import parse
from ugc_jax.serve.reading import messages_of

VIDEO = {"type": "video_url", "video_url": {"url": "data:"}}
SETTINGS = resolve(ClipSettings(question="What is it?", system="Be helpful."))
SYSTEM, QUESTION = {"role": "system", "content": "Be helpful."}, SETTINGS.question


def messages(*given: tuple[str, str | list]) -> list[dict]:
    turns = [{"role": role, "content": content} for role, content in given]
    chat = parse(json.dumps({"model": "m", "messages": turns}).encode())
    media = sum(isinstance(content, list) and VIDEO in content for _, content in given)
    return messages_of(chat, SETTINGS, [Medium("video")] * media)


def text(value: str) -> dict:
    return {"type": "text", "text": value}


@pytest.mark.parametrize("rest", [[], [text("")], [text(" "), text("\n")]])
def test_the_question_of_the_settings_comes_where_none_is_asked(rest):
    system, user = messages(("user", [VIDEO, *rest]))
    assert system == SYSTEM
    assert user["content"] == [{"type": "video"}, *rest, text(QUESTION)]


def test_it_is_the_users_also_before_another_message():
    found = messages(("user", [VIDEO]), ("system", "Be brief."))
    assert found[1]["content"] == [{"type": "video"}, text(QUESTION)]
    assert found[2] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("turn", ["Why?", [text("Why?")]])
def test_a_question_of_the_user_stays_alone(turn):
    first, *found = messages(("developer", "Be brief."), ("user", [VIDEO]), ("user", turn))
    assert first == {"role": "system", "content": "Be brief."}
    assert found == [
        {"role": "user", "content": [{"type": "video"}]}, {"role": "user", "content": turn},
    ]  # fmt: skip
