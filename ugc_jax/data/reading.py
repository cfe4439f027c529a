"""Clips and records -> Examples, read ahead in worker processes: what every job that asks reads.

A clip is read once for all questions about it. The sizes of prompts are also known without decoding
a picture (`clip_buckets`, `record_buckets`), so that programs can be compiled beforehand.
"""

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ugc_jax.data.batching import (
    BucketKey,
    Buckets,
    bucket_of,
    bucket_of_size,
    size_of_media,
)
from ugc_jax.data.example import (
    ClipInfo,
    Example,
    about_kind,
    build_example,
    clip_messages,
    complete_example,
    measure_medium,
    read_media_once,
    text_tokens,
)
from ugc_jax.data.prompt import ChatTokenizer, Medium, text_counts
from ugc_jax.data.records import RecordSource
from ugc_jax.data.workers import Outcome, Pool, ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.media.inputs import Input
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import OmniConfig

Question = str | Sequence[dict]  # about a clip: a text, or messages with one medium


class Prompt(NamedTuple):
    """A prompt. info: of a clip, None for a record. seconds: of reading its media.

    notes: what the model sees or hears differently from the file.
    """

    example: Example
    info: ClipInfo | None
    bucket: BucketKey
    seconds: float
    notes: tuple[str, ...]


def read_prompts(
    videos: Iterable[str],
    settings: ClipSettings,
    tokenizer: ChatTokenizer,
    config: OmniConfig,
    buckets: Buckets,
    reading: ReadingConfig,
    ahead: int = 0,
    waits: Callable[[], bool] = lambda: True,
) -> Iterator[tuple[str, Prompt | UserError] | None]:
    """Yield each clip with the prompt of `settings.question`, or why it has none; in order.

    Arguments and errors: as of `read_questions`.
    """
    clips = [(Input(video, video), [resolve(settings).question]) for video in videos]
    rest = settings, tokenizer, config, buckets, reading, ahead, waits
    with contextlib.closing(read_questions(clips, *rest)) as read:
        for one in read:
            yield one and (one[0], one[1][0])


def read_questions(
    clips: Sequence[tuple[Input, Sequence[Question]]],
    settings: ClipSettings,
    tokenizer: ChatTokenizer,
    config: OmniConfig,
    buckets: Buckets,
    reading: ReadingConfig,
    ahead: int = 0,
    waits: Callable[[], bool] = lambda: True,
) -> Iterator[tuple[str, list[Prompt | UserError]] | None]:
    """Yield each clip's name with the prompts of its questions, or why there is none; in order.

    A prompt is that of `load_example`; the prompts of a clip share the arrays of their media. Its
    sound is decoded once, and its pictures, unless the questions' lengths leave room for others.

    clips: each with its questions. ahead: most clips read ahead, beside those in the workers.
    waits: asked before each clip; where it is false and the clip is not read yet, None is yielded
    in between. Raises EnvironmentFailure, which is no clip's. The workers end with this generator.
    """
    asks = _Asking(resolve(settings), tokenizer)
    in_order = iter(clips)
    read = functools.partial(read_media_once, settings=asks.settings, config=config)
    with Pool(read, reading, _name) as pool:
        for outcome in pool.read(asks.items(clips), ahead + pool.workers, waits):
            if outcome is None:
                yield None
                continue
            (given, asked), prompts = next(in_order), []
            for number, question in enumerate(asked):
                own, messages = asks.of(question)
                try:
                    media, info = _value(outcome, number)
                    example, info = complete_example(media, info, own, tokenizer, config, messages)
                    bucket = bucket_of(example, buckets, config, f"{given.name}: prompt")
                    prompts.append(Prompt(example, info, bucket, outcome.seconds, info.notes))
                except UserError as error:  # also: larger than all buckets
                    prompts.append(error)
            yield given.name, prompts


