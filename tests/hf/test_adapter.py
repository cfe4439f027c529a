"""A LoRA adapter alone: saved, it comes back; what cannot be read as one is refused."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ugc_jax.errors import UserError
from ugc_jax.hf import mapping
from ugc_jax.hf.adapter import WEIGHTS, load_adapter, save_adapter
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.hf.export import ADAPTER_CONFIG
from ugc_jax.hf.tensorfile import Part, TensorFile, array_output, write_tensors
from ugc_jax.jobs import init
from ugc_jax.jobs.init import InitConfig
from ugc_jax.models import lora
from ugc_jax.models.params import tensors
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import tiny

CONFIG = tiny()
SETTINGS = lora.LoraConfig(rank=3, alpha=6.0, targets="down_proj,q_proj")


@pytest.fixture
def adapter():
    rng = np.random.default_rng(0)
    start = lora.init(CONFIG, SETTINGS, jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape).astype("f4"), start)


@pytest.fixture
def saved(adapter, tmp_path):
    save_adapter(adapter, CONFIG, SETTINGS, tmp_path / "adapter", base="Qwen/Qwen2.5-Omni-3B")
    return tmp_path / "adapter"


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_round_trip(saved, adapter):
    ours, settings = load_adapter(saved, CONFIG)
    assert settings == SETTINGS
    assert_equal(ours, adapter)


def test_names_of_peft(saved):
    names = TensorFile(saved / WEIGHTS).headers
    layer = "base_model.model.model.language_model.layers.1"
    assert names[f"{layer}.self_attn.q_proj.lora_A.weight"].shape == (3, 64)
    assert names[f"{layer}.mlp.down_proj.lora_B.weight"].shape == (64, 3)
    content = json.loads((saved / ADAPTER_CONFIG).read_text())
    assert content["base_model_name_or_path"] == "Qwen/Qwen2.5-Omni-3B"
    assert (content["r"], content["lora_alpha"]) == (3, 6.0)
    wrapped = {name.removeprefix("base_model.model.").rsplit(".", 2)[0] for name in names}
    assert all(re.fullmatch(content["target_modules"], name) for name in wrapped)
    for other in ("model.audio_tower.layers.0.self_attn.q_proj", "audio_tower.layers.0.fc1"):
        assert not re.fullmatch(content["target_modules"], other)


def test_peft_merges_it_into_the_same_weights(saved, adapter, tmp_path):
    peft = pytest.importorskip("peft")
    theirs = pytest.importorskip("transformers").Qwen2_5OmniThinkerForConditionalGeneration
    init.main(InitConfig(output=str(tmp_path / "base")), [])
    base = theirs.from_pretrained(tmp_path / "base", dtype="float32")
    merged = peft.PeftModel.from_pretrained(base, saved).merge_and_unload().state_dict()
    weights = {mapping.canonical_name(name): value.numpy() for name, value in merged.items()}
    params = load_params(tmp_path / "base", CONFIG)
    ours = lora.merge(params, adapter, SETTINGS)
    changed, differences = 0, []
    for tensor in tensors(thinker.declare(CONFIG)):
        before, after = (mapping.read_tensor(tree, tensor) for tree in (params, ours))
        changed += not np.array_equal(before, after)
        differences.append(np.abs(weights[tensor.name] - after).max())
    print(f"largest difference from peft {peft.__version__}: {np.max(differences):.1e}")
    assert changed == 2 * CONFIG.text.num_hidden_layers
    assert np.max(differences) < 1e-6


def test_bfloat16_and_overwriting(saved, adapter):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), adapter)
    with pytest.raises(UserError, match="is not empty"):
        save_adapter(half, CONFIG, SETTINGS, saved)
    save_adapter(half, CONFIG, SETTINGS, saved, overwrite=True)
    assert {header.code for header in TensorFile(saved / WEIGHTS).headers.values()} == {"BF16"}
    assert_equal(load_adapter(saved, CONFIG)[0], jax.tree.map(np.float32, half))


@pytest.mark.parametrize("prefix", ["base_model.model.model.", "base_model.model.thinker.model."])
def test_other_names(saved, adapter, prefix):
    rename(saved, lambda name: name.replace("base_model.model.model.language_model.", prefix))
    assert_equal(load_adapter(saved, CONFIG)[0], adapter)


def rename(folder, change):
    """Write the tensors again, called `change(name)`; without those that it calls ""."""
    file = TensorFile(folder / WEIGHTS)
    outputs = []
    for name, header in file.headers.items():
        array = np.empty(header.shape, np.float32)
        file.read(name, [Part(array)])
        if change(name):
            outputs.append(
                array_output(change(name), array.shape, array.dtype, lambda array=array: array)
            )
    write_tensors(folder / WEIGHTS, outputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_rslora": True}, "use_rslora is True; only False can be read"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"alpha_pattern": {"q_proj": 1}}, "alpha_pattern is"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"r": None}, "r is None, lora_alpha 6.0"),
        ({"lora_alpha": -1}, "r is 3, lora_alpha -1"),
        ({"r": 4}, r"lora_A.weight is F32\[3, \d+\], not a float of \[4, \d+\]"),
    ],
)
def test_config_of_another_kind(saved, change, message):
    content = json.loads((saved / ADAPTER_CONFIG).read_text())
    (saved / ADAPTER_CONFIG).write_text(json.dumps(content | change))
    with pytest.raises(UserError, match=message):
        load_adapter(saved, CONFIG)


def test_tensors_of_another_model(saved):
    missing = "layers.1.self_attn.q_proj.lora_B.weight"
    rename(saved, lambda name: "" if name.endswith(missing) else name)
    with pytest.raises(UserError, match=f"{WEIGHTS}: model.{missing} is missing"):
        load_adapter(saved, CONFIG)
    rename(saved, lambda name: name.replace("language_model.layers", "visual.blocks"))
    with pytest.raises(UserError, match="visual.blocks.*is not of the decoder's linears"):
        load_adapter(saved, CONFIG)
    rename(saved, lambda name: "")
    with pytest.raises(UserError, match="holds no tensors"):
        load_adapter(saved, CONFIG)
    (saved / ADAPTER_CONFIG).unlink()
    with pytest.raises(UserError, match="no such file; give an adapter's folder"):
        load_adapter(saved, CONFIG)
