"""The table of names: counts of spec section 0, transformers' names, and that it is invertible."""

import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ugc_jax.hf import mapping
from ugc_jax.hf.config import to_hf
from ugc_jax.models.qwen2_5_omni.config import omni_3b, omni_7b, tiny


def test_3b_has_the_published_counts():
    table = mapping.entries(omni_3b())
    counts = Counter()
    sizes = Counter()
    for entry in table:
        part = entry.hf_name.split(".")[0]
        counts[part] += 1
        sizes[part] += math.prod(entry.shape)
    assert counts == {"model": 434, "visual": 518, "audio_tower": 489, "lm_head": 1}
    assert sizes == {
        "model": 3_085_938_688,
        "lm_head": 311_164_928,
        "visual": 668_684_288,
        "audio_tower": 637_676_544,
    }
    assert len(table) == 1442
    assert sum(sizes.values()) == 4_703_464_448


@pytest.mark.parametrize("make", [tiny, omni_3b, omni_7b])
@pytest.mark.parametrize("stacked", [True, False])
def test_abstract_params_hold_every_tensor_once(make, stacked):
    config = make()
    params = mapping.abstract_params(config, np.float32, stacked)
    table = mapping.entries(config)
    assert len({entry.hf_name for entry in table}) == len(table)
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert total == sum(math.prod(entry.shape) for entry in table)
    for leaf in mapping.leaves(config, stacked):
        assert mapping.get_leaf(params, leaf.path).shape == leaf.shape
    layers = params["model"]["layers"]
    expected = (config.text.hidden_size, config.text.intermediate_size)
    if stacked:
        shape = layers["mlp"]["down_proj"]["weight"].shape
        assert shape == (config.text.num_hidden_layers, *expected)
    else:
        assert isinstance(layers, tuple)
        assert len(layers) == config.text.num_hidden_layers
        assert layers[-1]["mlp"]["down_proj"]["weight"].shape == expected


@pytest.mark.parametrize("stacked", [True, False])
def test_read_tensor_finds_what_each_entry_names(stacked):
    config = tiny()
    table = mapping.entries(config)
    number = {entry.hf_name: i for i, entry in enumerate(table)}
    items = []
    for leaf in mapping.leaves(config, stacked):
        rows = [np.full(entry.shape, number[entry.hf_name], np.int32) for entry in leaf.entries]
        items.append((leaf.path, jnp.stack(rows) if leaf.is_stack else jnp.asarray(rows[0])))
    params = mapping.build_tree(items)
    for entry in table:
        tensor = mapping.read_tensor(params, entry)
        assert tensor.shape == entry.shape
        assert np.all(tensor == number[entry.hf_name]), entry.hf_name


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


def test_names_and_shapes_are_those_of_transformers(tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from safetensors import safe_open

    config = tiny()
    model = transformers.Qwen2_5OmniThinkerForConditionalGeneration(
        transformers.Qwen2_5OmniThinkerConfig(**to_hf(config, "float32"))
    )
    table = {entry.hf_name: entry.shape for entry in mapping.entries(config)}
    modules = {
        mapping.canonical_name(name): tuple(value.shape)
        for name, value in model.state_dict().items()
    }
    assert modules == table
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == table  # noqa: SIM118
