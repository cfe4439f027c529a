"""Clips -> Examples, read ahead in worker processes: the reading of every job that asks a model."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ugc_jax.data.batching import BucketKey, Buckets, bucket_of
from ugc_jax.data.example import ClipInfo, Example, complete_example, read_media, text_tokens
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.data.workers import Pool, ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import OmniConfig


class Prompt(NamedTuple):
    """The prompt of a clip. seconds: of reading it."""

    example: Example
    info: ClipInfo
    bucket: BucketKey
    seconds: float


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
    """Yield each clip with its prompt, as of `load_example`, or why it has none; in order.

    ahead: most clips that are read ahead, beside those in the workers. waits: asked before each
    clip; where it is false and the clip is not read yet, None is yielded in between. Raises
    EnvironmentFailure, which is no clip's. The workers end with this generator.
    """
    settings = resolve(settings)
    read = functools.partial(
        read_media,
        settings=settings,
        text_tokens=text_tokens(settings, tokenizer),
        config=config,
    )
    with Pool(read, reading) as pool:
        for outcome in pool.read(videos, ahead + pool.workers, waits):
            if outcome is None:
                yield None
                continue
            video, value, seconds = outcome
            if not isinstance(value, UserError):
                example, info = complete_example(*value, settings, tokenizer, config)
                try:
                    bucket = bucket_of(example, buckets, config, f"{video}: prompt")
                    value = Prompt(example, info, bucket, seconds)
                except UserError as error:  # larger than all buckets
                    value = error
            yield video, value
