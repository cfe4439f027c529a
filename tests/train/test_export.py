"""ugc_jax.train.export: to where the files go, and an adapter's sums. (The rest: test_sft.py.)"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from etils import epath

from ugc_jax.hf.adapter import load_adapter
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.hf.trained import Trained
from ugc_jax.jobs import convert, init
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.compute import Compute
from ugc_jax.models.lora import LoraConfig
from ugc_jax.models.params import param_shardings
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import tiny
from ugc_jax.sharding import make_mesh
from ugc_jax.train import export
from ugc_jax.train.state import Setup, Trainable, create_state

CONFIG = tiny()
TRAINED = Trained(resolve(ClipSettings()))


def test_a_local_target_is_written_itself(tmp_path):
    with export._local(epath.Path(tmp_path / "model")) as folder:
        assert folder == tmp_path / "model"


def test_a_remote_target_gets_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "is_remote", lambda _: True)
    target = epath.Path(tmp_path / "model")
    for text in ("first", "second"):
        with export._local(target) as folder:
            folder.mkdir()
            assert folder != tmp_path / "model"
            (folder / "config.json").write_text(text)
        assert (tmp_path / "model" / "config.json").read_text() == text
    assert not folder.exists()


def wide(folder) -> dict[str, np.ndarray]:
    """The target weights of a checkpoint, in float64."""
    tree = load_params(folder, CONFIG)["model"]["layers"]
    linears = {"q_proj": tree["self_attn"]["q_proj"], "down_proj": tree["mlp"]["down_proj"]}
    return {name: np.asarray(one["weight"], np.float64) for name, one in linears.items()}


@pytest.fixture(params=["float32", "bfloat16", "orbax"], scope="module")
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / request.param
    dtype = "float32" if request.param == "orbax" else request.param
    assert init.main(init.InitConfig(output=str(folder), dtype=dtype), []) == 0
    if request.param == "orbax":
        store = folder.with_name("store")
        assert convert.main(convert.ConvertConfig(str(folder), str(store), "orbax"), []) == 0
        return store
    return folder


@pytest.mark.parametrize("master", ["float32", "bfloat16"])
def test_a_young_adapter_is_merged_in_float32_and_cast_once(base, tmp_path, master):
    """Its change is below a step of bfloat16 in nearly all weights, and computation is bfloat16."""
    setup = Setup(
        CONFIG,
        make_mesh(1, 2, 2, jax.devices()[:4]),
        compute=Compute("bfloat16"),
        trainable=Trainable(decoder=False, embeddings=False),
        lora=LoraConfig(rank=2, alpha=3.0, targets="q_proj,down_proj"),
        master=master,
    )
    split = param_shardings(thinker.declare(CONFIG), setup.mesh)
    state = create_state(load_params(base, CONFIG, "bfloat16", shardings=split), setup)
    noise = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + jnp.array(1e-4 * noise.standard_normal(leaf.shape), leaf.dtype),
        state.params,
    )
    state = state._replace(params=params)
    before, made = wide(base), {}
    for dtype in ("float32", "bfloat16"):
        export.export(state, setup, tmp_path / dtype, base, dtype, TRAINED)
        made[dtype] = wide(tmp_path / dtype / "model")
    adapter, settings = load_adapter(tmp_path / "float32" / "adapter", CONFIG)
    layers = adapter["model"]["layers"]
    for name, pair in (
        ("q_proj", layers["self_attn"]["q_proj"]),
        ("down_proj", layers["mlp"]["down_proj"]),
    ):
        a, b = (np.asarray(pair[leaf], np.float64) for leaf in ("lora_a", "lora_b"))
        change = settings.scale * b @ a
        assert 0 < np.abs(change).max() < 2**-9 * np.abs(before[name]).max()
        np.testing.assert_allclose(made["float32"][name], before[name] + change, rtol=0, atol=3e-8)
        once = made["float32"][name].astype(np.float32).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(made["bfloat16"][name], once.astype(np.float64))
    # `convert` merges the adapter into the same weights, whatever it writes.
    for to, dtype in (
        ("thinker", "float32"), ("thinker", "bfloat16"), ("orbax", "float32"), ("orbax", "bfloat16")
    ):  # fmt: skip
        target = tmp_path / f"{to}_{dtype}"
        config = convert.ConvertConfig(
            str(base), str(target), to, dtype=dtype, adapter=str(tmp_path / "float32" / "adapter")
        )
        assert convert.main(config, []) == 0
        for name, expected in made[dtype].items():
            np.testing.assert_allclose(wide(target)[name], expected, rtol=2e-7)


def test_frozen_weights_are_exported_as_they_were_stored(base, tmp_path):
    setup = Setup(CONFIG, make_mesh(1, 1, 1, jax.devices()[:1]), compute=Compute("bfloat16"))
    state = create_state(load_params(base, CONFIG), setup)
    export.export(state, setup, tmp_path, base, "float32", TRAINED)
    stored, made = (load_params(folder, CONFIG, "float32") for folder in (base, tmp_path / "model"))
    jax.tree.map(np.testing.assert_array_equal, stored["visual"], made["visual"])
