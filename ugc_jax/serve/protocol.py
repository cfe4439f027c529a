"""OpenAI's chat completions: bodies of requests -> Chat; answers, chunks and errors in its form.

Fields that are not supported are refused by name; those that have no effect on an answer are read
over. Beyond OpenAI's fields there are `clip` (settings of the media), `evidence` and
`evidence_by_time` (what each word of an answer rests on), and top_k and repetition_penalty under
the names that vLLM gives them.
"""

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from ugc_jax.errors import UserError
from ugc_jax.generate.live import Piece, Token

# Fields that say nothing about the answer, whatever their value.
IGNORED = (
    "user", "metadata", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "service_tier",
)  # fmt: skip
# Fields that are known but not supported, with the values that ask for nothing.
NEUTRAL: dict[str, tuple] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
SCHEMA = "response_format.json_schema.schema"  # the field
MOST_STOPS, LONGEST_STOP = 16, 1000
NO_LOGPROB = -9999.0  # as OpenAI writes minus infinity


class Refusal(Exception):
    """A request that gets no answer: an HTTP status and OpenAI's error.

    param: the field that is to blame. headers: further ones, such as Retry-After.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict:
        """Return the error object."""
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {
            "message": self.message,
            "type": kind.get(self.status, default),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def response(self) -> JSONResponse:
        """Return the whole answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def error_response(
    message: str, status: int, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return an answer that is an error; for what knows nothing of this protocol."""
    return Refusal(status, message, headers=headers).response()


# ---- bodies --------------------------------------------------------------------------------------


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Url(_Strict):
    url: str
    detail: Literal["auto", "low", "high"] | None = None  # pixels follow from the clip settings


class TextPart(_Strict):
    """A part that is text."""

    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: _Url
    uuid: str | None = None  # of vLLM's clients; has no effect


class VideoPart(_Strict):
    """A clip; as vLLM takes it."""

    type: Literal["video_url"]
    video_url: _Url
    uuid: str | None = None


class _Sound(_Strict):
    data: str  # base64
    format: str


class AudioPart(_Strict):
    """A sound."""

    type: Literal["input_audio"]
    input_audio: _Sound


class AudioUrlPart(_Strict):
    """A sound by its address; as vLLM takes it and lmms-eval sends it."""

    type: Literal["audio_url"]
    audio_url: _Url


Part = Annotated[
    TextPart | ImagePart | VideoPart | AudioPart | AudioUrlPart, Field(discriminator="type")
]


class Message(_Strict):
    """A turn of the conversation; developer is the newer name of system."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None  # has no effect


class StreamOptions(_Strict):
    """include_usage: whether a last chunk has the counts of tokens."""

    include_usage: bool = False
    include_obfuscation: bool | None = None  # has no effect


class _JsonSchema(_Strict):
    name: str
    schema_: dict[str, Any] = Field(alias="schema", default_factory=dict)
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Strict):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


class ClipFields(_Strict):
    """Settings of the media of one request, beside those of the server; fields of ClipSettings.

    picture: false for the sound of videos alone.
    """

    picture: bool = True
    audio: bool | None = None
    fps: float | None = None
    frames: int | None = None
    max_frames: int | None = None
    max_pixels: int | None = None
    start: float | None = None
    end: float | None = None


class Chat(BaseModel):
    """The body of a request. Other fields than these are in `model_extra`, to be refused."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0)
    response_format: ResponseFormat | None = None
    clip: ClipFields | None = None
    evidence: bool | None = None
    evidence_by_time: bool | None = None

    def stops(self) -> tuple[str, ...]:
        """Return the strings that end an answer."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(dict.fromkeys(given))

    def answer_schema(self) -> dict | None:
        """Return the JSON schema of the answer; {} for any JSON object, None for text."""
        form = self.response_format
        if form is None or form.type == "text":
            return None
        return {} if form.type == "json_object" else form.json_schema.schema_

    def most_tokens(self) -> int | None:
        """Return the limit of the answer in tokens, if the request has one."""
        return self.max_completion_tokens or self.max_tokens


