"""Clips -> captions: reading ahead in processes, grouping by bucket, generating, decoding.

clips or records -> data/reading.py -> groups of one bucket -> collate -> Engine.run -> text
"""

import contextlib
import dataclasses
import functools
import logging
import math
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import jax

from ugc_jax import sharding
from ugc_jax.compilation import keep_compiled
from ugc_jax.data.batching import (
    Batch,
    BucketKey,
    Buckets,
    SharedKey,
    begin_alike,
    collate,
    collate_rows,
    collate_shared,
    shared_bucket,
)
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.data.reading import (
    Prompt,
    Question,
    clip_buckets,
    read_questions,
    read_records,
    record_buckets,
)
from ugc_jax.data.records import RecordSource
from ugc_jax.errors import UserError
from ugc_jax.generate.defaults import PUBLISHED, Defaults
from ugc_jax.generate.engine import (
    Engine,
    Finished,
    Group,
    Listed,
    Request,
    Streamed,
    finish_reason,
    on_cpu,
    plan_places,
    prefill_tokens,
)
from ugc_jax.generate.evidence import Explanation
from ugc_jax.generate.explaining import Kept, explained, explanations, kept_row
from ugc_jax.generate.inputs import Inputs, Video, questions_of
from ugc_jax.generate.pieces import Scene, caption_in_pieces
from ugc_jax.generate.settings import (
    EngineConfig,
    EvidenceConfig,
    SamplingConfig,
    check_pieces,
    leave_room,
    piece_seconds,
)
from ugc_jax.generate.texts import TextStream
from ugc_jax.generate.weights import abstract_weights
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.hf.config import load_config
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.tokenizer import load_chat_tokenizer
from ugc_jax.media.inputs import Input
from ugc_jax.media.presets import ClipSettings, Preset
from ugc_jax.models.compute import ON_GPUS, ComputeConfig
from ugc_jax.models.params import param_shardings
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.settings import closest, from_options

logger = logging.getLogger(__name__)

BUCKETS, NO_DEFAULTS, NO_EVIDENCE = Buckets(), Defaults("the model"), EvidenceConfig()
URL_BYTES = 1 << 30  # most of a file behind a URL
Messages = Sequence[Mapping[str, Any]]  # of a chat, with one place of a medium at most
# Tokens of a chunk that a tower processes at a time on one device; 0: all. An accelerator: enough
# to use it, few enough for activations that are small beside the weights. A CPU gets few prompts
# at a time as it is (`engine.prefill_tokens`).
CHUNK = {"cpu": 0, "gpu": 16384, "tpu": 16384}


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
    evidence: Explanation | None = None  # what its words rest on, if it was asked for
    scenes: tuple[Scene, ...] = ()  # with times; of a clip in pieces, with an error of those done

    def with_evidence(self, evidence: Explanation) -> "Caption":
        """Return the caption with an explanation of it, or with a note on why it has none."""
        if evidence.error is None:
            return dataclasses.replace(self, evidence=evidence)
        return dataclasses.replace(self, notes=(*self.notes, f"no evidence: {evidence.error}"))

    def record(self, token_ids: bool = False) -> dict:
        """Return the caption as a JSON object, or {"video", "error"}; both with scenes, if any."""
        scenes = {"scenes": [scene.record() for scene in self.scenes]} if self.scenes else {}
        if self.error is not None:
            return {"video": self.video, "error": self.error} | scenes
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["error"], fields["scenes"]
        if (evidence := fields.pop("evidence")) is not None:
            fields["evidence"] = evidence.record()
        if not token_ids:
            del fields["token_ids"]
        if not self.notes:
            del fields["notes"]
        return fields | scenes


@dataclasses.dataclass(frozen=True)
class Piece:
    """The next part of a clip's caption; all parts together are the caption.

    result: with the last one.
    """

    video: str  # as in the result
    text: str
    result: Caption | None = None