class _Asking:
    """What is asked about clips, and the tokens that it takes."""

    def __init__(self, settings: ClipSettings, tokenizer: ChatTokenizer):
        self.settings, self._tokenizer = settings, tokenizer
        self._texts: dict[str, int] = {}  # question -> tokens

    def of(self, question: Question) -> tuple[ClipSettings, Sequence[dict] | None]:
        """Return the settings with a question, and the messages that replace it, if it is some."""
        if isinstance(question, str):
            return dataclasses.replace(self.settings, question=question), None
        return self.settings, question

    def items(
        self, clips: Iterable[tuple[Input, Sequence[Question]]]
    ) -> Iterator[tuple[Input, list[int]]]:
        """Yield each clip with the tokens of text of its questions."""
        for given, asked in clips:
            yield given, [self._tokens(question) for question in asked]

    def _tokens(self, question: Question) -> int:
        if not isinstance(question, str):
            about = about_kind(question, "video"), [Medium("video")]
            return text_counts([about], self._tokenizer)[0]
        if question not in self._texts:
            self._texts[question] = text_tokens(self.of(question)[0], self._tokenizer)
        return self._texts[question]


def _name(item: tuple[Input, object]) -> str:
    return item[0].name


def read_records(
    source: RecordSource,
    prompts: Mapping[int, Sequence[dict]],
    tokenizer: ChatTokenizer,
    config: OmniConfig,
    buckets: Buckets,
    reading: ReadingConfig,
    ahead: int = 0,
    waits: Callable[[], bool] = lambda: True,
) -> Iterator[tuple[str, list[Prompt | UserError]] | None]:
    """As `read_questions`, of records: yields each id with its one prompt.

    prompts: the number of a record -> its messages, without an answer.
    """
    read = functools.partial(operator.getitem, source)
    name = lambda number: source.entries[number].id  # noqa: E731
    with Pool(read, reading, name) as pool:
        for outcome in pool.read(prompts, ahead + pool.workers, waits):
            if outcome is None:
                yield None
                continue
            number, record = outcome.item, name(outcome.item)
            try:
                _, media = _value(outcome)
                example = build_example(prompts[number], media, tokenizer, config)
                bucket = bucket_of(example, buckets, config, f"{record}: prompt")
                prompt = Prompt(example, None, bucket, outcome.seconds, source.notes(number))
            except UserError as error:
                prompt = error
            yield record, [prompt]


# ---- sizes ---------------------------------------------------------------------------------------


def clip_buckets(
    clips: Sequence[tuple[Input, Sequence[Question]]],
    settings: ClipSettings,
    tokenizer: ChatTokenizer,
    config: OmniConfig,
    buckets: Buckets,
    reading: ReadingConfig,
) -> set[BucketKey]:
    """Return the buckets of the clips' prompts as of `read_questions`; no picture is decoded.

    Clips that cannot be read are left out.
    """
    asks = _Asking(resolve(settings), tokenizer)
    measure, prompts = functools.partial(measure_medium, settings=asks.settings, config=config), []
    with Pool(measure, reading, _name) as pool:
        outcomes = pool.read(asks.items(clips), 2 * pool.workers)
        for (_, asked), outcome in zip(clips, outcomes, strict=True):
            for number, question in enumerate(asked):
                with contextlib.suppress(UserError):
                    medium = _value(outcome, number)
                    own, messages = asks.of(question)
                    messages = messages and about_kind(messages, medium.kind)
                    prompts.append((messages or clip_messages(own, medium.kind), [medium]))
    return _buckets(prompts, tokenizer, config, buckets)


def record_buckets(
    source: RecordSource,
    prompts: Mapping[int, Sequence[dict]],
    tokenizer: ChatTokenizer,
    config: OmniConfig,
    buckets: Buckets,
) -> set[BucketKey]:
    """Return the buckets of the prompts as of `read_records`, without opening a record."""
    sized = [(messages, source.entries[number].media) for number, messages in prompts.items()]
    return _buckets(sized, tokenizer, config, buckets)


def _buckets(
    prompts: Sequence[tuple[Sequence[dict], Sequence[Medium]]],
    tokenizer: ChatTokenizer,
    config: OmniConfig,
    buckets: Buckets,
) -> set[BucketKey]:
    found = set()
    counts = text_counts(prompts, tokenizer)
    for (_, media), text in zip(prompts, counts, strict=True):
        size = size_of_media(media, config)
        with contextlib.suppress(UserError):  # larger than all buckets
            found.add(bucket_of_size(size._replace(tokens=size.tokens + text), buckets))
    return found


def _value(outcome: Outcome, number: int | None = None):
    """Return the value of an item, or that of one prompt of it. Raises its UserError."""
    value = outcome.value
    if number is not None and not isinstance(value, UserError):
        value = value[number]
    if isinstance(value, UserError):
        raise value
    return value