def parse(body: bytes) -> Chat:
    """Return the request of a body. Raises Refusal (400) naming the field that is to blame."""
    try:
        chat = Chat.model_validate_json(body)
    except pydantic.ValidationError as error:
        raise _refusal(error.errors(include_url=False, include_context=False)) from None
    for name, value in (chat.model_extra or {}).items():
        if value is None or name in IGNORED:
            continue
        shown = _short(name)
        if name not in NEUTRAL:
            raise Refusal(400, f"unknown field {shown}", param=shown, code="unknown_parameter")
        if value not in NEUTRAL[name]:
            raise Refusal(
                400, f"{name} is not supported; leave it out", param=name,
                code="unsupported_parameter",
            )  # fmt: skip
    _check(chat)
    return chat


def _check(chat: Chat):
    """Refuse what contradicts itself."""

    def require(holds: bool, param: str, remedy: str):
        if not holds:
            raise Refusal(400, f"{param}: {remedy}", param=param, code="invalid_value")

    both = chat.max_tokens is not None and chat.max_completion_tokens is not None
    require(not both, "max_tokens", "max_completion_tokens says the same; give one of them")
    require(chat.stream_options is None or bool(chat.stream), "stream_options", "needs stream")
    require(not chat.top_logprobs or bool(chat.logprobs), "top_logprobs", "needs logprobs: true")
    stops = chat.stops()
    require(len(stops) <= MOST_STOPS, "stop", f"give at most {MOST_STOPS} strings")
    require(
        all(0 < len(one) <= LONGEST_STOP for one in stops), "stop",
        f"a string has 1 to {LONGEST_STOP} characters",
    )  # fmt: skip
    form = chat.response_format
    if form is not None:
        needs = form.type == "json_schema"
        require(
            needs == (form.json_schema is not None), "response_format.json_schema",
            "belongs to the type json_schema",
        )  # fmt: skip
    require(chat.messages[-1].role != "assistant", "messages", "the last one is to be answered")
    any_media = False
    for number, message in enumerate(chat.messages):
        media = isinstance(message.content, list) and any(
            part.type != "text" for part in message.content
        )
        any_media = any_media or media
        require(
            message.role == "user" or not media, f"messages[{number}].content",
            "media belong to messages of the role user",
        )  # fmt: skip
    by_time = "evidence_by_time"
    require(not chat.evidence_by_time or bool(chat.evidence), by_time, "needs evidence: true")
    require(
        not chat.evidence or any_media, "evidence",
        "needs a clip, a picture or a sound in messages, on which words could rest",
    )  # fmt: skip


def _refusal(errors: Sequence[Mapping]) -> Refusal:
    """The first fault of a body that pydantic found."""
    # Of alternatives (text or parts), the one that came further is what was meant.
    fault = max(errors, key=lambda one: len(one["loc"]))
    if fault["type"] == "json_invalid":
        return Refusal(400, f"the body is not JSON: {fault['msg']}", code="invalid_json")
    names = {"text", "image_url", "video_url", "input_audio", "audio_url"}
    path, inside = "", [*fault["loc"]]
    for place, step in enumerate(inside):
        if isinstance(step, int):
            path += f"[{step}]"
        elif step == "str" or step.startswith("list["):
            continue  # alternatives of the model, no fields
        elif step in names and place and isinstance(inside[place - 1], int):
            continue
        else:
            path += f".{step}" if path else step
    path = _short(path)
    if fault["type"] == "extra_forbidden":
        return Refusal(400, f"unknown field {path}", param=path, code="unknown_parameter")
    if fault["type"] == "missing":
        return Refusal(400, f"{path}: is missing", param=path, code="missing_required_parameter")
    if fault["type"] == "union_tag_invalid":
        return Refusal(
            400, f"{path}.type: unknown; use {', '.join(sorted(names))}", param=f"{path}.type",
            code="invalid_value",
        )  # fmt: skip
    if fault["type"] == "union_tag_not_found":
        return Refusal(
            400, f"{path}.type: is missing", param=f"{path}.type", code="missing_required_parameter"
        )
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    if len(errors) > 1 and "str" in inside:  # of a text, or of a list of something
        message = f"expected a text or a list of {'parts' if path.endswith('content') else 'texts'}"
    return Refusal(400, f"{path or 'body'}: {message}", param=path or None, code="invalid_value")


def _short(text: str) -> str:
    return one_line(text)[:200]


