"""Clips -> captions: reading ahead in processes, grouping by bucket, generating, decoding.

clips -> read_prompts -> groups of one bucket -> collate -> Engine.run -> text
"""

import contextlib
import dataclasses
import logging
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax

from ugc_jax import sharding
from ugc_jax.compilation import keep_compiled
from ugc_jax.data.batching import BucketKey, Buckets, collate
from ugc_jax.data.example import Example
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.data.reading import Prompt, read_prompts
from ugc_jax.errors import UserError
from ugc_jax.generate.defaults import PUBLISHED, Defaults
from ugc_jax.generate.engine import (
    Engine,
    Finished,
    Group,
    Request,
    finish_reason,
    prefill_tokens,
)
from ugc_jax.generate.settings import EngineConfig, SamplingConfig, leave_room
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.hf.config import load_config
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.tokenizer import load_chat_tokenizer
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.compute import ComputeConfig
from ugc_jax.models.params import param_shardings
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.settings import closest, from_options

logger = logging.getLogger(__name__)

BUCKETS, NO_DEFAULTS = Buckets(), Defaults("the model")
# Tokens of a chunk that an encoder processes at a time on one accelerator: enough to use it fully,
# few enough for activations that are small beside the weights. (A CPU gains nothing by chunks.)
ACCELERATOR_CHUNK = 16384


@dataclasses.dataclass(frozen=True)
class Caption:
    """The result for one clip: a caption with its facts, or only an `error`."""

    video: str  # path as given
    caption: str | None = None
    token_ids: tuple[int, ...] = ()  # as generated, the end-of-text token included
    prompt_tokens: int = 0
    new_tokens: int = 0  # = len(token_ids)
    finish_reason: str | None = None  # "stop": end-of-text token; "length": max_new_tokens
    seconds: float = 0.0  # to read the clip, plus from its prefill to its end, beside others
    notes: tuple[str, ...] = ()  # what the model saw or heard differently from the file
    error: str | None = None  # one line that says what is wrong with the clip

    def record(self, token_ids: bool = False) -> dict:
        """Return the caption as a JSON object, or {"video", "error"}."""
        if self.error is not None:
            return {"video": self.video, "error": self.error}
        fields = dataclasses.asdict(self)
        del fields["error"]
        if not token_ids:
            del fields["token_ids"]
        if not self.notes:
            del fields["notes"]
        return fields


