"""Chat -> Prompt: its media are read by worker processes, as the jobs read clips.

A request with one clip, and the system prompt and the question of the clip settings, has the prompt
that `ugc-jax caption` builds for this clip.
"""

import asyncio
import base64
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ugc_jax.data.batching import Buckets, bucket_of
from ugc_jax.data.drawing import draw_mel, encode
from ugc_jax.data.example import ClipInfo, MediaRequest, MediumInput, build_example, read_several
from ugc_jax.data.prompt import ChatTokenizer, Medium, text_counts
from ugc_jax.data.reading import Prompt
from ugc_jax.data.workers import Outcome, Pool, ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.generate.settings import leave_room
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.serve import media as parts
from ugc_jax.serve.protocol import Chat, of_user

_BUCKETS = Buckets()
PICTURES, SIDE, MEL_COLUMNS = 128, 320, 3000  # most of what `inputs` shows


class Preview(NamedTuple):
    """A medium as the model gets it. pictures: JPEG of frames. mel: PNG of the log-mel, or None.

    numbers: of these frames. size: (width, height) of a frame as the model gets it, or None.
    """

    info: ClipInfo
    pictures: tuple[bytes, ...]
    numbers: tuple[int, ...]
    size: tuple[int, int] | None
    mel: bytes | None


class Item(NamedTuple):
    """What a worker reads. kinds: that each file may be. shows: return Preview, not inputs."""

    request: MediaRequest
    kinds: tuple[tuple[str, ...], ...]
    shows: bool = False


def read(item: Item, config: OmniConfig) -> list[tuple[MediumInput, ClipInfo]] | list[Preview]:
    """Read the media of a request, in a worker. Raises UserError."""
    found = []
    several = read_several(item.request, config)
    for path, kinds in zip(item.request.paths, item.kinds, strict=True):
        raw, medium, info = next(several)
        if info.kind not in kinds and item.request.picture:
            raise UserError(f"{path}: holds {_ARTICLES[info.kind]}, not {_ARTICLES[kinds[0]]}")
        if not item.shows:
            found.append((medium, info))
            continue
        frames = () if raw.frames is None else raw.frames
        numbers = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), PICTURES)).astype(int))
        pictures = tuple(_jpeg(frames[number]) for number in numbers)
        size = tuple(frames.shape[2:0:-1]) if len(frames) else None
        mel = None if raw.mel is None else _png(raw.mel)
        found.append(Preview(info, pictures, tuple(numbers.tolist()), size, mel))
    return found


_ARTICLES = {"image": "a picture", "video": "a video", "audio": "a sound"}


def _jpeg(frame: np.ndarray) -> bytes:
    image = Image.fromarray(np.ascontiguousarray(frame))
    image.thumbnail((SIDE, SIDE))
    return encode(image, "jpeg", quality=80)


def _png(mel: np.ndarray) -> bytes:
    drawn = draw_mel(mel)
    size = min(drawn.width, MEL_COLUMNS), drawn.height
    return encode(drawn.resize(size, Image.Resampling.BOX), "png")