class CaptionOptions(TypedDict, total=False):
    """The options of `Captioner.caption`, `stream` and `stream_text`."""

    # one for all, {clip: question} by the `video` of its result, or a list with one for each clip
    question: str | Mapping[str | Path, str] | Sequence[str] | None
    # chat messages instead of a question, likewise; the clip takes the place of a part {"type":
    # "video"} or of <video> in a text, or else stands before the first user's text
    messages: Mapping[str | Path, Messages] | Sequence[Messages | None] | None
    urls: bool  # True: fetch clips that are URLs (http, https)
    url_bytes: int  # most of a file that is fetched; 2^30 without it
    warm: bool  # True: first read the sizes of all clips, and compile the programs for them
    # of `caption` and `stream`: seconds of the pieces in which longer clips are captioned, 0 for
    # whole; None: as the preset has it
    pieces: float | None

    # fields of ClipSettings
    preset: Preset | None
    fps: float | None
    frames: int | None
    min_frames: int | None
    max_frames: int | None
    min_pixels: int | None
    max_pixels: int | None
    total_pixels: int | None
    image_min_pixels: int | None
    image_max_pixels: int | None
    start: float | None
    end: float | None
    audio: bool | None
    require_sound: bool | None
    max_audio_seconds: float | None
    untagged_bt709: bool | None
    bgr: bool | None
    system: str | None
    reference_fps: bool | None
    media_tokens: int | None
    max_tokens: int | None

    # fields of SamplingConfig
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    max_new_tokens: int | None
    seed: int

    # fields of EngineConfig
    batch_size: int | None
    workers: int | None
    clip_timeout: float
    clip_memory: float


_Ask = tuple[Input, Question]  # a clip, and what it is asked
_Key = tuple[int, int]  # the place of a clip among those of a call, the number of its question


