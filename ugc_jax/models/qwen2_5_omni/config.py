"""The model's configuration: frozen dataclasses; hf_config.py reads them from config.json.

Fields keep the names they have in Hugging Face's config.json, so that a reader can look them up.
"""

import dataclasses

from ugc_jax.errors import UserError
from ugc_jax.models.qwen2_5_omni.tokens import token_ids

# Preprocessing of pixels and sound in every released size (spec 4.2, 4.3).
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of RGB in 0..1
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
SAMPLE_RATE = 16_000
FFT = 400  # samples of an analysis window: 25 ms
HOP = 160  # samples between windows: 10 ms
MEL_BINS = 128


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
        """Size of an attention head."""
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

    def windows(self, cell_rows: int, cell_columns: int) -> tuple[int, int]:
        """Return (rows, columns) of windows that cover a frame of so many merged cells."""
        return -(-cell_rows // self.window_cells), -(-cell_columns // self.window_cells)


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

    def chunks(self, frames: int) -> int:
        """Return the number of chunks for so many mel frames."""
        return -(-frames // self.chunk_frames)

    def tokens(self, frames: int) -> int:
        """Return the number of tokens for so many mel frames: 25 a second (spec 2.2.5)."""
        return ((frames - 1) // 2 - 1) // 2 + 1


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
    """The thinker: two encoders, a decoder, special tokens and time positions."""

    text: TextConfig
    vision: VisionConfig
    audio: AudioConfig
    tokens: TokenIds
    position_id_per_seconds: int
    seconds_per_chunk: int

    def __post_init__(self):
        _check(self)

    @property
    def costly_share(self) -> float:
        """Share of the model's `lax.cond`s that take the more expensive branch.

        Only the blocks of the vision encoder have one: full attention or attention in windows.
        """
        return len(self.vision.fullatt_block_indexes) / self.vision.depth


def _check(config: OmniConfig):
    """Raise UserError if fields contradict each other; messages begin with the field."""
    text, vision, audio = config.text, config.vision, config.audio

    def require(holds: bool, message: str):
        if not holds:
            raise UserError(message)

    for name in ("text", "vision", "audio"):
        section = getattr(config, name)
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if field.type in (int, float):
                require(value > 0, f"{name}_config.{field.name} must be positive, got {value}")
    require(
        text.num_attention_heads % text.num_key_value_heads == 0,
        f"text_config.num_attention_heads {text.num_attention_heads} "
        f"is not a multiple of num_key_value_heads {text.num_key_value_heads}",
    )
    require(
        len(text.mrope_section) == 3 and 2 * sum(text.mrope_section) == text.head_dim,
        f"text_config.mrope_section {list(text.mrope_section)} "
        f"must be 3 numbers with sum head_dim / 2 = {text.head_dim / 2:g}",
    )
    require(
        vision.hidden_size % vision.num_heads == 0 and vision.head_dim % 4 == 0,
        f"vision_config.hidden_size {vision.hidden_size} does not split into "
        f"num_heads {vision.num_heads} heads of a multiple of 4",
    )
    require(
        vision.window_size % vision.cell_pixels == 0,
        f"vision_config.window_size {vision.window_size} "
        f"is not a multiple of patch_size * spatial_merge_size = {vision.cell_pixels}",
    )
    require(
        all(0 <= i < vision.depth for i in vision.fullatt_block_indexes),
        f"vision_config.fullatt_block_indexes {list(vision.fullatt_block_indexes)} "
        f"exceed depth {vision.depth}",
    )
    for name, width in (
        ("vision_config.out_hidden_size", vision.out_hidden_size),
        ("audio_config.output_dim", audio.output_dim),
    ):
        require(
            width == text.hidden_size,
            f"{name} {width} differs from text_config.hidden_size {text.hidden_size}",
        )
    require(
        audio.d_model % audio.encoder_attention_heads == 0 and audio.d_model % 2 == 0,
        f"audio_config.d_model {audio.d_model} does not split into "
        f"encoder_attention_heads {audio.encoder_attention_heads}",
    )
    require(
        audio.n_window % 2 == 0 and audio.n_window <= audio.max_source_positions,
        f"audio_config.n_window {audio.n_window} must be even and at most "
        f"max_source_positions {audio.max_source_positions}",
    )
    for field in dataclasses.fields(config.tokens):
        value = getattr(config.tokens, field.name)
        require(
            0 <= value < text.vocab_size,
            f"{field.name} {value} is outside text_config.vocab_size {text.vocab_size}",
        )


# ---- sizes ---------------------------------------------------------------------------------------


def _omni(text: dict, vision: dict, audio: dict, first_special: int) -> OmniConfig:
    """A size: the fields that all sizes share, and those given."""
    width = text["hidden_size"]
    return OmniConfig(
        text=TextConfig(
            rms_norm_eps=1e-6, rope_theta=1e6, max_position_embeddings=32768, **text
        ),
        vision=VisionConfig(
            patch_size=14, temporal_patch_size=2, spatial_merge_size=2, window_size=112,
            out_hidden_size=width, **vision,
        ),
        audio=AudioConfig(
            num_mel_bins=128, n_window=100, max_source_positions=1500, output_dim=width, **audio
        ),
        tokens=TokenIds(**token_ids(first_special)),
        position_id_per_seconds=25,
        seconds_per_chunk=2,
    )  # fmt: skip


def tiny() -> OmniConfig:
    """Return a size of 0.85 M parameters, for tests and quick trials of every job."""
    return _omni(
        text=dict(
            vocab_size=2048, hidden_size=64, intermediate_size=176, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, mrope_section=(2, 3, 3),
        ),
        vision=dict(
            depth=4, hidden_size=64, intermediate_size=172, num_heads=4,
            fullatt_block_indexes=(1, 3),
        ),
        audio=dict(d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=256),
        first_special=2000,
    )  # fmt: skip


def mid() -> OmniConfig:
    """Return a size of 67.7 M parameters with the 3B's head sizes, for measurements on a CPU."""
    return _omni(
        text=dict(
            vocab_size=16384, hidden_size=512, intermediate_size=2048, num_hidden_layers=8,
            num_attention_heads=4, num_key_value_heads=1, head_dim=128, mrope_section=(16, 24, 24),
        ),
        vision=dict(
            depth=8, hidden_size=320, intermediate_size=856, num_heads=4,
            fullatt_block_indexes=(3, 7),
        ),
        audio=dict(d_model=320, encoder_layers=6, encoder_attention_heads=5, encoder_ffn_dim=1280),
        first_special=16000,
    )  # fmt: skip


_RELEASED_ENCODERS = dict(
    vision=dict(
        depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16,
        fullatt_block_indexes=(7, 15, 23, 31),
    ),
    audio=dict(d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120),
    first_special=151643,
)  # fmt: skip


def omni_3b() -> OmniConfig:
    """Return the size of Qwen2.5-Omni-3B's thinker: 4,703,464,448 parameters (spec section 0)."""
    text = dict(
        vocab_size=151936, hidden_size=2048, intermediate_size=11008, num_hidden_layers=36,
        num_attention_heads=16, num_key_value_heads=2, head_dim=128, mrope_section=(16, 24, 24),
    )  # fmt: skip
    return _omni(text, **_RELEASED_ENCODERS)


def omni_7b() -> OmniConfig:
    """Return the size of Qwen2.5-Omni-7B's thinker: the 3B's encoders with a wider decoder."""
    text = dict(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4, head_dim=128, mrope_section=(16, 24, 24),
    )  # fmt: skip
    return _omni(text, **_RELEASED_ENCODERS)


SIZES = {"tiny": tiny, "mid": mid, "3b": omni_3b, "7b": omni_7b}
# All released sizes have these patches, windows and chunks, so features do not depend on the size.
GEOMETRY = omni_3b()
