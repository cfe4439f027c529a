"""ugc_jax.models.int8: weights and caches of half the bytes, to generate with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ugc_jax import cli
from ugc_jax.errors import UserError
from ugc_jax.generate import decode
from ugc_jax.generate.captioner import Captioner
from ugc_jax.generate.engine import place_bytes
from ugc_jax.generate.settings import EngineConfig, SamplingConfig
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models import attention
from ugc_jax.models.compute import Compute
from ugc_jax.models.int8 import quantize, quantized
from ugc_jax.models.layers import Linear
from ugc_jax.models.params import leaves
from ugc_jax.models.qwen2_5_omni import decoder, thinker
from ugc_jax.models.qwen2_5_omni.config import tiny
from ugc_jax.sharding import make_mesh

INT8 = dict(weights="int8", cache="int8")
SIZES = dict(frames=4, min_pixels=784, max_pixels=12544, max_new_tokens=20)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dequantized(values, scale, axis: int = -1) -> np.ndarray:
    return np.asarray(values, np.float32) * np.expand_dims(np.asarray(scale), axis)


@pytest.mark.parametrize("axis", [-1, -2])
def test_the_error_is_half_a_step(axis):
    x = noise(3, 8, 16) * 10.0 ** np.arange(-3, 5)[:, None]
    x[1, 2] = 0
    values, scale = quantize(x, axis)
    assert (values.dtype, scale.dtype, scale.shape) == (jnp.int8, jnp.float32, x.max(axis).shape)
    steps = np.expand_dims(np.asarray(scale), axis)
    assert (np.abs(dequantized(values, scale, axis) - x) <= 0.5001 * steps).all()
    assert np.abs(values).max() == 127
    np.testing.assert_allclose(np.abs(x).max(axis), np.where(scale == 1, 0, scale * 127), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_linear_multiplies_by_the_scale_at_its_end(dtype):
    x, weight, bias = noise(5, 3, 64).astype(dtype), noise(32, 64, seed=1), noise(32, seed=2)
    values, scale = quantize(weight)
    layer = Linear(32, ("mlp", "embed"))

    def result(params):
        return layer.apply({"params": params | {"bias": bias}}, x).astype(np.float32)

    ours = result({"weight": values, "scale": scale})
    exact = x.astype(np.float64) @ dequantized(values, scale).astype(np.float64).T + bias
    tolerance = 1e-4 if dtype == "float32" else 0.02 * np.abs(exact).max()
    np.testing.assert_allclose(ours, exact, atol=tolerance)
    assert np.abs(ours - result({"weight": weight})).max() > 0  # it is another weight


def test_attention_with_caches_in_int8():
    """Two prompts, three samples of each, two query heads a key head; as of the same numbers."""
    B, G, K, T, H, S, N = 2, 3, 2, 2, 16, 24, 8
    q = noise(B * G, K * T, H)
    cache = decoder.Cache(noise(B, K, H, S, seed=1), noise(B, K, S, H, seed=2))
    own = decoder.Cache(noise(B, K, G, H, N, seed=3), noise(B, K, G, N, H, seed=4))
    masks = np.arange(S) < np.array([[S], [9]]), np.arange(N) < np.arange(6).reshape(B, G, 1)
    new = noise(B, K, G, H, 1, seed=5), noise(B, K, G, 1, H, seed=6), None
    small, plain = [], []
    for one, mask in zip((cache, own), masks, strict=True):
        k, v, k_scale, v_scale = decoder._quantized(one)
        small.append((k, v, mask, k_scale, v_scale))
        plain.append((dequantized(k, k_scale, -2), dequantized(v, v_scale, -1), mask))
    ours = attention.cached_attention(q, small[0], [small[1], new])
    exact = attention.cached_attention(q, plain[0], [plain[1], new])
    np.testing.assert_allclose(ours, exact, atol=2e-5)


@pytest.fixture(scope="module")
def captioner(tiny_checkpoint):
    return Captioner.from_pretrained(tiny_checkpoint, **INT8)


def test_the_matrices_of_a_step_are_in_int8_and_no_other(captioner, tiny_captioner):
    held = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(captioner.params)
    }
    small = {path for path, leaf in held.items() if leaf.dtype == jnp.int8}
    assert len(small) == 4 * captioner.config.text.num_hidden_layers + 1
    assert all("['layers']" in path or "lm_head" in path for path in small)
    assert not [path for path in small if "norm" in path]
    layer, exact = (one.params["model"]["layers"][1] for one in (captioner, tiny_captioner))
    for block, name in (("self_attn", "qkv_proj"), ("mlp", "down_proj")):
        ours, theirs = layer[block][name], exact[block][name]["weight"]
        step = np.abs(theirs).max(-1) / 127
        np.testing.assert_allclose(ours["scale"], step, rtol=1e-6)
        error = np.abs(dequantized(ours["weight"], ours["scale"]) - theirs)
        assert (error <= 0.5001 * step[:, None]).all()


def test_captions_do_not_depend_on_the_neighbours(captioner, clips):
    """As without int8; also of prompts that begin alike."""
    a, b, asked = clips / "a.mp4", clips / "b.mp4", ["What?", "Who?"]
    together = captioner.caption([a, b], question="What?", **SIZES)
    (alone,) = captioner.caption([a], question="What?", **SIZES)
    assert together[0].token_ids == alone.token_ids != together[1].token_ids
    clip, sampling = captioner.defaults.apply(
        ClipSettings(**{name: SIZES[name] for name in SIZES if name != "max_new_tokens"}),
        SamplingConfig(max_new_tokens=20),
    )
    answers = dict(captioner.answer({str(a): asked}, clip, sampling, EngineConfig()))
    assert answers["What?"].token_ids == alone.token_ids


def test_on_a_mesh(captioner, tiny_checkpoint, clips):
    mesh = make_mesh(2, 2, 2)
    split = Captioner.from_pretrained(tiny_checkpoint, mesh=mesh, **INT8)
    up = split.params["model"]["layers"][0]["mlp"]["up_proj"]
    assert tuple(up["weight"].sharding.spec) == ("tensor", "fsdp")
    assert tuple(up["scale"].sharding.spec) == ("tensor",)
    paths, how = [clips / "a.mp4", clips / "b.mp4"], dict(question="What?", **SIZES)
    ours, theirs = (one.caption(paths, **how) for one in (split, captioner))
    assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]


def test_the_bytes_of_a_place():
    """As the arrays are."""
    config = tiny()
    for cache in ("auto", "int8"):
        compute = Compute("bfloat16", cache=cache)
        state = jax.eval_shape(
            lambda c=compute: decode.empty_state(config, c, 1, 2, 128, 64, False, True)
        )
        held = sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.prompt, state.own))
        )
        logits = 2 * config.text.vocab_size * 4 * 3
        assert place_bytes(config, 128, 64, 2, "bfloat16", cache) == held + logits


def test_shapes_are_converted_as_arrays_are():
    (leaf,) = (
        one
        for one in leaves(thinker.declare(tiny()))
        if one.path[-2] == "up_proj" and one.path[0] == "model"
    )
    assert thinker.is_decoding_matrix(leaf)
    weight = jnp.asarray(noise(*leaf.shape))
    shape = jax.ShapeDtypeStruct(weight.shape, weight.dtype, sharding=weight.sharding)
    for array, told in zip(quantized(weight), quantized(shape), strict=True):
        assert (array.shape, array.dtype, array.sharding) == (told.shape, told.dtype, told.sharding)


def test_training_refuses_it():
    for job, words in (
        ("sft", ["--config", "sft_3b"]), ("grpo", ["--config", "grpo_3b"]),
        ("plan", ["--config", "sft_3b", "--topology", "v5e:4x4"]),
    ):  # fmt: skip
        for name in ("weights", "cache"):
            with pytest.raises(
                UserError, match=rf"compute\.{name}=int8 is for generation, and tra"
            ):
                cli.load_job(job).SETTINGS.parse([*words, f"--compute.{name}", "int8"])
    with pytest.raises(UserError, match="select, which runs the encoders alone, has no use for it"):
        cli.load_job("select").SETTINGS.parse(
            ["--count", "1", "--output", "o", "--compute.weights", "int8"]
        )
