"""The settings of generating captions and answers. Imports no jax."""

import dataclasses
import math
import textwrap

from ugc_jax.data.workers import ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.media import presets
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.compute import ComputeConfig
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.settings import Schema, check_minimum, check_types, short_names

# Bucket sizes of the cache for generated tokens; a program is compiled for each that is used.
NEW_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 9216)

# Other tools call max_tokens what is max_new_tokens here: no short name, but an answer.
MOVED = {
    "max_tokens": "clip.max_tokens for the prompt's, or --max_new_tokens for the caption's limit"
}

_GREEDY = dict(temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0, max_new_tokens=512)
# Sampling of the presets of media/presets.py.
# upstream: spec/ugc_videocap.md, "The published inference preset"
# the others: spec/captioners_and_benchmarks.md, "Captioners"
PRESETS = {
    "qwen": _GREEDY,
    "upstream": _GREEDY | dict(temperature=0.2, max_new_tokens=1024),
    "avocado": _GREEDY | dict(max_new_tokens=2048),
    "asid": _GREEDY,
    "timechat": _GREEDY | dict(max_new_tokens=9216),
    "omnicaptioner-if": _GREEDY,
}
PIECES = {"timechat": 60.0}  # seconds of the pieces in which a preset captions long clips
LEAST_PIECE = 2.0  # seconds; a rest that is shorter belongs to the piece before


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How tokens are sampled. None: the preset's value."""

    temperature: float | None = None  # 0: greedy; otherwise logits are divided by it
    top_k: int | None = None  # keep the k most likely tokens; 0: all
    # keep the most likely tokens that together reach this probability; 1: all
    top_p: float | None = None
    # > 1 makes tokens of the prompt and of the caption so far less likely
    repetition_penalty: float | None = None
    # a caption that reaches it ends with finish_reason "length"
    max_new_tokens: int | None = None
    seed: int = 0  # of the sampling; a clip's random numbers depend on its name, too

    def __post_init__(self):
        check_types(self)
        for name, holds, remedy in (
            ("temperature", lambda x: 0 <= x <= 1e6, "use 0 for greedy or a positive number"),
            ("top_k", lambda x: 0 <= x < 2**31, "use 0 to keep all tokens"),
            ("top_p", lambda x: 0 < x <= 1, "use a number in (0, 1]"),
            # Far beyond what is of use; the products with logits stay finite.
            ("repetition_penalty", lambda x: 1e-3 <= x <= 1e3, "use 0.001 to 1000, 1 for none"),
            ("max_new_tokens", lambda x: 1 <= x <= NEW_TOKENS[-1], f"use 1 to {NEW_TOKENS[-1]}"),
            ("seed", lambda x: 0 <= x < 2**32, "use 0 to 4294967295"),
        ):
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise UserError(f"{name} is {value}; {remedy}")

    def resolve(self, preset: str = "qwen") -> "SamplingConfig":
        """Return the settings with every None replaced by the preset's value."""
        return dataclasses.replace(
            self, **{k: v for k, v in PRESETS[preset].items() if getattr(self, k) is None}
        )


def check_pieces(pieces: float | None):
    """Raise UserError for seconds that pieces of a clip cannot have, TypeError for no number."""
    if pieces is None:
        return
    if not isinstance(pieces, int | float) or isinstance(pieces, bool):
        raise TypeError(f"pieces: expected a number of seconds, got {pieces!r:.60}")
    if pieces != 0 and not LEAST_PIECE <= pieces < math.inf:
        raise UserError(f"pieces is {pieces:g}; use at least {LEAST_PIECE:g} seconds, or 0 for off")


def piece_seconds(pieces: float | None, clip: ClipSettings) -> float | None:
    """Return the seconds of the pieces of long clips, or None if they are captioned whole.

    pieces: as the user has it, 0 for whole; None takes those of the preset of `clip` (resolved).
    Raises as `check_pieces`.
    """
    check_pieces(pieces)
    seconds = PIECES.get(clip.preset) if pieces is None else pieces
    return float(seconds) if seconds else None


def caption_schema(job: type, **further: str) -> Schema:
    """Return the schema of a job that captions, with the sections clip, sampling, ..., mesh.

    further: short names of its own, with the settings that they stand for.
    """
    short = short_names(
        clip=ClipSettings, sampling=SamplingConfig, engine=EngineConfig, compute=ComputeConfig
    )
    del short["max_tokens"]
    moved = MOVED | {"data": "mesh.data", "tensor": "mesh.tensor"}
    return Schema(job, short=short | further, moved=moved)


