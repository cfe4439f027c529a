"""ugc_jax.hf.trained: what a checkpoint was trained on, and which weights it has."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from ugc_jax.errors import UserError
from ugc_jax.hf.trained import Trained, read_trained, weights_digest, write_trained
from ugc_jax.media.presets import ClipSettings, resolve

CLIP = Trained(resolve(ClipSettings(fps=1.0, question="Was ist zu hören?")), {"top_k": 3})


def test_round_trip(tmp_path):
    assert read_trained(tmp_path) is None
    write_trained(tmp_path, CLIP)
    assert read_trained(tmp_path) == CLIP


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as JSON"),
        ("{}", 'has no valid "clip"'),
        ('{"clip": {"fsp": 2}}', "unexpected keyword argument 'fsp'"),
        ('{"clip": {"fps": -1}}', "fps must be a positive number"),
        ('{"clip": {"audio": "no"}}', "audio: expected true|false|none, got 'no'"),
        ('{"clip": {"system": 5}}', "system: expected TEXT|none, got 5"),
    ],
)
def test_something_else_is_refused(content, message, tmp_path):
    (tmp_path / "captioner.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_trained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'captioner.json'}: ")
    assert str(caught.value).endswith("copy the file again, or remove it to use presets")


def test_transformers_ignores_the_file(tiny_checkpoint, tmp_path):
    transformers = pytest.importorskip("transformers")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_checkpoint / name).read_bytes())
    write_trained(tmp_path, CLIP)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.model_type == json.loads((tmp_path / "config.json").read_text())["model_type"]


def test_digest_is_of_the_weights_alone(tmp_path):
    tensors = {name: np.zeros((300, 999), np.float32) for name in "abc"}
    before = digest(tmp_path, tensors)
    (tmp_path / "README.md").write_text("a")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "lock").write_text("a")
    write_trained(tmp_path, CLIP)
    assert weights_digest(tmp_path) == before
    for name in tensors:  # one that was trained is enough
        assert digest(tmp_path, tensors | {name: tensors[name] + 1}) != before
    assert digest(tmp_path, {"a": tensors["a"]}) != before


def digest(folder, tensors):
    save_file(tensors, folder / "model.safetensors")
    return weights_digest(folder)


def test_digest_of_other_files_samples_them(tmp_path):
    (tmp_path / "params").mkdir()
    weights = tmp_path / "params" / "d"
    weights.write_bytes(bytes(50_000))
    before = weights_digest(tmp_path)
    for place in (0, 25_000, 49_999):
        changed = bytearray(50_000)
        changed[place] = 1
        weights.write_bytes(changed)
        assert weights_digest(tmp_path) != before
    weights.write_bytes(bytes(50_001))
    assert weights_digest(tmp_path) != before
