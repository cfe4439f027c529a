"""Model configuration: frozen dataclasses, read from a checkpoint's own config.json and written back.

Fields keep the names they have in Hugging Face's config.json, so that a reader can look them up. Nothing
is defaulted that decides a shape: the class defaults of transformers are those of the 7B model and wrong
for the 3B, so a missing field is an error that names it.
"""

import dataclasses
import json
from pathlib import Path

from ugc_jax.errors import UserError

PIXEL_MEAN = (
    0.48145466,
    0.4578275,
    0.40821073,
)  # CLIP's, of RGB in 0..1: the preprocessor's image_mean
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)  # and image_std

FULL_MODEL_TYPE = "qwen2_5_omni"
THINKER_MODEL_TYPE = "qwen2_5_omni_thinker"


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Decoder: pre-norm, grouped-query attention, SwiGLU, multimodal rotary positions."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]  # rotary frequencies per axis: time, height, width
    max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Vision encoder; sizes in pixels are `patch_size` and `window_size`."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    window_size: int
    fullatt_block_indexes: tuple[int, ...]
    out_hidden_size: int
    in_channels: int = 3

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def cell_pixels(self) -> int:
        """Side of a merged cell (one token) in pixels: 28 in the released models."""
        return self.patch_size * self.spatial_merge_size

    @property
    def window_cells(self) -> int:
        """Side of an attention window in merged cells: 4 in the released models."""
        return self.window_size // self.cell_pixels

    @property
    def window_patches(self) -> int:
        """Patches in a full window: 64 in the released models."""
        return (self.window_cells * self.spatial_merge_size) ** 2

    @property
    def patch_dim(self) -> int:
        """Length of a flattened patch: 1176 in the released models."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """Whisper-like audio encoder that works on chunks of `2 * n_window` mel frames."""

    num_mel_bins: int
    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    n_window: int
    max_source_positions: int
    output_dim: int

    @property
    def chunk_frames(self) -> int:
        """Mel frames in a chunk: 200, two seconds."""
        return 2 * self.n_window

    @property
    def chunk_tokens(self) -> int:
        """Tokens that a full chunk yields: 50."""
        return self.n_window // 2


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """Special token ids, from the thinker's config.json (never from generation_config.json)."""

    pad_token_id: int
    bos_token_id: int
    eos_token_id: int
    audio_token_id: int
    audio_start_token_id: int
    audio_end_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    image_token_id: int
    video_token_id: int


@dataclasses.dataclass(frozen=True)
class OmniConfig:
    """The thinker: two encoders, a decoder, and what joins them."""

    text: TextConfig
    vision: VisionConfig
    audio: AudioConfig
    tokens: TokenIds
    position_id_per_seconds: int
    seconds_per_chunk: int

    def __post_init__(self):
        _check(self)


@dataclasses.dataclass(frozen=True)
class Compute:
    """How to run the model, as opposed to what it is.

    dtype: activations and matrix products, "float32" or "bfloat16" (norm statistics, softmax, rotary angles
    and log-probabilities are always float32). remat: "none", or "full" to recompute each layer in the backward pass. slab: tokens (patches, sound positions) that a tower works on at a time; 0 is all.
    """

    dtype: str = "float32"
    remat: str = "none"
    slab: int = 0


# ---- config.json -> dataclass --------------------------------------------------------------------


def load_config(checkpoint: str | Path) -> OmniConfig:
    """Read `config.json` of a checkpoint directory. Raises UserError naming the file and the field."""
    return from_hf(*read_json(Path(checkpoint) / "config.json"))


def read_json(path: Path) -> tuple[dict, str]:
    """(content, path as text) of a JSON file; UserError if it is absent or not a JSON object."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; a checkpoint directory holds config.json beside its *.safetensors"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); copy the file again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content, str(path)


def thinker_section(raw: dict, source: str) -> tuple[dict, str]:
    """The thinker's part of a full or a thinker-only config.json, and its name for messages."""
    kind = raw.get("model_type")
    if kind == FULL_MODEL_TYPE:
        return _section(raw, "thinker_config", source), f"{source}: thinker_config."
    if kind == THINKER_MODEL_TYPE:
        return raw, f"{source}: "
    raise UserError(
        f"{source}: model_type is {kind!r}; expected {FULL_MODEL_TYPE!r} (full) or {THINKER_MODEL_TYPE!r} (thinker only)"
    )