def preset_changes(preset: str) -> dict[str, float]:
    """Return the values of a preset that differ from the default one's."""
    return {name: value for name, value in PRESETS[preset].items() if value != _GREEDY[name]}


def preset_help(with_sampling: bool) -> str:
    """Describe what each preset sets, for --help of a job with or without a section sampling."""
    texts = []
    for preset in PRESETS:
        values = {f"clip.{name}": value for name, value in presets.PRESETS[preset].items()}
        if with_sampling:
            values |= {f"sampling.{name}": value for name, value in PRESETS[preset].items()}
        if preset != presets.DEFAULT_PRESET:
            changed = presets.preset_changes(preset).keys() | preset_changes(preset).keys()
            values = {name: v for name, v in values.items() if name.partition(".")[2] in changed}
        listed = ", ".join(
            f"{name} {textwrap.shorten(str(value), 60)}"
            for name, value in values.items()
            if value is not None
        )
        about = f" {presets.ABOUT[preset]}" if preset in presets.ABOUT else ""
        texts.append(f"--preset {preset} sets {listed or 'nothing of its own'}.{about}")
    return "\n\n".join(texts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlacesConfig:
    """How many clips are generated at a time."""

    # clips that are generated together; more is faster per clip and takes more memory (none: what
    # the device's free memory holds, at most 64, on a CPU 32)
    batch_size: int | None = None

    def __post_init__(self):
        check_minimum(self, batch_size=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig(ReadingConfig, PlacesConfig):
    """How many clips are read and generated at a time."""

    def __post_init__(self):
        ReadingConfig.__post_init__(self)
        PlacesConfig.__post_init__(self)


@dataclasses.dataclass(frozen=True)
class EvidenceConfig:
    """What the words of captions rest on (docs/evidence.md)."""

    words: bool = False  # say of each word whether it is heard, seen or unsupported
    by_time: bool = False  # also which second it rests on, for a prefill of each second

    def __post_init__(self):
        check_types(self)
        if self.by_time and not self.words:
            raise UserError("by_time needs evidence; set it, too")


def leave_room(clip: ClipSettings, new_tokens: int, config: OmniConfig) -> ClipSettings:
    """Lower max_tokens of `clip` so that a caption of `new_tokens` has positions left.

    Raises UserError if that leaves none for the prompt.
    """
    positions = config.text.max_position_embeddings
    if not 1 <= new_tokens < positions:
        raise UserError(
            f"max_new_tokens is {new_tokens}; the model has {positions} positions for the prompt "
            f"and the caption together, so use 1 to {positions - 1}"
        )
    room = positions - new_tokens
    return dataclasses.replace(clip, max_tokens=min(clip.max_tokens or room, room))


@dataclasses.dataclass(frozen=True)
class AskConfig:
    """A model that answers first."""

    checkpoint: str | None = None  # directory or hub id of a model to ask; none: use predictions
    revision: str | None = None  # branch, tag or commit of a hub id
    videos: str | None = None  # folder of the clips, named <id>.mp4 or with another suffix

    def __post_init__(self):
        if self.checkpoint is not None and self.videos is None:
            raise UserError("checkpoint needs ask.videos: the folder of the clips")
        if self.videos is not None and self.checkpoint is None:
            raise UserError("videos needs ask.checkpoint: the model to ask about the clips")
        if self.revision is not None and self.checkpoint is None:
            raise UserError("revision needs ask.checkpoint: the model that it is of")


@dataclasses.dataclass(frozen=True)
class ExplainConfig:
    """A model that says what the words of any model's captions rest on (docs/evidence.md)."""

    checkpoint: str | None = None  # directory or hub id of the model that scores; none: no evidence
    revision: str | None = None  # branch, tag or commit of a hub id
    videos: str | None = None  # folder of the clips, named <id>.mp4 or with another suffix

    def __post_init__(self):
        if (self.checkpoint is None) != (self.videos is None):
            raise UserError("checkpoint and videos belong together; give both, or neither")
        if self.revision is not None and self.checkpoint is None:
            raise UserError("revision needs explain.checkpoint: the model that it is of")
