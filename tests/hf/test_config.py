"""A checkpoint's config.json: read as its family has it; what cannot be read is named."""

import json
import re

import pytest

from ugc_jax.errors import UserError
from ugc_jax.hf.config import FAMILIES, load_config
from ugc_jax.models.qwen2_5_omni.config import SIZES
from ugc_jax.models.qwen2_5_omni.hf_config import to_hf


@pytest.mark.parametrize("size", SIZES)
def test_full_and_thinker_only(size, tmp_path):
    config = SIZES[size]()
    thinker = to_hf(config, "bfloat16")
    full = {"model_type": "qwen2_5_omni", "thinker_config": thinker, "talker_config": {}}
    for content in (thinker, full):
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert load_config(tmp_path) == config


@pytest.mark.parametrize("kind", ["qwen2_vl", None, ["qwen2_5_omni"], {"a": 1}])
def test_unknown_family(tmp_path, kind):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UserError, match=re.escape(f"model_type is {kind!r}; give")) as error:
        load_config(tmp_path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert all(repr(known) in str(error.value) for known in FAMILIES)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "no such file"),
        (b"{", "not readable as JSON"),
        (b"\xff\xfe{}", "cannot be read .not UTF-8 text."),
        (b"[]", "expected a JSON object"),
    ],
)
def test_unreadable_file(tmp_path, content, text):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=text) as error:
        load_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)
