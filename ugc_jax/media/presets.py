"""The settings of a clip's media, and the named presets.

Every job that reads clips has a section `clip` of ClipSettings. A field that is None takes the
value of the checkpoint's own training data, if these are known, or else of the preset; `resolve`
fills these in.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from ugc_jax.errors import UserError
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY
from ugc_jax.models.qwen2_5_omni.tokens import DEFAULT_SYSTEM
from ugc_jax.settings import check_types

Preset = Literal["qwen", "upstream", "avocado", "asid", "timechat", "omnicaptioner-if"]

CELL_AREA = GEOMETRY.vision.cell_pixels**2  # pixels of one token: the unit of areas

QUESTION = (  # of the benchmark's final-caption task
    "You are given a short video with both audio and visual content. Write a detailed and coherent "
    "paragraph that naturally integrates all modalities. Your description should include: (1) the "
    "primary scene and background setting; (2) key characters or objects and their actions or "
    "interactions; (3) significant audio cues such as voices, background music, sound effects, and "
    "their emotional tone; (4) any on-screen text (OCR) and its role in the video context; and "
    "(5) the overall theme or purpose of the video. Ensure the output is a fluent and objective "
    "paragraph, not a bullet-point list, and captures the video's content in a human-like, "
    "narrative style. "
)

UPSTREAM_SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of "
    "perceiving auditory and visual inputs, as well as generating text and speech. Please make "
    "sure that the content within the answer is long and detailed enough."
)


@dataclasses.dataclass(frozen=True)
class PresetSettings:
    """The preset alone, for a job that takes no clips."""

    # "qwen" (the reference's own sampling), "upstream" (the published captioner's), or that of
    # another captioner; without it the settings that the checkpoint was trained with, or else qwen
    preset: Preset | None = None


@dataclasses.dataclass(frozen=True)
class ClipSettings(PresetSettings):
    """How a clip becomes frames, sound and a question. None: of the checkpoint or the preset.

    Raises UserError naming the field for a value out of range, or two fields that contradict each
    other; TypeError for a value of another type.
    """

    fps: float | None = None  # frames taken per second of picture; excludes `frames`
    frames: int | None = None  # frames taken from the whole clip (made even); excludes `fps`
    min_frames: int | None = None  # fewest frames that `fps` may lead to, where the clip has them
    max_frames: int | None = None  # most frames that `fps` may lead to
    min_pixels: int | None = None  # a smaller frame is enlarged to this area (height * width)
    max_pixels: int | None = None  # a larger frame is shrunk to this area
    total_pixels: int | None = None  # with n frames, each has at most 2 * total_pixels / n pixels
    image_min_pixels: int | None = None  # a smaller still image is enlarged to this area
    image_max_pixels: int | None = None  # a larger still image is shrunk to this area

    start: float | None = None  # seconds at which the part to use begins; none: the beginning
    end: float | None = None  # seconds at which the part to use ends; none: the end
    audio: bool | None = None  # false: leave the sound out even if the clip has some
    require_sound: bool | None = None  # true: refuse a clip whose sound cannot be decoded
    max_audio_seconds: float | None = None  # longer sound is cut there, and the log says so
    # true: colours of high definition without a tag are read as BT.709, as players do; false: as
    # BT.601, as the reference does
    untagged_bt709: bool | None = None
    bgr: bool | None = None  # swap red and blue, as the published captioner's inference code did

    system: str | None = None  # system prompt
    question: str | None = None  # what the user asks about the clip
    # true: time positions assume 2 frames/s, as the reference does; false: the clip's own rate
    reference_fps: bool | None = None
    # most tokens of picture and sound, in extract and wherever its records were trained on; a clip
    # that needs more gets fewer pixels, then fewer frames; none: no limit of its own
    media_tokens: int | None = None
    # most tokens of a prompt: an oversized clip gets fewer pixels, then fewer frames; none: as
    # many as the model has positions
    max_tokens: int | None = None

    def __post_init__(self):
        """Raises UserError for values that are invalid with every preset."""
        check_types(self)
        _check(self)


_QWEN = dict(  # spec 4.1 and 4.2
    fps=2.0,
    min_frames=4,
    max_frames=768,
    min_pixels=128 * CELL_AREA,
    max_pixels=768 * CELL_AREA,
    total_pixels=128_000 * CELL_AREA * 9 // 10,
    image_min_pixels=4 * CELL_AREA,
    image_max_pixels=16384 * CELL_AREA,
    audio=True,
    require_sound=False,
    max_audio_seconds=300.0,
    bgr=False,
    untagged_bt709=False,
    reference_fps=False,
    system=DEFAULT_SYSTEM,
    question=QUESTION,
)
PRESETS = {
    "qwen": _QWEN,
    # spec/ugc_videocap.md, "The published inference preset"
    "upstream": _QWEN | dict(fps=None, frames=32, system=UPSTREAM_SYSTEM),
    # spec/captioners_and_benchmarks.md, "Captioners"; what it does not name is as in qwen
    "avocado": _QWEN | dict(max_pixels=401_408, total_pixels=20_070_400),
    "asid": _QWEN | dict(max_pixels=401_408),
    "timechat": _QWEN | dict(max_pixels=297_920, max_frames=160),
    "omnicaptioner-if": _QWEN,
}

DEFAULT_PRESET = "qwen"
# What a preset does besides its values, for --help (media/clip.py does it).
ABOUT = {
    "upstream": "It also takes frames as the published captioner's code does: first to last, a "
    "short clip's more than once, each shrunk to at most 100,176 pixels before all else. The "
    "other values are those of qwen.",
    "avocado": "The captioner was trained with seven questions of its own: docs/captioners.md.",
    "asid": "The captioner was trained with seven questions of its own: docs/captioners.md.",
    "timechat": "The captioner writes a timed script; the job caption cuts into pieces of 60 s.",
    "omnicaptioner-if": "The captioner takes its form from the question; all is as in qwen.",
}

_LIMITS = (
    ("min_frames", "max_frames"),
    ("min_pixels", "max_pixels"),
    ("image_min_pixels", "image_max_pixels"),
)

# The minimum of each integer field.
_LEAST = dict.fromkeys(("frames", "min_frames", "max_frames"), 2) | dict.fromkeys(
    ("total_pixels", "max_tokens", "media_tokens", *_LIMITS[1], *_LIMITS[2]), 1
)


def resolve(settings: ClipSettings, trained: ClipSettings | None = None) -> ClipSettings:
    """Fill every None; resolving twice changes nothing.

    trained: the settings that the model was trained with, which take the place of the preset if
    `settings` names none.
    """
    if settings.preset is None and trained is not None:
        values = {name: value for name, value in vars(trained).items() if value is not None}
    else:
        preset = settings.preset or DEFAULT_PRESET
        values = PRESETS[preset] | {"preset": preset}
    if settings.frames is not None or settings.fps is not None:
        # fps and frames exclude each other, so either one replaces both
        values = {name: value for name, value in values.items() if name not in ("fps", "frames")}
    for low, high in _LIMITS:  # the user's limit moves the opposite one if they cross
        if getattr(settings, high) is not None:
            values[low] = min(values[low], getattr(settings, high))
        if getattr(settings, low) is not None:
            values[high] = max(values[high], getattr(settings, low))
    values = {name: value for name, value in values.items() if getattr(settings, name) is None}
    return dataclasses.replace(settings, **values)


def preset_changes(preset: str) -> dict[str, object]:
    """Return the values of a preset that differ from the default one's."""
    return changes(PRESETS[preset])


