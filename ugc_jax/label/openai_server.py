"""The teacher openai: any server that speaks OpenAI's chat completions, by the openai client.

Sound is input_audio; the picture is stills as image_url, or a video without its sound as video_url,
as vLLM takes it.
"""

import base64
import contextlib
import os

from ugc_jax.errors import UserError, require_extra
from ugc_jax.files import encodable
from ugc_jax.judge.client import retry_after
from ugc_jax.judge.messages import one_line
from ugc_jax.label.settings import AskingConfig, TeacherConfig
from ugc_jax.label.teacher import (
    BLOCKED,
    CUT_OFF,
    NO_ANSWER,
    NO_REPLY,
    UNNAMED,
    Kind,
    Question,
    Reply,
    Trouble,
    kind_of_status,
    tokens_told,
)
from ugc_jax.media.streams import Part

_FAULTS = {
    **dict.fromkeys(("length", "max_tokens", "model_length"), CUT_OFF),
    **dict.fromkeys(("content_filter", "safety", "recitation"), f"{BLOCKED}: content_filter"),
    **dict.fromkeys(("abort", "error"), "broken off by the server"),
}


class OpenAITeacher:
    """Asks a server; bound to the event loop on which it is first used."""

    def __init__(self, config: TeacherConfig, asking: AskingConfig, schemas: dict[str, dict]):
        """schemas: JSON schema by stage.

        Raises UserError without a key, EnvironmentFailure without the package.
        """
        require_extra("judge", "the teacher openai")
        import openai

        key = os.environ.get(config.key_name)
        if key is None and config.base_url is None:
            raise UserError(
                f"the environment variable {config.key_name} with the teacher's key is not set; "
                "set it, or give base_url of a server that needs none"
            )
        self.config, self._schemas, self._openai = config, schemas, openai
        # One attempt a request, as retries are made and counted in asking.py.
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url, api_key=key or "none", max_retries=0, timeout=asking.timeout
        )

    async def ask(self, question: Question) -> Reply:
        """As `teacher.Teacher.ask`."""
        content = [*map(self._part, self._media(question)), _text(question.text)]
        if question.reminder:
            content.append(_text(question.reminder))
        options = {}
        if self.config.schema:
            name, schema = question.stage, self._schemas[question.stage]
            form = {"name": name, "schema": schema, "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": form}
        try:
            response = await self._client.chat.completions.create(
                model=self.config.model,
                messages=[{"role": "user", "content": content}],
                temperature=self.config.temperature,
                max_tokens=self.config.max_tokens,
                seed=question.sample,
                **options,
            )
        # ValueError: a body that is cut off in the middle of its JSON
        except (self._openai.APIError, ValueError) as error:
            raise self._trouble(error) from None
        return _reply(response)

    async def close(self):
        """End connections."""
        await self._client.close()

    def _media(self, question: Question) -> list[Part]:
        """Return what may be heard and seen in the stage, and nothing else of the clip."""
        material, parts = question.material, []
        if question.stage != "sound" and material.picture is not None:
            is_stills = self.config.picture == "stills"
            parts += material.stills if is_stills else [material.picture]
        if question.stage != "picture" and material.sound is not None:
            parts.append(material.sound)
        return parts

    def _part(self, part: Part) -> dict:
        data = base64.b64encode(part.data).decode()
        if part.kind.startswith("audio/"):
            return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        kind = "image_url" if part.kind.startswith("image/") else "video_url"
        return {"type": kind, kind: {"url": f"data:{part.kind};base64,{data}"}}

    def _trouble(self, error: Exception) -> Trouble:
        openai = self._openai
        if isinstance(error, openai.APIStatusError):
            kind = kind_of_status(error.status_code)
            if error.code == "insufficient_quota":  # a 429 that waiting does not end
                kind = Kind.CONFIG
            reason = one_line(f"HTTP {error.status_code}: {error}")
            return Trouble(kind, reason, retry_after(error.response.headers))
        cause = type(error.__cause__).__name__
        reason = one_line(str(error.__cause__ or error))
        if cause in ("ConnectError", "ConnectTimeout"):
            return Trouble(Kind.AWAY, reason)
        if isinstance(error, openai.APITimeoutError):
            return Trouble(Kind.FAULT, "no answer within the time limit", lost=True)
        return Trouble(Kind.FAULT, reason, lost=True)


def _text(text: str) -> dict:
    return {"type": "text", "text": text}


def _reply(response) -> Reply:
    usage = getattr(response, "usage", None)
    details = getattr(usage, "prompt_tokens_details", None)
    tokens = tokens_told(
        getattr(usage, "prompt_tokens", None),
        getattr(usage, "completion_tokens", None),
        getattr(details, "audio_tokens", None),
    )
    version = str(getattr(response, "model", None) or UNNAMED)
    text, fault = "", NO_ANSWER
    with contextlib.suppress(AttributeError, LookupError, TypeError):
        choice = response.choices[0]
        text = encodable(str(choice.message.content or ""))
        fault = _FAULTS.get(str(choice.finish_reason).lower())
        if refusal := getattr(choice.message, "refusal", None):
            fault = f"the teacher refuses: {one_line(str(refusal))}"
    if version == UNNAMED and fault == NO_ANSWER:
        raise Trouble(Kind.FAULT, NO_REPLY, lost=True)
    return Reply(text, version, tokens, fault)
