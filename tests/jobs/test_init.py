"""`ugc-jax init`: a checkpoint that loads, with reproducible weights and a fitting tokenizer."""

import dataclasses

import numpy as np
import pytest

from ugc_jax.errors import UserError
from ugc_jax.hf import mapping
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.hf.config import load_config
from ugc_jax.hf.random_weights import random_tensor
from ugc_jax.hf.tokenizer import build_tokenizer, load_tokenizer, special_token_ids
from ugc_jax.jobs import init
from ugc_jax.jobs.init import InitConfig
from ugc_jax.models.params import tensors
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import tiny
from ugc_jax.toy import corpus


def test_tiny(tmp_path):
    assert init.main(InitConfig(output=str(tmp_path / "a"), dtype="bfloat16"), []) == 0
    assert load_config(tmp_path / "a") == tiny()
    assert special_token_ids(load_tokenizer(tmp_path / "a"), "a") == tiny().tokens
    params = load_params(tmp_path / "a", tiny())
    for tensor in tensors(thinker.declare(tiny())):
        values = mapping.read_tensor(params, tensor)
        assert values.dtype.name == "bfloat16"
        values = values.astype(np.float32)
        if tensor.path[-1] == "weight" and values.ndim == 1:
            assert np.all(values == 1), tensor.name
            continue
        # Biases, too, are not zero: a model that forgets one is caught.
        small = tensor.path[-1] == "bias" or "embed_tokens" in tensor.path
        small |= "audio_bos_eos_token" in tensor.path
        deviation = 0.02 if small else np.prod(tensor.shape[1:]) ** -0.5
        assert 0.6 * deviation < values.std() < 1.4 * deviation, tensor.name
        assert len(np.unique(values)) > min(values.size, 256) / 2


def test_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        init.main(InitConfig(output=str(tmp_path / name), seed=seed), [])
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_tensors_are_different():
    table = tensors(thinker.declare(tiny()))
    firsts = {random_tensor(tensor, 0).flat[0] for tensor in table} - {1.0}
    norms = sum("norm" in e.name or "ln_" in e.name for e in table if e.name.endswith("weight"))
    assert len(firsts) == len(table) - norms


def test_existing_tokenizer(tmp_path, shared_data):
    init.main(InitConfig(output=str(tmp_path / "a"), tokenizer=str(shared_data / "tokenizer")), [])
    config = load_config(tmp_path / "a")
    assert config.text.vocab_size == 151680  # 151665 tokens, rounded up to a multiple of 128
    assert config.tokens.video_token_id == 151656
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (
        shared_data / "tokenizer" / "tokenizer.json"
    ).read_bytes()
    assert load_params(tmp_path / "a", config)["lm_head"]["weight"].shape == (151680, 64)


def test_own_tokenizer_gives_the_same_ids(tmp_path):
    build_tokenizer(tiny(), corpus.LINES, tmp_path)
    init.main(InitConfig(output=str(tmp_path / "a"), tokenizer=str(tmp_path)), [])
    assert load_config(tmp_path / "a") == tiny()


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="seed is -1; use 0 or more"):
        init.main(InitConfig(output=str(tmp_path / "a"), seed=-1), [])
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        init.main(InitConfig(output=str(tmp_path)), [])
    with pytest.raises(UserError, match="output is empty"):
        init.main(InitConfig(output=""), [])
    with pytest.raises(UserError, match="holds neither tokenizer.json"):
        init.main(InitConfig(output=str(tmp_path / "a"), tokenizer=str(tmp_path)), [])
    assert not (tmp_path / "a").exists()


def test_overwrite(tmp_path):
    config = InitConfig(output=str(tmp_path / "a"))
    init.main(config, [])
    init.main(dataclasses.replace(config, overwrite=True, dtype="bfloat16"), [])
    assert load_params(tmp_path / "a", tiny())["lm_head"]["weight"].dtype.name == "bfloat16"


def test_transformers_loads_it(tmp_path):
    pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers").Qwen2_5OmniThinkerForConditionalGeneration
    init.main(InitConfig(output=str(tmp_path / "a")), [])
    _, report = theirs.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(report.values()), report
