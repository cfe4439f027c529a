"""config.json's content: written, it can be read, by transformers too; what is missing is named."""

import copy
import dataclasses
import json

import pytest

from ugc_jax.errors import UserError
from ugc_jax.models.qwen2_5_omni.config import SIZES, mid, omni_3b, omni_7b, tiny
from ugc_jax.models.qwen2_5_omni.hf_config import from_hf, to_hf

SECTIONS = ("text_config", "vision_config", "audio_config")


def full(config) -> dict:
    """config.json of a full model."""
    return {
        "model_type": "qwen2_5_omni",
        "thinker_config": to_hf(config, "bfloat16"),
        "talker_config": {},
    }


@pytest.mark.parametrize("size", SIZES)
def test_round_trip(size):
    config = SIZES[size]()
    assert from_hf(to_hf(config, "float32")) == config
    assert from_hf(full(config)) == config


def test_older_field_names():
    raw = to_hf(tiny(), "float32")
    text = raw["text_config"]
    del (
        text["rope_parameters"],
        text["head_dim"],
    )  # 4.5x has rope_theta, rope_scaling and no head_dim
    assert from_hf(raw) == tiny()
    raw = to_hf(tiny(), "float32")
    del (
        raw["text_config"]["rope_theta"],
        raw["text_config"]["rope_scaling"],
    )  # 5.x has rope_parameters
    for name in ("audio", "image", "video"):
        raw[f"{name}_token_id"] = raw.pop(f"{name}_token_index")
    raw["vision_config"]["in_chans"] = raw["vision_config"].pop("in_channels")
    assert from_hf(raw) == tiny()


def required_fields():
    raw = to_hf(tiny(), "float32")
    optional = {
        "head_dim",
        "in_channels",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "model_type",
    }
    optional |= {
        "hidden_act",
        "activation_function",
        "use_sliding_window",
        "tie_word_embeddings",
        "scale_embedding",
    }
    for section in SECTIONS:
        yield from ((section, name) for name in raw[section] if name not in optional)
    yield from (
        (None, name) for name in raw if name.endswith(("_token_id", "_per_seconds", "_per_chunk"))
    )
    yield from ((None, section) for section in SECTIONS)


@pytest.mark.parametrize(
    "make", [to_hf, lambda config, dtype: full(config)], ids=["thinker", "full"]
)
@pytest.mark.parametrize(("section", "name"), required_fields())
def test_missing_field_is_named(make, section, name):
    raw = copy.deepcopy(make(tiny(), "float32"))
    thinker = raw.get("thinker_config", raw)
    del (thinker[section] if section else thinker)[name]
    with pytest.raises(UserError) as error:
        from_hf(raw, "some/config.json")
    where = "thinker_config." if "thinker_config" in raw else ""
    where += f"{section}." if section else ""
    assert str(error.value).startswith(f"some/config.json: {where}{name} is missing")


@pytest.mark.parametrize("name", ["audio", "image", "video"])
def test_missing_media_token_is_named(name):
    raw = to_hf(tiny(), "float32")
    del raw[f"{name}_token_index"]
    with pytest.raises(UserError, match=f"{name}_token_i.* is missing"):
        from_hf(raw)


def test_missing_rope_is_named():
    for name, gone in (("rope_theta", "rope_theta"), ("mrope_section", "mrope_section")):
        raw = to_hf(tiny(), "float32")
        text = raw["text_config"]
        text.pop("rope_theta")
        for rope in ("rope_scaling", "rope_parameters"):
            text[rope].pop(gone, None)
        with pytest.raises(UserError, match=f"text_config.{name} is missing"):
            from_hf(raw)


CONTRADICTIONS = [
    (
        "text_config",
        "num_key_value_heads",
        3,
        "num_attention_heads 4 is not a multiple of num_key_value_heads 3",
    ),
    ("text_config", "head_dim", 32, r"mrope_section \[2, 3, 3\] must be 3 numbers"),
    ("text_config", "vocab_size", 2000, "pad_token_id 2000 is outside text_config.vocab_size 2000"),
    (
        "text_config",
        "hidden_size",
        128,
        "vision_config.out_hidden_size 64 differs from text_config.hidden_size 128",
    ),
    ("text_config", "rms_norm_eps", 0, "rms_norm_eps must be positive"),
    ("text_config", "use_sliding_window", True, "text_config.use_sliding_window is True"),
    (
        "text_config",
        "num_hidden_layers",
        "2",
        "text_config.num_hidden_layers must be an integer, got '2'",
    ),
    (
        "vision_config",
        "num_heads",
        5,
        "vision_config.hidden_size 64 does not split into num_heads 5",
    ),
    ("vision_config", "window_size", 100, "vision_config.window_size 100 is not a multiple"),
    (
        "vision_config",
        "fullatt_block_indexes",
        [1, 4],
        r"fullatt_block_indexes \[1, 4\] exceed depth 4",
    ),
    (
        "vision_config",
        "fullatt_block_indexes",
        3,
        "fullatt_block_indexes must be a list of integers, got 3",
    ),
    (
        "audio_config",
        "output_dim",
        32,
        "audio_config.output_dim 32 differs from text_config.hidden_size 64",
    ),
    (
        "audio_config",
        "encoder_attention_heads",
        5,
        "audio_config.d_model 64 does not split into encoder_attention_heads 5",
    ),
    ("audio_config", "n_window", 99, "audio_config.n_window 99 must be even"),
    ("audio_config", "scale_embedding", True, "audio_config.scale_embedding is True"),
    (None, "tie_word_embeddings", True, "tie_word_embeddings is True"),
    (None, "video_token_index", 5000, "video_token_id 5000 is outside text_config.vocab_size 2048"),
]


@pytest.mark.parametrize(("section", "name", "value", "text"), CONTRADICTIONS)
def test_contradiction_is_named(section, name, value, text):
    raw = to_hf(tiny(), "float32")
    (raw[section] if section else raw)[name] = value
    with pytest.raises(UserError, match=text) as error:
        from_hf(raw, "some/config.json")
    assert str(error.value).startswith("some/config.json: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [tiny, mid, omni_3b, omni_7b])
def test_transformers_reads_the_same_values(make):
    transformers = pytest.importorskip("transformers")
    config = make()
    raw = to_hf(config, "bfloat16")
    theirs = transformers.Qwen2_5OmniThinkerConfig.from_dict(copy.deepcopy(raw))
    renamed = {
        "in_channels": "in_channels",
        "mrope_section": None,
        "rope_theta": None,
        "head_dim": None,
    }
    for ours, section in (
        (config.text, "text_config"),
        (config.vision, "vision_config"),
        (config.audio, "audio_config"),
    ):
        for name, value in dataclasses.asdict(ours).items():
            name = renamed.get(name, name)
            if name is not None:
                found = getattr(getattr(theirs, section), name)
                assert (tuple(found) if isinstance(found, list) else found) == value, (
                    section,
                    name,
                )
    rope = theirs.text_config.rope_parameters
    assert (rope["rope_theta"], tuple(rope["mrope_section"])) == (
        config.text.rope_theta,
        config.text.mrope_section,
    )
    for name in ("position_id_per_seconds", "seconds_per_chunk"):
        assert getattr(theirs, name) == getattr(config, name)
    for name, value in dataclasses.asdict(config.tokens).items():
        assert getattr(theirs, name) == value, name
    assert not theirs.tie_word_embeddings
    assert str(theirs.dtype).endswith("bfloat16")
    assert (
        from_hf(json.loads(theirs.to_json_string(use_diff=False))) == config
    )  # and we read what they write