class Captioner:
    """A model, its tokenizer and its compiled programs, for any number of clips."""

    def __init__(
        self,
        params: dict,
        engine: Engine,
        tokenizer: ChatTokenizer,
        defaults: Defaults = NO_DEFAULTS,
    ):
        """defaults: the clip settings and the sampling where a call names none."""
        self.params = params
        self.defaults = defaults
        self.engine = engine
        self.config = engine.config
        self.tokenizer = tokenizer
        self._reported: set = set()  # settings whose source was logged

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path = PUBLISHED,
        *,
        mesh: jax.sharding.Mesh | None = None,
        revision: str | None = None,
        **compute,
    ) -> "Captioner":
        """Load a checkpoint: a directory or a hub id such as "Qwen/Qwen2.5-Omni-3B".

        mesh: of `sharding.make_mesh`, to spread the model over several devices; None is one device.
        revision: branch, tag or commit on the hub.
        compute: fields of ComputeConfig, such as dtype ("float32", "bfloat16", or "auto", which is
          bfloat16 on TPU and GPU and float32 on CPU) and attention.
        Raises UserError for a checkpoint that is absent, incomplete or contradicts itself, for a
        dtype or attention that the devices cannot compute with, and for a mesh that does not divide
        the decoder's heads.
        """
        settings = _from_options(compute, ComputeConfig)[0]
        if not isinstance(mesh, jax.sharding.Mesh | None):
            raise TypeError(f"mesh: expected a mesh of sharding.make_mesh or None, got {mesh!r}")
        directory = resolve_checkpoint(checkpoint, revision)
        config = load_config(directory)
        device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
        keep_compiled(settings.compilation_cache, device)
        on_cpu = device.platform == "cpu"
        chunk = 0 if on_cpu or mesh is not None else ACCELERATOR_CHUNK
        compute = settings.resolve(device, config.text.head_dim, chunk)
        tokenizer = load_chat_tokenizer(directory, config.tokens)
        # Unrolled encoders are faster on a CPU; stacked ones compile faster elsewhere.
        stacked = not on_cpu
        shardings = None
        if mesh is not None:
            sharding.check_heads(mesh, config.text.num_attention_heads)
            shardings = param_shardings(thinker.declare(config), mesh, stacked)
        params = load_params(directory, config, compute.dtype, stacked=stacked, shardings=shardings)
        params = thinker.for_decoding(params, device.platform)
        defaults = Defaults.of(checkpoint, directory)
        return cls(params, Engine(config, compute, mesh), tokenizer, defaults)

    def caption(self, videos: str | Path | Iterable[str | Path], **options) -> list[Caption]:
        """Caption clips; the results have their order. One that cannot be read has an `error`.

        Arguments and errors: as of `stream`.
        """
        videos = _paths(videos)
        waiting: dict[str, list[int]] = {}
        for index, video in enumerate(videos):
            waiting.setdefault(video, []).append(index)
        captions: list[Caption | None] = [None] * len(videos)
        for result in self.stream(list(waiting), **options):
            for index in waiting[result.video]:
                captions[index] = result
        return captions

    def stream(
        self,
        videos: str | Path | Iterable[str | Path],
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        **options,
    ) -> Iterator[Caption]:
        """Caption clips; yields each result when it is finished, not in the order of `videos`.

        batch_size, workers: fields of EngineConfig.
        options: any field of ClipSettings (question="...", preset="upstream", fps=1, ...) and of
          SamplingConfig (max_new_tokens=64, temperature=0.2, ...), without which the settings are
          those that the model was trained with, or of a published captioner, or of the preset; and
          the other fields of EngineConfig, the limits of a clip (clip_timeout, clip_memory).

        Worker processes read the clips. They do not run the calling script, and end when the
        iterator is exhausted, closed or garbage-collected.

        Raises, at the call, TypeError for an unknown option and for a value of a wrong type, and
        UserError for a value out of range; an error of a clip is the `error` of its result.
        """
        videos = _paths(videos)
        options = dict(options, batch_size=batch_size, workers=workers)
        clip, sampling, engine = _from_options(options, ClipSettings, SamplingConfig, EngineConfig)
        resolved = self.defaults.apply(clip, sampling)
        if clip not in self._reported:
            self._reported.add(clip)
            self.defaults.report(clip, sampling)
        return self.run(videos, *resolved, engine)

    def run(
        self,
        videos: Sequence[str],
        clip: ClipSettings,
        sampling: SamplingConfig,
        engine: EngineConfig,
    ) -> Iterator[Caption]:
        """As `stream`, with resolved settings (`Defaults.apply`).

        Clips of one bucket are prefilled together, and then take the places of clips that are
        finished (`Engine.run`). A program is compiled once a bucket, not once a clip, and a caption
        does not depend on the other clips.

        Worker processes read ahead, within the limits of `engine` for each clip; they end with the
        iterator. At most about 5 batches of clips wait, whatever their length in bytes; lower
        batch_size if memory is short.
        """
        clip = leave_room(clip, sampling.max_new_tokens, self.config)
        mesh, most = self.engine.mesh, len(videos)
        places = None if engine.batch_size is None else min(engine.batch_size, most)
        clips = _Clips(self, videos, clip, sampling, engine)

        def captions() -> Iterator[Caption]:
            with contextlib.closing(clips):
                for one in self.engine.run(
                    self.params,
                    clips,
                    None if places is None else sharding.round_up_rows(mesh, places),
                    sampling.max_new_tokens,
                    most=sharding.round_up_rows(mesh, most),
                ):
                    while clips.failed:
                        yield clips.failed.popleft()
                    yield self._caption(one)
                yield from clips.failed

        return captions()

    def _caption(self, one: Finished) -> Caption:
        clip, start, prompt_tokens = one.tag
        if one.error is not None:
            remedy = "lower max_pixels, fps or max_new_tokens"
            return Caption(clip.video, error=f"{clip.video}: {one.error}; {remedy}")
        ids = tuple(one.tokens.tolist())
        return dataclasses.replace(
            clip,
            caption=self.tokenizer.decode(ids).strip(),
            token_ids=ids,
            prompt_tokens=prompt_tokens,
            new_tokens=len(ids),
            finish_reason=finish_reason(one.stopped),
            seconds=round(clip.seconds + time.perf_counter() - start, 3),
        )