def from_hf(raw: dict, source: str = "config.json") -> OmniConfig:
    """Hugging Face config.json content (full model or thinker only, 4.5x and 5.x field names) -> OmniConfig.

    Raises UserError that names `source` and the field when one is missing, of a wrong type, or contradicts another.
    """
    thinker, prefix = thinker_section(raw, source)
    text = dict(_section(thinker, "text_config", prefix))
    vision = dict(_section(thinker, "vision_config", prefix))
    audio = dict(_section(thinker, "audio_config", prefix))

    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    text.setdefault("rope_theta", rope.get("rope_theta"))
    text["mrope_section"] = rope.get("mrope_section")
    if (
        text.get("head_dim") is None
        and _is_int(text.get("hidden_size"))
        and _is_int(text.get("num_attention_heads"))
    ):
        text["head_dim"] = text["hidden_size"] // max(text["num_attention_heads"], 1)
    vision["in_channels"] = vision.get("in_channels", vision.get("in_chans", 3))
    ids = dict(thinker)
    for name in ("audio", "image", "video"):  # 4.5x calls them *_token_index
        ids[f"{name}_token_id"] = ids.get(f"{name}_token_index", ids.get(f"{name}_token_id"))

    _refuse(text, "use_sliding_window", f"{prefix}text_config.", "sliding-window attention")
    _refuse(audio, "scale_embedding", f"{prefix}audio_config.", "scaled audio embeddings")
    _refuse(thinker, "tie_word_embeddings", prefix, "tied word embeddings")
    try:
        return OmniConfig(
            text=_typed(TextConfig, text, f"{prefix}text_config."),
            vision=_typed(VisionConfig, vision, f"{prefix}vision_config."),
            audio=_typed(AudioConfig, audio, f"{prefix}audio_config."),
            tokens=_typed(TokenIds, ids, prefix),
            position_id_per_seconds=_int(thinker, "position_id_per_seconds", prefix),
            seconds_per_chunk=_int(thinker, "seconds_per_chunk", prefix),
        )
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(source) else f"{prefix}{message}") from None


def to_hf(config: OmniConfig, dtype: str) -> dict:
    """OmniConfig -> config.json content of a thinker-only checkpoint, loadable by transformers 4.52 and 5.x.

    dtype: of the stored tensors, "float32" or "bfloat16".
    """
    text = dataclasses.asdict(config.text)
    rope = {"rope_type": "default", "mrope_section": list(text.pop("mrope_section"))}
    text |= {
        "model_type": "qwen2_5_omni_text",
        "hidden_act": "silu",
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "rope_scaling": {**rope, "type": "default"},
        "rope_parameters": {**rope, "rope_theta": text["rope_theta"]},
    }
    vision = dataclasses.asdict(config.vision) | {
        "model_type": "qwen2_5_omni_vision_encoder",
        "hidden_act": "silu",
    }
    vision["fullatt_block_indexes"] = list(vision["fullatt_block_indexes"])
    audio = dataclasses.asdict(config.audio) | {
        "model_type": "qwen2_5_omni_audio_encoder",
        "activation_function": "gelu",
        "scale_embedding": False,
    }
    ids = dataclasses.asdict(config.tokens)
    for name in ("audio", "image", "video"):
        ids[f"{name}_token_index"] = ids.pop(f"{name}_token_id")
    return {
        "architectures": ["Qwen2_5OmniThinkerForConditionalGeneration"],
        "model_type": THINKER_MODEL_TYPE,
        "torch_dtype": dtype,
        "dtype": dtype,
        "tie_word_embeddings": False,
        "position_id_per_seconds": config.position_id_per_seconds,
        "seconds_per_chunk": config.seconds_per_chunk,
        **ids,
        "text_config": text,
        "vision_config": vision,
        "audio_config": audio,
    }