def one_line(text: str) -> str:
    """Return text in which what a terminal or a log would not print as it is is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def of_user(error: UserError, param: str | None = None) -> Refusal:
    """Return the refusal that is a user's mistake."""
    text = one_line(str(error))
    too_long = "tokens" in text and "budget" in text or "longer than the" in text
    code = "context_length_exceeded" if too_long else "invalid_value"
    return Refusal(400, text, param=param, code=code)


# ---- answers -------------------------------------------------------------------------------------


class Facts(NamedTuple):
    """What all answers to a request have in common."""

    id: str
    created: int
    model: str

    @classmethod
    def new(cls, model: str) -> "Facts":
        """Return those of a request that came now."""
        return cls(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model)


class Usage:
    """The counts of tokens of an answer."""

    def __init__(self, prompt: int, audio: int):
        self.prompt, self.audio, self.generated = prompt, audio, 0

    def record(self) -> dict:
        """Return OpenAI's object."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": {"audio_tokens": self.audio, "cached_tokens": 0},
        }


def logprobs_of(tokens: Iterable[Token], end: int) -> dict:
    """Return the log-probs of tokens. end: id of the end-of-text token, which is left out."""

    def entry(text: bytes, logprob: float) -> dict:
        return {
            "token": text.decode(errors="replace"),
            "logprob": max(logprob, NO_LOGPROB),
            "bytes": list(text),
        }

    return {
        "content": [
            entry(token.text, token.logprob)
            | {"top_logprobs": [entry(text, logprob) for _, text, logprob in token.top]}
            for token in tokens
            if token.id != end
        ],
        "refusal": None,
    }


class Choices:
    """The answers of a request, gathered from their pieces."""

    def __init__(self, count: int):
        self.texts: list[list[str]] = [[] for _ in range(count)]
        self.tokens: list[list[Token]] = [[] for _ in range(count)]
        self.reasons: list[str | None] = [None] * count

    def add(self, piece: Piece, keeps_tokens: bool):
        """Add a piece. keeps_tokens: for log-probs."""
        self.texts[piece.sample].append(piece.text)
        if keeps_tokens:
            self.tokens[piece.sample] += piece.tokens
        self.reasons[piece.sample] = piece.finish_reason

    def whole(self) -> list[str]:
        """Return the text of each answer so far."""
        return ["".join(texts) for texts in self.texts]


def completion(
    facts: Facts, choices: Choices, usage: Usage, notes: Sequence[str], end: int | None,
    evidence: Sequence[dict] = (),
) -> dict:  # fmt: skip
    """Return a whole answer. notes: of the media. end: as of `logprobs_of`; None: no log-probs.

    evidence: of each choice, if it was asked for.
    """
    answer = {
        "id": facts.id,
        "object": "chat.completion",
        "created": facts.created,
        "model": facts.model,
        "choices": [
            {
                "index": number,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None if end is None else logprobs_of(choices.tokens[number], end),
                "finish_reason": choices.reasons[number],
            }
            | ({"evidence": evidence[number]} if evidence else {})
            for number, text in enumerate(choices.whole())
        ],
        "usage": usage.record(),
    }
    return answer | ({"notes": list(notes)} if notes else {})


def chunk(facts: Facts, choices: list[dict], **more) -> bytes:
    """Return a server-sent event of a stream."""
    return event(
        {
            "id": facts.id,
            "object": "chat.completion.chunk",
            "created": facts.created,
            "model": facts.model,
            "choices": choices,
            **more,
        }
    )


def delta(piece: Piece, end: int | None) -> dict:
    """Return the choice of a chunk. end: as of `completion`."""
    return {
        "index": piece.sample,
        "delta": {"content": piece.text} if piece.text else {},
        "logprobs": None if end is None else logprobs_of(piece.tokens, end),
        "finish_reason": piece.finish_reason,
    }


def evidence_delta(number: int, evidence: dict) -> dict:
    """Return the choice of a chunk that has nothing but the evidence of a whole answer."""
    return {
        "index": number,
        "delta": {},
        "logprobs": None,
        "finish_reason": None,
        "evidence": evidence,
    }


def event(value: dict) -> bytes:
    """Return a server-sent event with a JSON object."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