class _Clips:
    """A `engine.Source` of clips that worker processes read; `close` ends these."""

    def __init__(
        self,
        captioner: Captioner,
        videos: Sequence[str],
        clip: ClipSettings,
        sampling: SamplingConfig,
        engine: EngineConfig,
    ):
        self.failed: deque[Caption] = deque()  # clips that cannot be read
        self._config, self._sampling = captioner.config, sampling
        self._mesh, self._most = captioner.engine.mesh, len(videos)
        self._waiting: dict[BucketKey, list[tuple[Caption, Example]]] = {}
        self._waits, self._budget = False, prefill_tokens(self._mesh)
        # As many as the largest batch takes, so that clips of one bucket come together.
        self._pending = 4 * (engine.batch_size or 8)
        self._prompts = read_prompts(
            videos, clip, captioner.tokenizer, captioner.config, BUCKETS, engine,
            ahead=engine.batch_size or 8, waits=lambda: self._waits,
        )  # fmt: skip

    def close(self):
        """End the worker processes."""
        self._prompts.close()

    def take(self, wait: bool, free: int) -> Group | None:
        """Return a group of clips of one bucket; a small one where nothing else keeps busy."""
        while True:
            full = (key for key, clips in self._waiting.items() if len(clips) >= self._rows(key))
            if (key := next(full, None)) is not None:
                return self._group(key)
            waiting = sum(map(len, self._waiting.values()))
            if waiting >= self._pending:
                return self._longest()
            self._waits = wait and not waiting
            try:
                read = next(self._prompts)
            except StopIteration:
                return self._longest()
            if read is None:  # the next clip is not read yet
                return self._longest() if wait or free > waiting else None
            self._add(*read)

    def _add(self, video: str, prompt: Prompt | UserError):
        if isinstance(prompt, UserError):
            self.failed.append(Caption(video, error=str(prompt)))
            return
        notes = prompt.info.notes
        for note in notes:
            logger.info("%s: %s", video, note)
        clip = Caption(video, seconds=prompt.seconds, notes=notes)
        self._waiting.setdefault(prompt.bucket, []).append((clip, prompt.example))

    def _rows(self, key: BucketKey) -> int:
        """Clips of a bucket that are prefilled together."""
        rows = max(1, min(self._most, self._budget // key.tokens))
        return sharding.round_up_rows(self._mesh, rows)

    def _longest(self) -> Group | None:
        """The clips of the bucket that most wait in."""
        if not self._waiting:
            return None
        return self._group(max(self._waiting, key=lambda key: len(self._waiting[key])))

    def _group(self, key: BucketKey) -> Group:
        rows, clips = self._rows(key), self._waiting.pop(key)
        if clips[rows:]:
            self._waiting[key] = clips[rows:]
        clips, start = clips[:rows], time.perf_counter()
        requests = [
            Request((clip, start, len(example.tokens)), self._sampling, [_key_id(clip.video)])
            for clip, example in clips
        ]
        batch = collate([example for _, example in clips], key, rows, self._config)
        return Group(batch, requests + [None] * (rows - len(clips)))


def _paths(videos) -> list[str]:
    """The paths of clips as text. TypeError for anything else than a path or paths."""
    alone = isinstance(videos, str | Path)
    if not alone and (not isinstance(videos, Iterable) or isinstance(videos, bytes | Mapping)):
        raise TypeError(f"videos: expected paths of clips, got {videos!r:.60}")
    paths = [videos] if alone else list(videos)
    for path in paths:
        if not isinstance(path, str | Path):
            raise TypeError(f"videos: expected paths of clips, got {path!r:.60} among them")
    return list(map(str, paths))


def _from_options(options: dict, *classes: type) -> list:
    """An instance of each dataclass from the options that are its fields.

    Raises TypeError for an option of none of them, and as `settings.from_options`.
    """
    names = [[field.name for field in dataclasses.fields(cls)] for cls in classes]
    known = [name for own in names for name in own]
    for name in options:
        if name not in known:
            close = closest(name, known)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise TypeError(f"no option {name!r}; options are {', '.join(known)}{hint}")
    return [
        from_options(cls, {name: value for name, value in options.items() if name in own})
        for cls, own in zip(classes, names, strict=True)
    ]


def _key_id(video: str) -> int:
    """Return the id of a clip's random numbers, which depends on its file name alone."""
    return zlib.crc32(Path(video).name.encode(errors="surrogateescape"))