def _section(raw: dict, name: str, prefix: str) -> dict:
    value = raw.get(name)
    if not isinstance(value, dict):
        raise UserError(
            f"{prefix}{'' if prefix.endswith((' ', '.')) else ': '}{name} is missing; is this a Qwen2.5-Omni checkpoint?"
        )
    return value


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _int(raw: dict, name: str, prefix: str) -> int:
    if raw.get(name) is None:
        raise UserError(f"{prefix}{name} is missing; take it from the model's original config.json")
    if not _is_int(raw[name]):
        raise UserError(f"{prefix}{name} must be an integer, got {raw[name]!r}")
    return raw[name]


def _refuse(raw: dict, name: str, prefix: str, what: str):
    if raw.get(name):
        raise UserError(
            f"{prefix}{name} is {raw[name]!r}; {what} is not part of any released Qwen2.5-Omni model"
        )


def _typed(cls, raw: dict, prefix: str):
    """Build the dataclass `cls` from `raw`, checking that each field is there and has its type."""
    values = {}
    for field in dataclasses.fields(cls):
        if field.type is int:
            values[field.name] = _int(raw, field.name, prefix)
            continue
        value = raw.get(field.name)
        if value is None:
            raise UserError(
                f"{prefix}{field.name} is missing; take it from the model's original config.json"
            )
        if field.type is float:
            if not _is_int(value) and not isinstance(value, float):
                raise UserError(f"{prefix}{field.name} must be a number, got {value!r}")
            values[field.name] = float(value)
        else:
            if not isinstance(value, list | tuple) or not all(map(_is_int, value)):
                raise UserError(f"{prefix}{field.name} must be a list of integers, got {value!r}")
            values[field.name] = tuple(value)
    return cls(**values)


def _check(config: OmniConfig):
    """Refuse a config whose fields contradict each other."""
    text, vision, audio = config.text, config.vision, config.audio

    def require(holds: bool, message: str):
        if not holds:
            raise UserError(message)

    for name, section in (
        ("text_config", text),
        ("vision_config", vision),
        ("audio_config", audio),
    ):
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if field.type in (int, float):
                require(value > 0, f"{name}.{field.name} must be positive, got {value}")
    require(
        text.num_attention_heads % text.num_key_value_heads == 0,
        f"text_config.num_attention_heads {text.num_attention_heads} is no multiple of num_key_value_heads {text.num_key_value_heads}",
    )
    require(
        len(text.mrope_section) == 3 and 2 * sum(text.mrope_section) == text.head_dim,
        f"text_config.mrope_section {list(text.mrope_section)} must be 3 numbers with sum head_dim / 2 = {text.head_dim / 2:g}",
    )
    require(
        vision.hidden_size % vision.num_heads == 0 and vision.head_dim % 4 == 0,
        f"vision_config.hidden_size {vision.hidden_size} does not split into num_heads {vision.num_heads} heads of a multiple of 4",
    )
    require(
        vision.window_size % vision.cell_pixels == 0,
        f"vision_config.window_size {vision.window_size} is no multiple of patch_size * spatial_merge_size = {vision.cell_pixels}",
    )
    require(
        all(0 <= i < vision.depth for i in vision.fullatt_block_indexes),
        f"vision_config.fullatt_block_indexes {list(vision.fullatt_block_indexes)} exceed depth {vision.depth}",
    )
    require(
        vision.out_hidden_size == text.hidden_size,
        f"vision_config.out_hidden_size {vision.out_hidden_size} differs from text_config.hidden_size {text.hidden_size}",
    )
    require(
        audio.output_dim == text.hidden_size,
        f"audio_config.output_dim {audio.output_dim} differs from text_config.hidden_size {text.hidden_size}",
    )
    require(
        audio.d_model % audio.encoder_attention_heads == 0 and audio.d_model % 2 == 0,
        f"audio_config.d_model {audio.d_model} does not split into {audio.encoder_attention_heads} heads",
    )
    require(
        audio.n_window % 2 == 0 and audio.n_window <= audio.max_source_positions,
        f"audio_config.n_window {audio.n_window} must be even and at most max_source_positions {audio.max_source_positions}",
    )
    for field in dataclasses.fields(config.tokens):
        value = getattr(config.tokens, field.name)
        require(
            0 <= value < text.vocab_size,
            f"{field.name} {value} is outside text_config.vocab_size {text.vocab_size}",
        )


