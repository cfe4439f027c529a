"""config.json's content <-> OmniConfig; hf/config.py reads the file.

Fields that decide a shape have no defaults: those of transformers' classes are the 7B model's and
wrong for the 3B. So a missing field is an error that names it.
"""

import dataclasses

from ugc_jax.errors import UserError
from ugc_jax.models.qwen2_5_omni.config import (
    AudioConfig,
    OmniConfig,
    TextConfig,
    TokenIds,
    VisionConfig,
)

FULL_MODEL_TYPE = "qwen2_5_omni"
THINKER_MODEL_TYPE = "qwen2_5_omni_thinker"


def thinker_section(raw: dict, source: str) -> tuple[dict, str]:
    """Return (the thinker's section of a config.json, full or thinker-only, its message prefix)."""
    if raw.get("model_type") == FULL_MODEL_TYPE:
        return _section(raw, "thinker_config", f"{source}: "), f"{source}: thinker_config."
    return raw, f"{source}: "


def from_hf(raw: dict, source: str = "config.json") -> OmniConfig:
    """Return the OmniConfig of a config.json (full or thinker only, 4.5x or 5.x field names).

    Raises UserError that names `source` and the field when one is missing, of a wrong type, or
    contradicts another.
    """
    thinker, prefix = thinker_section(raw, source)
    text = dict(_section(thinker, "text_config", prefix))
    vision = dict(_section(thinker, "vision_config", prefix))
    audio = dict(_section(thinker, "audio_config", prefix))

    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    text.setdefault("rope_theta", rope.get("rope_theta"))
    text["mrope_section"] = rope.get("mrope_section")
    width, heads = text.get("hidden_size"), text.get("num_attention_heads")
    if text.get("head_dim") is None and _is_int(width) and _is_int(heads):
        text["head_dim"] = width // max(heads, 1)
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
            position_id_per_seconds=_value(thinker, "position_id_per_seconds", int, prefix),
            seconds_per_chunk=_value(thinker, "seconds_per_chunk", int, prefix),
        )
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(source) else f"{prefix}{message}") from None


def to_hf(config: OmniConfig, dtype: str) -> dict:
    """Return a thinker-only checkpoint's config.json content, for transformers 4.52 and 5.x.

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


def to_full(section: dict) -> dict:
    """Return config.json of a full checkpoint that has the thinker of `section` and no talker.

    Without `enable_audio_output: false` transformers builds a talker and a vocoder.
    """
    return {
        "architectures": ["Qwen2_5OmniForConditionalGeneration"],
        "model_type": FULL_MODEL_TYPE,
        "enable_audio_output": False,
        **{name: section[name] for name in ("torch_dtype", "dtype", "tie_word_embeddings")},
        "thinker_config": section,
    }


def _section(raw: dict, name: str, prefix: str) -> dict:
    value = raw.get(name)
    if not isinstance(value, dict):
        raise UserError(f"{prefix}{name} is missing; is this a Qwen2.5-Omni checkpoint?")
    return value


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse(raw: dict, name: str, prefix: str, what: str):
    if raw.get(name):
        raise UserError(
            f"{prefix}{name} is {raw[name]!r}; no released Qwen2.5-Omni model has {what}"
        )


def _typed(cls, raw: dict, prefix: str):
    """An instance of the dataclass `cls` from the fields of `raw`, with their types checked."""
    fields = dataclasses.fields(cls)
    return cls(**{field.name: _value(raw, field.name, field.type, prefix) for field in fields})


def _value(raw: dict, name: str, kind, prefix: str):
    """The field `name` of `raw` as a `kind`: int, float, or a tuple of integers."""
    value = raw.get(name)
    if value is None:
        raise UserError(f"{prefix}{name} is missing; take it from the model's original config.json")
    if kind is int:
        fits, expected = _is_int(value), "an integer"
    elif kind is float:
        fits, expected = _is_int(value) or isinstance(value, float), "a number"
    else:
        kind, expected = tuple, "a list of integers"
        fits = isinstance(value, list | tuple) and all(map(_is_int, value))
    if not fits:
        raise UserError(f"{prefix}{name} must be {expected}, got {value!r}")
    return kind(value)
