"""The teacher gemini: Google's API by its own client (package google-genai).

A small part of a clip is sent with the question, a large one is uploaded first and deleted after
its answer.
"""

import asyncio
import contextlib
import io
import os
import re

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
    number_of,
    tokens_told,
)
from ugc_jax.media.streams import Part

# Of the whole clip's answer; the API's names.
_BLOCKS = (
    "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY",
    "MODEL_ARMOR", "JAILBREAK", "LANGUAGE",
)  # fmt: skip
_POLL = 1.0  # seconds between questions whether an uploaded file is ready


class GeminiTeacher:
    """Asks Gemini; bound to the event loop on which it is first used."""

    def __init__(self, config: TeacherConfig, asking: AskingConfig, schemas: dict[str, dict]):
        """schemas: JSON schema by stage.

        Raises UserError without a key, EnvironmentFailure without the package.
        """
        require_extra("gemini", "the teacher gemini")
        from google import genai
        from google.genai import errors, types

        key = os.environ.get(config.key_name)
        if key is None and config.base_url is None:
            raise UserError(
                f"the environment variable {config.key_name} with Gemini's key is not set; set it"
            )
        self.config, self._schemas = config, schemas
        self._types, self._errors = types, errors
        # One attempt a request, as retries are made and counted in asking.py. Without these options
        # the client repeats some requests by itself.
        once = types.HttpRetryOptions(attempts=1)
        options = types.HttpOptions(
            base_url=config.base_url, timeout=int(asking.timeout * 1000), retry_options=once
        )
        self._client = genai.Client(api_key=key or "none", vertexai=False, http_options=options)

    async def ask(self, question: Question) -> Reply:
        """As `teacher.Teacher.ask`."""
        uploaded = []
        try:
            parts = [await self._part(one, uploaded) for one in _media(question)]
            texts = [question.text, question.reminder] if question.reminder else [question.text]
            parts += [self._types.Part.from_text(text=text) for text in texts]
            response = await self._client.aio.models.generate_content(
                model=self.config.model,
                contents=[self._types.Content(role="user", parts=parts)],
                config=self._options(question),
            )
        except Exception as error:
            raise self._trouble(error) from None
        finally:
            for name in uploaded:
                await self._forget(name)
        return _reply(response)

    async def close(self):
        """End connections."""
        with contextlib.suppress(Exception):  # it is of no use any more
            await self._client.aio.aclose()

    def _options(self, question: Question):
        schema = self._schemas[question.stage] if self.config.schema else None
        return self._types.GenerateContentConfig(
            temperature=self.config.temperature,
            max_output_tokens=self.config.max_tokens,
            seed=question.sample,
            response_mime_type="application/json",
            response_json_schema=schema,
        )

    async def _part(self, part: Part, uploaded: list[str]):
        """Return a part of the message. uploaded: gets the names of files to delete."""
        if len(part.data) <= self.config.inline_mb * 1e6:
            return self._types.Part.from_bytes(data=part.data, mime_type=part.kind)
        files = self._client.aio.files
        kind = self._types.UploadFileConfig(mime_type=part.kind)
        file = await files.upload(file=io.BytesIO(part.data), config=kind)
        uploaded.append(file.name)
        while (state := getattr(file.state, "name", "ACTIVE")) == "PROCESSING":
            await asyncio.sleep(_POLL)
            file = await files.get(name=file.name)
        if state == "FAILED":
            raise Trouble(Kind.REFUSED, "the uploaded file cannot be processed")
        return self._types.Part.from_uri(file_uri=file.uri, mime_type=part.kind)

    async def _forget(self, name: str):
        """Delete an uploaded file; if that fails, the server does it after two days."""
        with contextlib.suppress(Exception):
            await self._client.aio.files.delete(name=name)

    def _trouble(self, error: Exception) -> Trouble:
        if isinstance(error, Trouble):
            return error
        if isinstance(error, self._errors.APIError):
            kind = kind_of_status(error.code or 500)
            after = _retry_after(error)
            message = str(error.message or "")
            if "API key" in message:  # which is answered by 400
                kind = Kind.CONFIG
            return Trouble(kind, one_line(f"HTTP {error.code}: {message}"), after)
        return _of_transport(error)


def _of_transport(error: Exception) -> Trouble:
    """Return the trouble of a failed connection, or of a reply that the client cannot read.

    By the names of classes: the client may use httpx, httpx2 or aiohttp. Of a body that is cut off,
    or of another form than the protocol's, it raises errors of many kinds.
    """
    names = {cls.__name__ for cls in type(error).__mro__}
    reason = one_line(f"{type(error).__name__}: {error}")
    if names & {"ConnectError", "ConnectTimeout", "ClientConnectorError", "PoolTimeout"}:
        return Trouble(Kind.AWAY, reason)
    if names & {"TimeoutException", "TimeoutError"}:
        return Trouble(Kind.FAULT, "no answer within the time limit", lost=True)
    return Trouble(Kind.FAULT, reason, lost=True)


def _media(question: Question) -> list[Part]:
    """Return what may be heard and seen in the stage, and nothing else of the clip."""
    material = question.material
    part = {"sound": material.sound, "picture": material.picture, "both": material.both}
    return [part[question.stage]]


def _reply(response) -> Reply:
    usage = response.usage_metadata
    details = getattr(usage, "prompt_tokens_details", None) or []
    sound = sum(
        number_of(one.token_count)
        for one in details
        if getattr(one.modality, "name", "") == "AUDIO"
    )
    kinds = "candidates_token_count", "thoughts_token_count"  # thinking is charged, too
    made = sum(number_of(getattr(usage, name, None)) for name in kinds)
    tokens = tokens_told(getattr(usage, "prompt_token_count", None), made, sound)
    version = response.model_version or UNNAMED
    text, fault = "", None
    feedback = response.prompt_feedback
    if feedback is not None and feedback.block_reason is not None:
        fault = f"{BLOCKED}: {feedback.block_reason.name}"
    elif not response.candidates:
        if version == UNNAMED:
            raise Trouble(Kind.FAULT, NO_REPLY, lost=True)
        fault = NO_ANSWER
    else:
        candidate = response.candidates[0]
        parts = (candidate.content.parts if candidate.content else None) or []
        text = encodable("".join(part.text for part in parts if part.text and not part.thought))
        finish = getattr(candidate.finish_reason, "name", None)
        if finish in _BLOCKS:
            fault = f"{BLOCKED}: {finish}"
        elif finish == "MAX_TOKENS":
            fault = CUT_OFF
        elif finish not in ("STOP", None):
            fault = f"broken off by the server: {finish}"
    return Reply(text, version, tokens, fault)


def _retry_after(error) -> float | None:
    """Seconds of the header Retry-After, or of Google's RetryInfo; None without."""
    headers = getattr(error.response, "headers", None) or {}
    if (seconds := retry_after(headers)) is not None:
        return seconds
    body = error.details
    inner = body.get("error", body) if isinstance(body, dict) else None
    details = inner.get("details") if isinstance(inner, dict) else None
    for one in details if isinstance(details, list) else ():
        delay = one.get("retryDelay") if isinstance(one, dict) else None
        if found := re.fullmatch(r"(\d+(\.\d+)?)s", str(delay)):
            return float(found[1])
    return None