# ---- shapes that need no checkpoint --------------------------------------------------------------


def _token_ids(first: int) -> TokenIds:
    """Qwen2.5-Omni's special ids, laid out from `first` (151643 in the released models) in their order."""
    return TokenIds(
        pad_token_id=first,
        bos_token_id=first + 1,
        eos_token_id=first + 2,
        audio_token_id=first + 3,
        audio_start_token_id=first + 4,
        audio_end_token_id=first + 5,
        vision_start_token_id=first + 9,
        vision_end_token_id=first + 10,
        image_token_id=first + 12,
        video_token_id=first + 13,
    )


def _omni(text: TextConfig, vision: dict, audio: dict, first_special: int) -> OmniConfig:
    return OmniConfig(
        text=text,
        vision=VisionConfig(
            patch_size=14, temporal_patch_size=2, spatial_merge_size=2, window_size=112,
            out_hidden_size=text.hidden_size, **vision,
        ),
        audio=AudioConfig(num_mel_bins=128, n_window=100, max_source_positions=1500, output_dim=text.hidden_size, **audio),
        tokens=_token_ids(first_special),
        position_id_per_seconds=25,
        seconds_per_chunk=2,
    )  # fmt: skip


def tiny() -> OmniConfig:
    """About 0.5 M parameters: for tests and for trying every job in seconds."""
    text = TextConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, rms_norm_eps=1e-6, rope_theta=1e6, mrope_section=(2, 3, 3), max_position_embeddings=32768,
    )  # fmt: skip
    vision = dict(
        depth=4, hidden_size=64, intermediate_size=172, num_heads=4, fullatt_block_indexes=(1, 3)
    )
    audio = dict(d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=256)
    return _omni(text, vision, audio, first_special=2000)


def mid() -> OmniConfig:
    """About 65 M parameters with the 3B's head sizes and proportions: for measurements on a CPU."""
    text = TextConfig(
        vocab_size=16384, hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=1,
        head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6, mrope_section=(16, 24, 24), max_position_embeddings=32768,
    )  # fmt: skip
    vision = dict(
        depth=8, hidden_size=320, intermediate_size=856, num_heads=4, fullatt_block_indexes=(3, 7)
    )
    audio = dict(d_model=320, encoder_layers=6, encoder_attention_heads=5, encoder_ffn_dim=1280)
    return _omni(text, vision, audio, first_special=16000)


def omni_3b() -> OmniConfig:
    """Qwen2.5-Omni-3B's thinker (4,703,464,448 parameters; spec section 0)."""
    text = TextConfig(
        vocab_size=151936, hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2,
        head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6, mrope_section=(16, 24, 24), max_position_embeddings=32768,
    )  # fmt: skip
    vision = dict(
        depth=32,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        fullatt_block_indexes=(7, 15, 23, 31),
    )
    audio = dict(d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120)
    return _omni(text, vision, audio, first_special=151643)


def omni_7b() -> OmniConfig:
    """Qwen2.5-Omni-7B's thinker: the 3B's encoders with a wider decoder."""
    text = TextConfig(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6, mrope_section=(16, 24, 24), max_position_embeddings=32768,
    )  # fmt: skip
    vision = dict(
        depth=32,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        fullatt_block_indexes=(7, 15, 23, 31),
    )
    audio = dict(d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120)
    return _omni(text, vision, audio, first_special=151643)


SIZES = {"tiny": tiny, "mid": mid, "3b": omni_3b, "7b": omni_7b}