class Reader:
    """Reads prompts of requests. settings: of the clips, resolved."""

    def __init__(
        self, tokenizer: ChatTokenizer, config: OmniConfig, settings: ClipSettings,
        reading: ReadingConfig,
    ):  # fmt: skip
        self._tokenizer, self._config, self.settings = tokenizer, config, settings
        self._pool = Pool(functools.partial(read, config=config), reading, lambda item: _NAME)

    def close(self):
        """End the workers."""
        self._pool.close()

    async def prompt(
        self, chat: Chat, media: Sequence[parts.Medium], files: Sequence[Path], new_tokens: int
    ) -> Prompt:
        """Return the prompt of a request, which leaves room for so many new tokens.

        files: of its media. Raises Refusal for media that cannot be read, and for a prompt that is
        too long. When it is cancelled, so is the reading.
        """
        settings = self._settings(chat, new_tokens)
        outcome = await self._read(chat, settings, media, files)
        read = outcome.value
        inputs, infos = [one for one, _ in read], [info for _, info in read]
        notes = tuple(
            note if len(infos) == 1 else f"{medium.name}: {note}"
            for medium, info in zip(media, infos, strict=True)
            for note in info.notes
        )
        messages = messages_of(chat, settings, [one.piece for one in inputs])
        return await asyncio.to_thread(self._build, messages, inputs, outcome.seconds, notes)

    def _build(self, messages, inputs, seconds: float, notes: tuple[str, ...]) -> Prompt:
        try:
            example = build_example(messages, inputs, self._tokenizer, self._config)
            bucket = bucket_of(example, _BUCKETS, self._config, "the prompt")
        except UserError as error:
            raise of_user(error, "messages") from None
        return Prompt(example, None, bucket, seconds, notes)

    async def previews(
        self, chat: Chat, media: Sequence[parts.Medium], files: Sequence[Path], new_tokens: int
    ) -> list[Preview]:
        """Return what the model gets of the media of a request. Errors: as of `prompt`."""
        settings = self._settings(chat, new_tokens)
        return (await self._read(chat, settings, media, files, shows=True)).value

    def _settings(self, chat: Chat, new_tokens: int) -> ClipSettings:
        """Return the clip settings of a request."""
        own = {} if chat.clip is None else chat.clip.model_dump(exclude={"picture"})
        own = {name: value for name, value in own.items() if value is not None}
        replaced = self.settings
        if {"fps", "frames"} & own.keys():
            replaced = dataclasses.replace(replaced, fps=None, frames=None)
        try:
            for low, high in (("min_frames", "max_frames"), ("min_pixels", "max_pixels")):
                if high in own:
                    least = min(getattr(replaced, low), own[high])
                    replaced = dataclasses.replace(replaced, **{low: least, high: None})
            settings = dataclasses.replace(replaced, **own)
            return leave_room(settings, new_tokens, self._config)
        except UserError as error:
            field = str(error).partition(" ")[0]  # most begin with the name
            raise of_user(error, f"clip.{field}" if field in own else "clip") from None

    async def _read(
        self, chat: Chat, settings: ClipSettings, media: Sequence[parts.Medium],
        files: Sequence[Path], shows: bool = False,
    ) -> Outcome:  # fmt: skip
        if not media:
            return Outcome(None, [], 0.0)
        stand_ins = [Medium(parts.KINDS[medium.type][0]) for medium in media]
        messages = messages_of(chat, settings, stand_ins)
        (text,) = await asyncio.to_thread(text_counts, [(messages, stand_ins)], self._tokenizer)
        picture = chat.clip is None or chat.clip.picture
        request = MediaRequest([str(file) for file in files], settings, text, picture)
        item = Item(request, tuple(parts.KINDS[medium.type] for medium in media), shows)
        future = self._pool.submit(item)
        try:
            outcome = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            # The pool waits for the worker's end, which may take a moment.
            asyncio.get_running_loop().run_in_executor(None, self._pool.cancel, future)
            raise
        if isinstance(outcome.value, UserError):
            raise parts.refusal_of(outcome.value, list(media), list(files))
        return outcome


def messages_of(chat: Chat, settings: ClipSettings, media: Sequence[Medium]) -> list[dict]:
    """Return the messages of a prompt.

    The system prompt of the settings stands before messages without one, and their question
    after media about which no user asks anything. media: sizes, in order.
    """
    kinds, out = iter(media), []
    if chat.messages[0].role not in ("system", "developer"):
        out.append({"role": "system", "content": settings.system})
    for message in chat.messages:
        role = "system" if message.role == "developer" else message.role
        content = message.content
        if not isinstance(content, str):
            content = [
                {"type": "text", "text": part.text}
                if part.type == "text"
                else {"type": next(kinds).kind}
                for part in content
            ]
        out.append({"role": role, "content": content})
    users = [message for message in out if message["role"] == "user"]
    if media and not any(_text(message["content"]).strip() for message in users):
        last = users[-1]
        content = last["content"] if isinstance(last["content"], list) else []
        last["content"] = [*content, {"type": "text", "text": settings.question}]
    return out


def _text(content: str | list[dict]) -> str:
    """The text of a message without its media."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


_NAME = "the media"  # in messages about a process that died with them


def record(media: Sequence[parts.Medium], previews: Sequence[Preview]) -> list[dict]:
    """Return what `Reader.previews` returned as JSON objects."""
    return [
        {
            "field": medium.name,
            "kind": one.info.kind,
            "frames": one.info.frames,
            "sample_fps": one.info.sample_fps,
            "instants": list(one.info.instants),
            "size": one.size,
            "grid": one.info.grid,
            "audio_seconds": one.info.audio_seconds,
            "notes": list(one.info.notes),
            "pictures": [base64.b64encode(jpeg).decode() for jpeg in one.pictures],
            "picture_numbers": list(one.numbers),
            "mel": None if one.mel is None else base64.b64encode(one.mel).decode(),
        }
        for medium, one in zip(media, previews, strict=True)
    ]