class Captioner:
    """A model, its tokenizer and its compiled programs, for any number of clips."""

    def __init__(
        self,
        params: dict | Callable[[], dict],
        engine: Engine,
        tokenizer: ChatTokenizer,
        defaults: Defaults = NO_DEFAULTS,
    ):
        """params: or a function that loads them, which is called when they are first needed.

        defaults: the clip settings and the sampling where a call names none.
        """
        self._params = None if callable(params) else params
        self._read_weights = params if callable(params) else None
        self._loading: Future[dict] | None = None
        self.defaults = defaults
        self.engine = engine
        self.config = engine.config
        self.tokenizer = tokenizer
        self._reported: set = set()  # settings whose source was logged

    @property
    def params(self) -> dict:
        """The weights, in the form in which decoding reads them."""
        if self._params is None:
            if self._loading is None:
                self._params = self._read_weights()
            else:
                wait([self._loading])
                # After an error, the next call reads them again.
                loading, self._loading = self._loading, None
                self._params = loading.result()
        return self._params

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path = PUBLISHED,
        *,
        mesh: jax.sharding.Mesh | None = None,
        revision: str | None = None,
        load: bool = True,
        **compute,
    ) -> "Captioner":
        """Load a checkpoint: a directory or a hub id such as "Qwen/Qwen2.5-Omni-3B".

        mesh: of `sharding.make_mesh`, to spread the model over several devices; None is one device.
        revision: branch, tag or commit on the hub.
        load: False loads the weights while the first clips are read; what is wrong with them is
          raised then.
        compute: fields of ComputeConfig, such as dtype ("float32", "bfloat16", or "auto", which is
          bfloat16 on TPU and GPU and float32 on CPU), attention, and weights and cache ("int8":
          half of the memory).
        Raises UserError for a checkpoint that is absent, incomplete or contradicts itself, for a
        dtype or attention that the devices cannot compute with, and for a mesh that does not divide
        the decoder's heads.
        """
        settings = _from_options(compute, ComputeConfig)[0]
        if not isinstance(mesh, jax.sharding.Mesh | None):
            raise TypeError(f"mesh: expected a mesh of sharding.make_mesh or None, got {mesh!r}")
        directory = resolve_checkpoint(checkpoint, revision)
        config = load_config(directory)
        device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
        keep_compiled(settings.compilation_cache, device)
        on_cpu = device.platform == "cpu"
        chunk = CHUNK[device.platform] if mesh is None else 0
        compute = settings.resolve(device, config.text.head_dim, chunk)
        tokenizer = load_chat_tokenizer(directory, config.tokens)
        # Unrolled encoders are faster on a CPU; stacked ones compile faster elsewhere.
        stacked = not on_cpu
        shardings = None
        if mesh is not None:
            sharding.check_heads(mesh, config.text.num_attention_heads)
            shardings = param_shardings(thinker.declare(config), mesh, stacked)
        in_int8 = compute.weights == "int8"
        if compute.cache == "int8" and compute.attention in ON_GPUS:
            logger.info(
                "compute.cache=int8: decode steps attend by XLA, as the kernels for GPUs do not "
                "read int8"
            )

        def params() -> dict:
            how = compute.dtype, stacked, shardings, in_int8
            return thinker.for_decoding(load_params(directory, config, *how), device.platform)

        defaults = Defaults.of(checkpoint, directory)
        weights = params() if load else params
        return cls(weights, Engine(config, compute, mesh), tokenizer, defaults)

    def caption(
        self, videos: Video | Iterable[Video], **options: Unpack[CaptionOptions]
    ) -> list[Caption]:
        """Caption clips; the results have their order. One that cannot be read has an `error`.

        Examples:
            >>> from ugc_jax import Captioner
            >>> captioner = Captioner.from_pretrained("tiny")
            >>> files = captioner.caption("clips/*.mp4", max_new_tokens=4, fps=1)
            >>> [result.video for result in files]
            ['clips/a.mp4', 'clips/b.mp4']
            >>> asked = captioner.caption(
            ...     ["clip.mp4", open("clip.mp4", "rb").read()],
            ...     question=["What is seen?", "What is heard?"],
            ...     max_new_tokens=4,
            ... )
            >>> [result.video for result in asked]
            ['clip.mp4', 'videos[1]']

        Arguments and errors: as of `stream`.
        """
        check_pieces(pieces := options.pop("pieces", None))
        inputs, asked, *how = self._asked(videos, options)
        alike: dict[object, int] = {}  # what is the same is captioned once
        places = []
        for place, (clip, question) in enumerate(asked):
            content = clip.content if isinstance(clip.content, str) else place
            key = content, question if isinstance(question, str) else repr(question)
            places.append(alike.setdefault(key, len(alike)))
        firsts = [asked[places.index(number)] for number in range(len(alike))]
        found = dict(self._in_pieces(inputs, firsts, *how, pieces=pieces))
        return [found[number] for number in places]

    def stream(
        self, videos: Video | Iterable[Video], **options: Unpack[CaptionOptions]
    ) -> Iterator[Caption]:
        """Caption clips; yields each result when it is finished, not in the order of `videos`.

        Examples:
            >>> from ugc_jax import Captioner
            >>> captioner = Captioner.from_pretrained("tiny")
            >>> for result in captioner.stream("clips/", max_new_tokens=4, fps=1):
            ...     assert result.error is None

        videos: clips, or one of them: the path of a file, a folder or a pattern, as the command
          line takes them; the bytes of a file, or a file that is open for reading bytes, which are
          copied at the call; a `Clip` of arrays; a URL, if `urls` allows it.
        options: CaptionOptions. Without an option the settings are those that the model was trained
          with, or of a published captioner, or of the preset.

        The `video` of a result is the path or the URL, the name of a Clip or of an open file, or
        without a name "videos[N]", the place among the arguments.

        Worker processes read the clips. They do not run the calling script, and end when the
        iterator is exhausted, closed or garbage-collected.

        Raises, at the call, TypeError for an unknown option, for a value of a wrong type and for
        what is no clip; UserError for a value out of range, for a folder or a pattern without a
        clip, and for a URL that is not allowed. An error of a clip is the `error` of its result.
        """
        check_pieces(pieces := options.pop("pieces", None))
        captions = self._in_pieces(*self._asked(videos, options), pieces=pieces)
        return (caption for _, caption in captions)

    def stream_text(
        self, videos: Video | Iterable[Video], **options: Unpack[CaptionOptions]
    ) -> Iterator[Piece]:
        """Caption clips; yields the text of each in pieces, as its tokens come.

        Examples:
            >>> from ugc_jax import Captioner
            >>> captioner = Captioner.from_pretrained("tiny")
            >>> pieces = list(captioner.stream_text("clip.mp4", max_new_tokens=40, fps=1))
            >>> "".join(piece.text for piece in pieces) == pieces[-1].result.caption
            True

        Arguments and errors: as of `stream`. A clip's last piece has its result.
        """
        inputs, asked, *how = self._asked(videos, options)
        return self._pieces(self._captions(inputs, asked, *how, streams=True), asked)

    def explain(
        self,
        videos: Video | Iterable[Video],
        captions: str | Sequence[str] | None = None,
        *,
        by_time: bool = False,
        **options: Unpack[CaptionOptions],
    ) -> list[Explanation]:
        """Say what each word of captions rests on: sound, picture, both, or the text alone.

        Examples:
            >>> from ugc_jax import Captioner
            >>> captioner = Captioner.from_pretrained("tiny")
            >>> told = captioner.explain("clip.mp4", "A dog barks.", fps=1)[0]
            >>> [word.text for word in told.words]
            ['A', 'dog', 'barks']

        captions: a text for each clip, by anybody; a clip may be given several times, with another
          text each. None: the model captions the clips first. by_time: also which second of sound
          and picture each word rests on (`Word.curve`), for a prefill of each.
        videos, options and errors: as of `caption`. A clip that cannot be read has an `error`.

        Costs four prefills of a clip, whose sound and pictures are encoded once, and no decoding.
        Several texts of a clip share them. docs/evidence.md says how far to trust it.
        """
        if captions is None:
            return self._explained_own(videos, by_time, options)
        inputs, asked, *how = self._asked(videos, options)
        texts = [captions] if isinstance(captions, str) else list(captions)
        with contextlib.closing(inputs):
            if not all(isinstance(text, str) for text in texts):
                raise TypeError(f"captions: expected a text for each clip, got {captions!r:.60}")
            if len(texts) != len(asked):
                raise UserError(
                    f"captions: there are {len(texts)} for {len(asked)} clips; give one for each"
                )
            return self._explained(asked, texts, by_time, *how)

    def _explained_own(
        self, videos: Video | Iterable[Video], by_time: bool, options: Mapping[str, Any]
    ) -> list[Explanation]:
        """Explain the model's own captions."""
        inputs, asked, *how = self._asked(videos, options)
        kept: dict[int, Kept] = {}
        captions = self._captions(inputs, asked, *how, kept=kept)
        found = {
            place: told or Explanation(one.video, error=one.error)
            for place, one, told in explained(self, captions, kept, by_time)
        }
        return [found[place] for place in range(len(asked))]

    def _explained(
        self,
        asked: Sequence[_Ask],
        texts: Sequence[str],
        by_time: bool,
        clip: ClipSettings,
        sampling: SamplingConfig,
        engine: EngineConfig,
        warm: bool,
    ) -> list[Explanation]:
        """Explain a text of each of `asked`; those of one clip and question share its prompt."""
        alike: dict[object, list[int]] = {}
        for place, (given, question) in enumerate(asked):
            content = given.content if isinstance(given.content, str) else place
            key = content, question if isinstance(question, str) else repr(question)
            alike.setdefault(key, []).append(place)
        groups = list(alike.values())
        clips = [(asked[group[0]][0], [asked[group[0]][1]]) for group in groups]
        how = clip, self.tokenizer, self.config, BUCKETS, engine
        read = functools.partial(read_questions, clips, *how)
        by_clip = [[texts[place] for place in group] for group in groups]
        found: dict[int, Explanation] = {}
        for number, text, one in explanations(self, read, by_clip, by_time):
            place = groups[number][text]
            found[place] = one._replace(video=asked[place][0].name)
        return [found[place] for place in range(len(asked))]

    def _pieces(
        self, stream: Iterator[tuple[int, "Caption | Streamed"]], asked: Sequence[_Ask]
    ) -> Iterator[Piece]:
        bytes_of = functools.cache(self.tokenizer.bytes_of)
        texts: dict[int, tuple[TextStream, int]] = {}  # of unfinished clips, and their tokens
        for place, one in stream:
            text, done = texts.pop(place, None) or (TextStream(bytes_of), 0)
            if isinstance(one, Streamed):
                new = "".join(map(text.add, one.tokens.tolist()))
                texts[place] = text, done + len(one.tokens)
                if new:
                    yield Piece(asked[place][0].name, new)
            else:
                rest = "".join(map(text.add, one.token_ids[done:])) + text.end()
                yield Piece(one.video, rest, one)

    def _asked(
        self, videos: Video | Iterable[Video], options: Mapping[str, Any]
    ) -> tuple[Inputs, list[_Ask], ClipSettings, SamplingConfig, EngineConfig, bool]:
        """Return the arguments of `_captions` for those of a call. Raises as `stream`."""
        options = dict(options)
        warm, urls = (_flag(options, name) for name in ("warm", "urls"))
        url_bytes = options.pop("url_bytes", URL_BYTES)
        if not isinstance(url_bytes, int) or isinstance(url_bytes, bool):
            raise TypeError(f"url_bytes: expected INTEGER, got {url_bytes!r:.60}")
        messages, questions = options.pop("messages", None), None
        if not isinstance(options.get("question"), str | bytes | int | float | None):
            questions = options.pop("question")
        clip, sampling, engine = _from_options(options, ClipSettings, SamplingConfig, EngineConfig)
        if messages is not None and clip.question is not None:
            questions = clip.question
        resolved, sampling_of = self.defaults.apply(clip, sampling)
        resolved = leave_room(resolved, sampling_of.max_new_tokens, self.config)
        inputs = Inputs(videos, urls, url_bytes)
        texts = resolved.question, questions, messages, resolved.system
        try:
            asked = list(zip(inputs.clips, questions_of(inputs.clips, *texts), strict=True))
        except BaseException:
            inputs.close()
            raise
        if clip not in self._reported:
            self._reported.add(clip)
            self.defaults.report(clip, sampling)
        return inputs, asked, resolved, sampling_of, engine, warm

    def run(
        self,
        videos: Sequence[str],
        clip: ClipSettings,
        sampling: SamplingConfig,
        engine: EngineConfig,
        warm: bool = False,
        evidence: EvidenceConfig = NO_EVIDENCE,
        pieces: float | None = 0,
    ) -> Iterator[Caption]:
        """As `stream` of files, with resolved settings (`Defaults.apply`).

        pieces: seconds, as the option; infinite: whole clips with scenes.
        evidence: whether and how captions are explained, which are then of whole clips.

        Clips of one bucket are prefilled together, and then take the places of clips that are
        finished (`Engine.run`). A program is compiled once a bucket, not once a clip, and a caption
        does not depend on the other clips.

        Worker processes read ahead, within the limits of `engine` for each clip; they end with the
        iterator. At most about 5 batches of clips wait, whatever their length in bytes; lower
        batch_size if memory is short.
        """
        clip = leave_room(clip, sampling.max_new_tokens, self.config)
        asked = [(Input(video, video), clip.question) for video in videos]
        if evidence.words:
            kept: dict[int, Kept] = {}
            answers = self._captions(None, asked, clip, sampling, engine, warm, kept=kept)
            return self._with_evidence(answers, kept, evidence.by_time)
        answers = self._in_pieces(None, asked, clip, sampling, engine, warm, pieces)
        return (caption for _, caption in answers)

    def _in_pieces(
        self,
        inputs: Inputs | None,
        asked: Sequence[_Ask],
        clip: ClipSettings,
        sampling: SamplingConfig,
        engine: EngineConfig,
        warm: bool,
        pieces: float | None,
    ) -> Iterator[tuple[int, Caption]]:
        """As `_captions`; clips that are longer than `pieces` seconds are captioned in pieces."""
        rest = clip, sampling, engine, warm
        seconds = pieces if pieces == math.inf else piece_seconds(pieces, clip)
        if seconds is None:
            return self._captions(inputs, asked, *rest)
        run = lambda parts: self._captions(None, parts, *rest)  # noqa: E731

        def captions() -> Iterator[tuple[int, Caption]]:
            with contextlib.closing(inputs or contextlib.ExitStack()):
                yield from caption_in_pieces(asked, seconds, clip, engine, run, Caption)

        return captions()

    def _captions(
        self,
        inputs: Inputs | None,
        asked: Sequence[_Ask],
        clip: ClipSettings,
        sampling: SamplingConfig,
        engine: EngineConfig,
        warm: bool,
        streams: bool = False,
        kept: dict[int, Kept] | None = None,
    ) -> Iterator[tuple[int, "Caption | Streamed"]]:
        """Yield (place in `asked`, its caption); with `streams`, also what comes of it before.

        inputs: closed at the end. clip: with room for the caption. kept: to be filled with the
        prompts, by place.
        """
        how = self.tokenizer, self.config, BUCKETS, engine
        clips = [(given, [question]) for given, question in asked]
        read = functools.partial(read_questions, clips, clip, *how)
        sizes = None
        if warm:
            first = [(given.to_be_read_again(), asks) for given, asks in clips]
            sizes = functools.partial(clip_buckets, first, clip, *how)
        answers = self._run(
            read, len(asked), sampling, engine, sizes=sizes, streams=streams, closes=inputs,
            kept=kept,
        )  # fmt: skip
        return ((place, one) for (place, _), one in answers)

    def answer(
        self,
        questions: Mapping[str, Sequence[str]],
        clip: ClipSettings,
        sampling: SamplingConfig,
        engine: EngineConfig,
    ) -> Iterator[tuple[str, Caption]]:
        """Answer several questions about each clip; yields each (question, answer) when finished.

        questions: path -> its questions, all different. Settings: as of `run`, but for the
        question. A clip is read once and encoded once; what its prompts have in common is prefilled
        once (`decode.prefill_shared`). An answer is that of `run` with its question, up to
        rounding. A clip that cannot be read has an error for each question.
        """
        clip = leave_room(clip, sampling.max_new_tokens, self.config)
        how = self.tokenizer, self.config, BUCKETS, engine
        clips = [(Input(video, video), asked) for video, asked in questions.items()]
        read = functools.partial(read_questions, clips, clip, *how)
        counts = [len(asked) for asked in questions.values()]
        answers = self._run(read, sum(counts), sampling, engine, max(counts, default=1))
        return ((clips[place][1][number], one) for (place, number), one in answers)

    def run_records(
        self,
        source: RecordSource,
        prompts: Mapping[int, Sequence[dict]],
        sampling: SamplingConfig,
        engine: EngineConfig,
        warm: bool = False,
        evidence: EvidenceConfig = NO_EVIDENCE,
    ) -> Iterator[Caption]:
        """As `run`, of extracted records; their ids are the `video` of the results.

        prompts: the number of a record -> its messages, without an answer.
        """
        leave_room(source.clip, sampling.max_new_tokens, self.config)
        how = self.tokenizer, self.config, BUCKETS
        read = functools.partial(read_records, source, prompts, *how, engine)
        sizes = functools.partial(record_buckets, source, prompts, *how) if warm else None
        kept: dict[int, Kept] | None = {} if evidence.words else None
        answers = self._run(read, len(prompts), sampling, engine, sizes=sizes, kept=kept)
        captions = ((place, caption) for (place, _), caption in answers)
        if kept is not None:
            return self._with_evidence(captions, kept, evidence.by_time)
        return (caption for _, caption in captions)

    def _with_evidence(
        self, captions: Iterable[tuple[int, Caption]], kept: dict[int, Kept], by_time: bool
    ) -> Iterator[Caption]:
        for _, one, told in explained(self, captions, kept, by_time):
            yield one if told is None else one.with_evidence(told)

    def _run(
        self,
        read: Callable[..., Iterator],
        most: int,
        sampling: SamplingConfig,
        engine: EngineConfig,
        questions: int = 1,
        sizes: Callable[[], set[BucketKey]] | None = None,
        streams: bool = False,
        closes: Inputs | None = None,
        kept: dict[int, Kept] | None = None,
    ) -> Iterator[tuple[_Key, "Caption | Streamed"]]:
        """Yield ((place of the clip, number of its question), answer).

        read: of data/reading.py, with `ahead` and `waits` to be given. most: prompts, and
        `questions` of a clip. sizes: buckets to compile first. streams: yield what comes of an
        answer before, too. closes: at the end. kept: to be filled with the prompts of clips that
        have one question, by place, before their answers come.
        """
        mesh = self.engine.mesh
        places = None if engine.batch_size is None else min(engine.batch_size, most)
        places = None if places is None else sharding.round_up_rows(mesh, places)
        clips = _Clips(self, read, most, sampling, engine, questions, streams, kept)
        most = sharding.round_up_rows(mesh, most)

        def answers() -> Iterator[tuple[_Key, Caption | Streamed]]:
            how = dict(places=places, new_tokens=sampling.max_new_tokens, most=most)
            # where these are closed: also the files that they read
            with contextlib.closing(closes or contextlib.ExitStack()), contextlib.closing(clips):
                keys = sizes() if sizes is not None else set()
                clips.begin()
                if keys:
                    how |= self._warm(clips, sorted(keys), sampling, **how)
                else:
                    self._begin_load(clips)
                for one in self.engine.run(self.params, clips, **how):
                    while clips.failed:
                        yield clips.failed.popleft()
                    if isinstance(one, Streamed):
                        yield one.tag.key, one
                    else:
                        yield one.tag.key, self._caption(one)
                yield from clips.failed

        return answers()

    def _begin_load(self, clips: "_Clips"):
        """Begin to load the weights, and compile the programs of the first clips' prefill.

        Not on a CPU: it traces and compiles while it computes the first clips. Nor on a mesh of
        GPUs, whose weights have other shapes than `abstract_weights` says.
        """
        mesh = self.engine.mesh
        has_shapes = mesh is None or mesh.devices.flat[0].platform == "tpu"
        if self._params is not None or on_cpu(mesh) or not has_shapes:
            return
        pool = ThreadPoolExecutor()
        try:
            if self._loading is None:
                self._loading = pool.submit(self._read_weights)
            loading = self._loading
            under_way = [loading]

            def failed() -> bool:
                return loading.done() and loading.exception() is not None

            if (group := clips.first(failed)) is not None:
                shapes = abstract_weights(self.config, self.engine.compute, mesh)
                for one in self.engine.compiling(shapes, group, pool):
                    under_way.append(one)
                    if failed():
                        break
            wait(under_way, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(wait=False)

    def _warm(
        self,
        clips: "_Clips",
        keys: Sequence[BucketKey],
        sampling: SamplingConfig,
        places: int | None,
        new_tokens: int,
        most: int,
    ) -> dict[str, int]:
        """Compile the programs for prompts of some buckets, on empty rows.

        Returns the arguments of `Engine.run` that use them.
        """
        start, before = time.perf_counter(), sum(self.engine.programs().values())
        tokens = max(key.tokens for key in keys)
        places = places or plan_places(self.engine, tokens, new_tokens, 1, most)
        ends = Request(None, dataclasses.replace(sampling, max_new_tokens=1), [0])
        groups = (
            Group(collate([], key, rows, self.config), [ends] + [None] * (rows - 1))
            for key in keys
            for rows in [clips.rows(key)]
        )
        how = dict(places=places, tokens=tokens)
        for _ in self.engine.run(self.params, Listed(groups), new_tokens=new_tokens, **how):
            pass
        logger.info(
            "compiled %d programs for %d sizes of prompts in %.1f s",
            sum(self.engine.programs().values()) - before, len(keys), time.perf_counter() - start,
        )  # fmt: skip
        return how

    def _caption(self, one: Finished) -> Caption:
        tag: _Tag = one.tag
        if one.error is not None:
            remedy = "lower max_pixels, fps or max_new_tokens"
            return Caption(tag.clip.video, error=f"{tag.clip.video}: {one.error}; {remedy}")
        ids = tuple(one.tokens.tolist())
        return dataclasses.replace(
            tag.clip,
            caption=self.tokenizer.decode(ids).strip(),
            token_ids=ids,
            prompt_tokens=tag.prompt_tokens,
            new_tokens=len(ids),
            finish_reason=finish_reason(one.stopped),
            seconds=round(tag.clip.seconds + time.perf_counter() - tag.start, 3),
        )


class _Tag(NamedTuple):
    """Of a request. clip: the facts of its answer so far. start: of its prefill."""

    clip: Caption
    key: _Key
    start: float
    prompt_tokens: int


# Prompts of a clip that begin alike: (the answer's facts so far, its key, prompt).
_Unit = list[tuple[Caption, _Key, Prompt]]


class _Clips:
    """An `engine.Source` of clips that worker processes read; `close` ends these."""

    def __init__(
        self,
        captioner: Captioner,
        read: Callable[..., Iterator],
        most: int,
        sampling: SamplingConfig,
        engine: EngineConfig,
        questions: int,
        streams: bool,
        kept: dict[int, Kept] | None,
    ):
        """Arguments: as of `Captioner._run`."""
        self.failed: deque[tuple[_Key, Caption]] = deque()  # prompts that cannot be read
        self._kept = kept
        self._streams, self._count = streams, 0  # clips so far
        self._config, self._sampling = captioner.config, sampling
        self._mesh, self._most, self._questions = captioner.engine.mesh, most, questions
        self._waiting: dict[BucketKey | SharedKey, list[_Unit]] = {}
        self._waits, self._budget = False, prefill_tokens(self._mesh)
        # As many as the largest batch takes, so that clips of one bucket come together.
        self._pending = 4 * (engine.batch_size or 8)
        self._room = captioner.config.text.max_position_embeddings - sampling.max_new_tokens
        self._read = read(ahead=engine.batch_size or 8, waits=lambda: self._waits)

    def begin(self):
        """Let the worker processes begin before the first `take`."""
        self._waits = False
        if (read := next(self._read, None)) is not None:
            self._add(*read)

    def close(self):
        """End the worker processes."""
        self._read.close()

    def first(self, stopped: Callable[[], bool]) -> Group | None:
        """Wait for a clip that can be read; return a group of its bucket, without prompts.

        None if there is none, or once `stopped()`.
        """
        self._waits = False
        while not self._waiting:
            try:
                read = next(self._read)
            except StopIteration:
                return None
            if read is not None:
                self._add(*read)
            elif stopped():
                return None
            else:
                time.sleep(0.01)
        key = next(iter(self._waiting))
        rows = self.rows(key)
        if isinstance(key, SharedKey):
            batch, shared = collate_shared([], key, rows, self._config)
            return Group(batch, [], shared=shared)
        return Group(collate([], key, rows, self._config), [])

    def take(self, wait: bool, free: int) -> Group | None:
        """Return a group of clips of one bucket; a small one where nothing else keeps busy."""
        while True:
            full = (key for key, units in self._waiting.items() if len(units) >= self.rows(key))
            if (key := next(full, None)) is not None:
                return self._group(key)
            waiting = sum(len(unit) for units in self._waiting.values() for unit in units)
            if waiting >= self._pending:
                return self._longest()
            self._waits = wait and not waiting
            try:
                read = next(self._read)
            except StopIteration:
                return self._longest()
            if read is None:  # the next clip is not read yet
                return self._longest() if wait or free > waiting else None
            self._add(*read)

    def _add(self, video: str, prompts: Sequence[Prompt | UserError]):
        alike: list[_Unit] = []
        place, self._count = self._count, self._count + 1
        for note in dict.fromkeys(note for one in prompts for note in getattr(one, "notes", ())):
            logger.info("%s: %s", video, note)
        for number, prompt in enumerate(prompts):
            if error := self._error(video, prompt):
                self.failed.append(((place, number), Caption(video, error=error)))
                continue
            clip = Caption(video, seconds=prompt.seconds, notes=prompt.notes)
            one = clip, (place, number), prompt
            for unit in alike:
                if begin_alike(unit[0][2].example, prompt.example):
                    unit.append(one)
                    break
            else:
                alike.append([one])
        for unit in alike:
            self._queue(unit)

    def _queue(self, unit: _Unit):
        """Let prompts that begin alike wait: together, or in parts that a bucket holds."""
        key = unit[0][2].bucket
        if len(unit) > 1:
            examples = [prompt.example for _, _, prompt in unit]
            key = shared_bucket(examples, self._questions, BUCKETS, self._config)
        if key is None:
            for part in (unit[: len(unit) // 2], unit[len(unit) // 2 :]):
                self._queue(part)
        else:
            self._waiting.setdefault(key, []).append(unit)

    def _error(self, video: str, prompt: Prompt | UserError) -> str | None:
        """Return why a prompt has no answer, or None."""
        if isinstance(prompt, UserError):
            return str(prompt)
        tokens, limit = len(prompt.example.tokens), self._sampling.max_new_tokens
        if tokens > self._room:  # of a record; clips are read within it
            return (
                f"{video}: its prompt of {tokens} tokens leaves no positions for {limit} new ones; "
                "lower max_new_tokens, or extract again with media_tokens"
            )
        return None

    def rows(self, key: BucketKey | SharedKey) -> int:
        """Return how many clips of a bucket are prefilled together."""
        row = key.row if isinstance(key, SharedKey) else key
        rows = max(1, min(self._most, self._budget // row.tokens))
        return sharding.round_up_rows(self._mesh, rows)

    def _longest(self) -> Group | None:
        """The clips of the bucket that most wait in."""
        if not self._waiting:
            return None
        return self._group(max(self._waiting, key=lambda key: len(self._waiting[key])))

    def _group(self, key: BucketKey | SharedKey) -> Group:
        rows, units = self.rows(key), self._waiting.pop(key)
        if units[rows:]:
            self._waiting[key] = units[rows:]
        units, start = units[:rows], time.perf_counter()
        prompts = [[prompt.example for _, _, prompt in unit] for unit in units]
        size, shared = 1, None
        if isinstance(key, SharedKey):
            size = key.prompts
            batch, shared = collate_shared(prompts, key, rows, self._config)
        else:
            batch = collate_rows(prompts, key, rows, self._config)
        requests: list[Request | None] = [None] * (rows * size)
        for c, unit in enumerate(units):
            for q, (clip, key, prompt) in enumerate(unit):
                tag = _Tag(clip, key, start, len(prompt.example.tokens))
                ids, keep = [_key_id(clip.video)], None
                if self._kept is not None:
                    keep = functools.partial(self._keep, key[0], prompt.bucket, batch, c)
                requests[c * size + q] = Request(
                    tag, self._sampling, ids, streams=self._streams, keep=keep
                )
        return Group(batch, requests, shared=shared)

    def _keep(self, place: int, bucket: BucketKey, batch: Batch, row: int, media: dict):
        self._kept[place] = kept_row(batch, row, bucket, media)


def _flag(options: dict, name: str) -> bool:
    """Take an option that is True or False out of the options; False without it."""
    value = options.pop(name, False)
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r:.60}")
    return value


def _from_options(options: dict, *classes: type) -> list:
    """An instance of each dataclass from the options that are its fields.

    Raises TypeError for an option of none of them, and as `settings.from_options`.
    """
    names = [[field.name for field in dataclasses.fields(cls)] for cls in classes]
    known = [*CaptionOptions.__annotations__] if SamplingConfig in classes else names[0]
    for name in options:
        if name == "pieces" and name in known:
            raise TypeError("pieces: is an option of caption and stream; leave it out here")
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