def changes(values: Mapping[str, object]) -> dict[str, object]:
    """Return those of the values of clip settings that differ from the default preset's."""
    default = PRESETS[DEFAULT_PRESET] | {"preset": DEFAULT_PRESET}
    return {name: value for name, value in values.items() if value != default.get(name)}


def _check(settings: ClipSettings):
    """Raise UserError for values that are invalid with every preset."""
    for name, least in _LEAST.items():
        value = getattr(settings, name)
        if value is not None and value < least:
            raise UserError(f"{name} must be an integer of at least {least}, got {value!r}")
    for name, positive in dict(fps=True, max_audio_seconds=True, start=False, end=True).items():
        value = getattr(settings, name)
        if value is None:
            continue
        if not 0 <= value < math.inf or (positive and value == 0):
            kind = "positive" if positive else "non-negative"
            raise UserError(f"{name} must be a {kind} number, got {value!r}")
    if settings.fps is not None and settings.frames is not None:
        both = f"fps ({settings.fps}) and frames ({settings.frames})"
        raise UserError(f"{both} exclude each other; set one of them")
    for low, high in (("start", "end"), *_LIMITS):
        least, most = getattr(settings, low), getattr(settings, high)
        if least is not None and most is not None and least > most:
            raise UserError(f"{low} ({least}) is above {high} ({most}); swap or remove one of them")
