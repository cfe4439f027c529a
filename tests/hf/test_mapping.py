"""The names of a checkpoint's tensors, transformers' among them; reading a tensor out of a tree."""

import jax.numpy as jnp
import numpy as np
import pytest

from ugc_jax.hf import mapping
from ugc_jax.models.params import build_tree, leaves, tensors
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import tiny
from ugc_jax.models.qwen2_5_omni.hf_config import to_hf


@pytest.mark.parametrize("stacked", [True, False])
def test_read_tensor_finds_what_each_entry_names(stacked):
    declared = thinker.declare(tiny())
    table = tensors(declared)
    number = {tensor.name: i for i, tensor in enumerate(table)}
    items = []
    for leaf in leaves(declared, stacked):
        rows = [np.full(tensor.shape, number[tensor.name], np.int32) for tensor in leaf.tensors]
        items.append((leaf.path, jnp.stack(rows) if leaf.is_stacked else jnp.asarray(rows[0])))
    params = build_tree(items)
    for tensor in table:
        values = mapping.read_tensor(params, tensor)
        assert values.shape == tensor.shape
        assert np.all(values == number[tensor.name]), tensor.name


@pytest.mark.parametrize(
    ("stored", "canonical"),
    [
        ("thinker.model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
        ("model.language_model.norm.weight", "model.norm.weight"),
        ("thinker.model.language_model.norm.weight", "model.norm.weight"),
        ("model.visual.merger.ln_q.weight", "visual.merger.ln_q.weight"),
        ("model.audio_tower.proj.bias", "audio_tower.proj.bias"),
        ("lm_head.weight", "lm_head.weight"),
        ("talker.model.norm.weight", None),
        ("token2wav.code2wav_dit_model.x", None),
        ("surprise.weight", "surprise.weight"),
    ],
)
def test_canonical_name(stored, canonical):
    assert mapping.canonical_name(stored) == canonical


def test_module_names_come_back():
    for tensor in tensors(thinker.declare(tiny())):
        assert mapping.canonical_name(mapping.module_name(tensor.name)) == tensor.name
    assert mapping.module_name("model.norm.weight") == "model.language_model.norm.weight"
    assert mapping.module_name("lm_head.weight") == "lm_head.weight"


def test_names_and_shapes_are_those_of_transformers(tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from safetensors import safe_open

    config = tiny()
    model = transformers.Qwen2_5OmniThinkerForConditionalGeneration(
        transformers.Qwen2_5OmniThinkerConfig(**to_hf(config, "float32"))
    )
    table = {tensor.name: tensor.shape for tensor in tensors(thinker.declare(config))}
    modules = {
        mapping.canonical_name(name): tuple(value.shape)
        for name, value in model.state_dict().items()
    }
    assert modules == table
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == table  # noqa: SIM118
