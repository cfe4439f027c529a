"""ugc_jax.serve.protocol: each wrong body is refused by the name of its field."""

import json

import pytest

from ugc_jax.generate.live import Piece, Token
from ugc_jax.serve import protocol
from ugc_jax.serve.protocol import Choices, Facts, Refusal, Usage, parse

TEXT = [{"role": "user", "content": "What is it?"}]


def body(messages=TEXT, **fields) -> bytes:
    return json.dumps({"model": "m", "messages": messages, **fields}).encode()


def test_a_whole_request():
    chat = parse(
        body(
            [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
                {"role": "assistant", "content": "Hello."},
                {"role": "user", "content": "What is it?", "name": "anna"},
            ],
            stop="x",
            max_completion_tokens=9,
            temperature=0,
            top_p=1,
            user="u",
            store=True,
            metadata={"a": "b"},
            frequency_penalty=0.0,
            logit_bias={},
            tools=None,
            n=None,
            response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
        )  # fmt: skip
    )
    assert (chat.stops(), chat.most_tokens(), chat.answer_schema()) == (("x",), 9, {})
    assert parse(body(response_format={"type": "json_object"})).answer_schema() == {}
    assert parse(body(response_format={"type": "text"})).answer_schema() is None


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        (dict(foo=1), "foo", "unknown_parameter"),
        (dict(frequency_penalty=1), "frequency_penalty", "unsupported_parameter"),
        (dict(tools=[{"type": "function"}]), "tools", "unsupported_parameter"),
        (dict(modalities=["audio"]), "modalities", "unsupported_parameter"),
        (dict(temperature=3), "temperature", "invalid_value"),
        (dict(temperature="1"), "temperature", "invalid_value"),
        (dict(n=0), "n", "invalid_value"),
        (dict(top_logprobs=2), "top_logprobs", "invalid_value"),
        (dict(logprobs=True, top_logprobs=21), "top_logprobs", "invalid_value"),
        (dict(stream_options={"include_usage": True}), "stream_options", "invalid_value"),
        (dict(stop=["a", ""]), "stop", "invalid_value"),
        (dict(max_tokens=1, max_completion_tokens=2), "max_tokens", "invalid_value"),
        (dict(response_format={"type": "json_schema"}), "response_format.json_schema",
         "invalid_value"),
        (dict(response_format={"type": "xml"}), "response_format.type", "invalid_value"),
        (dict(clip={"fsp": 1}), "clip.fsp", "unknown_parameter"),
        (dict(clip={"fps": "2"}), "clip.fps", "invalid_value"),
        (dict(clip={"audio": "yes"}), "clip.audio", "invalid_value"),
        (dict(stop=3), "stop", "invalid_value"),
        (dict(messages=[{"role": "user", "content": None}]), "messages[0].content",
         "invalid_value"),
        (dict(messages=[{"role": "user", "content": [{"text": "a"}]}]),
         "messages[0].content[0].type", "missing_required_parameter"),
        (dict(messages=[]), "messages", "invalid_value"),
        (dict(messages=[{"role": "tool", "content": "x"}]), "messages[0].role", "invalid_value"),
        (dict(messages=[{"role": "assistant", "content": "x"}]), "messages", "invalid_value"),
        (dict(messages=[{"role": "user"}]), "messages[0].content", "missing_required_parameter"),
        (dict(messages=[{"role": "user", "content": [{"type": "video"}]}]),
         "messages[0].content[0].type", "invalid_value"),
        (dict(messages=[{"role": "user", "content": [{"type": "video_url", "video_url": {}}]}]),
         "messages[0].content[0].video_url.url", "missing_required_parameter"),
        (dict(messages=[{"role": "system", "content": [
            {"type": "image_url", "image_url": {"url": "data:"}}]}, *TEXT]),
         "messages[0].content", "invalid_value"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(fields, param, code):
    with pytest.raises(Refusal) as found:
        parse(body(**fields))
    error = found.value.body()["error"]
    assert (found.value.status, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 100_000, b"\xff\xfe", b'{"a": NaN}'])
def test_what_is_no_request(content):
    with pytest.raises(Refusal) as found:
        parse(content)
    assert found.value.status == 400


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(messages=[{"role": "user", "content": 3}]),
         "messages[0].content: expected a text or a list of parts"),
        (dict(messages=[{"role": "user", "content": ["a"]}]),
         "messages[0].content[0]: input should be an object"),
        (dict(stop=3), "stop: expected a text or a list of texts"),
        (dict(stop=[1]), "stop[0]: input should be a valid string"),
    ],
)  # fmt: skip
def test_alternatives_are_named(fields, message):
    with pytest.raises(Refusal) as found:
        parse(body(**fields))
    assert found.value.message == message


def test_markup_and_control_characters_are_shown_as_they_are():
    with pytest.raises(Refusal) as found:
        parse(body(**{"<b>\n\x1b[31m": 1}))
    assert found.value.message == "unknown field <b>\\n\\x1b[31m"


def test_an_answer():
    eos = Token(9, b"<|im_end|>", -0.5, ())
    tokens = Token(1, b"\xc3", -1.0, ((1, b"\xc3", -1.0), (2, b"a", float("-inf")))), eos
    choices = Choices(2)
    for piece in (Piece(1, (), "no", "length"), Piece(0, tokens, "yes", "stop")):
        choices.add(piece, True)
    usage = Usage(7, 3)
    usage.generated = 2
    answer = protocol.completion(Facts("i", 5, "m"), choices, usage, ["cut"], end=9)
    first, second = answer["choices"]
    assert first["message"]["content"] == "yes"
    assert (first["finish_reason"], second["finish_reason"]) == ("stop", "length")
    (entry,) = first["logprobs"]["content"]  # without the end-of-text token
    assert entry["bytes"] == [0xC3]
    assert entry["top_logprobs"][1]["logprob"] == -9999.0
    assert answer["usage"]["total_tokens"] == 9
    assert answer["notes"] == ["cut"]
    json.dumps(answer, allow_nan=False)
