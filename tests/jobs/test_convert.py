"""`ugc-jax convert`: every form into every other and back, bit for bit."""

import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from fake_checkpoints import write_full

from ugc_jax.errors import UserError
from ugc_jax.hf import mapping
from ugc_jax.hf.adapter import save_adapter
from ugc_jax.hf.card import BEGIN, END
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.hf.config import load_config
from ugc_jax.hf.trained import Trained, read_trained, write_trained
from ugc_jax.jobs import convert, init
from ugc_jax.jobs.convert import ConvertConfig
from ugc_jax.jobs.init import InitConfig
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models import lora
from ugc_jax.models.params import tensors
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import tiny

CONFIG = tiny()


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """(directory, tensors) of a full checkpoint in bfloat16."""
    folder = tmp_path_factory.mktemp("full") / "base"
    return folder, write_full(folder, CONFIG)


def run(checkpoint, output, **fields) -> None:
    assert (
        convert.main(ConvertConfig(checkpoint=str(checkpoint), output=str(output), **fields), [])
        == 0
    )


def assert_holds(folder, values, dtype=ml_dtypes.bfloat16):
    params = load_params(folder, CONFIG)
    for tensor in tensors(thinker.declare(CONFIG)):
        expected = values["thinker." + tensor.name].astype(dtype)
        actual = mapping.read_tensor(params, tensor)
        assert actual.dtype == expected.dtype
        assert actual.tobytes() == expected.tobytes(), tensor.name


def test_chain_of_all_forms(full, tmp_path):
    base, values = full
    run(base, tmp_path / "orbax", to="orbax")
    run(tmp_path / "orbax", tmp_path / "thinker", to="thinker")
    run(tmp_path / "thinker", tmp_path / "merged", to="merged", base=str(base))
    run(tmp_path / "orbax", tmp_path / "full", to="full")
    run(tmp_path / "full", tmp_path / "back", to="thinker")
    for name in ("orbax", "thinker", "merged", "full", "back"):
        assert_holds(tmp_path / name, values)
        assert load_config(tmp_path / name) == CONFIG
        assert (tmp_path / name / "tokenizer_config.json").exists()
    for path in base.rglob("*"):
        if path.is_file() and ".safetensors" not in path.name:
            assert (
                tmp_path / "merged" / path.relative_to(base)
            ).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("to", ["thinker", "full", "orbax"])
def test_dtype(full, tmp_path, to):
    base, values = full
    run(base, tmp_path / "wide", to=to, dtype="float32")
    assert_holds(tmp_path / "wide", values, np.float32)
    assert load_config(tmp_path / "wide") == CONFIG


@pytest.mark.parametrize("to", ["thinker", "full"])
def test_an_adapter_is_merged(full, tmp_path, to):
    settings = lora.LoraConfig(rank=2, alpha=3.0, targets="q_proj,down_proj")
    adapter = lora.init(CONFIG, settings, jax.random.key(0))
    adapter = jax.tree.map(lambda leaf: leaf + 0.1, adapter)
    save_adapter(adapter, CONFIG, settings, tmp_path / "adapter")
    run(full[0], tmp_path / "model", to=to, dtype="float32", adapter=str(tmp_path / "adapter"))
    made = load_params(tmp_path / "model", CONFIG)
    expected = lora.merge(load_params(full[0], CONFIG, "float32"), adapter, settings)
    jax.tree.map(np.testing.assert_array_equal, made, expected)


def trained(question):
    return Trained(resolve(ClipSettings(question=question)))


@pytest.mark.parametrize("to", ["thinker", "full", "orbax", "merged"])
def test_what_a_model_was_trained_on_goes_with_its_thinker(full, tmp_path, to):
    base = {"base": str(shutil.copytree(full[0], tmp_path / "base"))} if to == "merged" else {}
    source = shutil.copytree(full[0], tmp_path / "source")
    if base:
        write_trained(tmp_path / "base", trained("Of the base?"))
    run(source, tmp_path / "unknown", to=to, **base)
    assert read_trained(tmp_path / "unknown") is None
    write_trained(source, trained("Of the source?"))
    run(source, tmp_path / "known", to=to, **base)
    assert read_trained(tmp_path / "known") == trained("Of the source?")
    settings = lora.LoraConfig(rank=2, targets="q_proj")
    adapter = lora.init(CONFIG, settings, jax.random.key(0))
    place = tmp_path / "adapter"
    save_adapter(adapter, CONFIG, settings, place, trained=trained("Of the adapter?"))
    run(source, tmp_path / "adapted", to=to, adapter=str(place), **base)
    assert read_trained(tmp_path / "adapted") == trained("Of the adapter?")


def test_a_published_captioner_stays_one(full, tmp_path):
    source = shutil.copytree(full[0], tmp_path / "UGC-VideoCaptioner")
    run(source, tmp_path / "copy")
    assert read_trained(tmp_path / "copy").clip.preset == "upstream"
    assert read_trained(tmp_path / "copy").sampling == {"temperature": 0.2, "max_new_tokens": 1024}


def test_overwrite(full, tmp_path):
    init.main(InitConfig(output=str(tmp_path / "out")), [])
    with pytest.raises(UserError, match="is not empty"):
        run(full[0], tmp_path / "out")
    run(full[0], tmp_path / "out", overwrite=True)
    assert_holds(tmp_path / "out", full[1])


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"to": "merged"}, "to=merged needs base"),
        ({"to": "merged", "base": "x", "dtype": "float32"}, "to=merged keeps the dtypes of base"),
        ({"to": "thinker", "base": "x"}, "base is for to=merged, not for to=thinker"),
        ({"to": "full", "base": "x"}, "base is for to=merged, not for to=full"),
        ({"checkpoint": "no/such/place"}, "no such directory"),
        ({"output": ""}, "output is empty"),
    ],
)
def test_refusals(full, tmp_path, fields, text):
    with pytest.raises(UserError, match=text):
        run(**{"checkpoint": full[0], "output": tmp_path / "out"} | fields)
    assert not list(tmp_path.iterdir())


def test_the_model_card_goes_along(full, tmp_path):
    """With the user's own text; one that is none of ours as it is, but not beside an adapter."""
    base, _ = full
    shutil.copytree(base, tmp_path / "base")
    run(tmp_path / "base", tmp_path / "thinker")
    card = tmp_path / "thinker/README.md"
    assert BEGIN in card.read_text()
    card.write_text(card.read_text() + "Mine.\n")
    run(tmp_path / "thinker", tmp_path / "orbax", to="orbax")
    run(tmp_path / "orbax", tmp_path / "again")
    assert (tmp_path / "again/README.md").read_text() == card.read_text()
    run(tmp_path / "base", tmp_path / "again", overwrite=True)
    assert (tmp_path / "again/README.md").read_text().endswith(END + "\nMine.\n")
    (tmp_path / "base/README.md").write_text("Theirs.")
    run(tmp_path / "base", tmp_path / "full", to="full")
    assert (tmp_path / "full/README.md").read_text() == "Theirs."
