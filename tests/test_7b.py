"""The 7B's proportions at a tiny size: 28 heads on 4 key/value heads, widths no powers of two.

In contrast to the tiny and the 3B size, a mesh may split the query heads and not the key/value
heads, evenly or not at all, and the hidden width is no multiple of 64.
"""

import dataclasses
import functools
import json
from pathlib import Path

import cases
import fake_rollout as fake
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_training import FAST_COMPILE

from ugc_jax import cli, sharding
from ugc_jax.data.batching import BucketKey, collate
from ugc_jax.errors import UserError
from ugc_jax.generate.captioner import Captioner
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.hf.config import load_config
from ugc_jax.hf.export import save_thinker
from ugc_jax.hf.random_weights import write_random
from ugc_jax.jobs import sft
from ugc_jax.models import lora
from ugc_jax.models.compute import Compute
from ugc_jax.models.lora import LoraConfig
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig, omni_7b, tiny
from ugc_jax.rl import objective
from ugc_jax.rl.options import GrpoOptions
from ugc_jax.rl.rollout import Rollout, RolloutConfig
from ugc_jax.rl.settings import GrpoConfig
from ugc_jax.settings import Schema
from ugc_jax.sharding import MeshConfig
from ugc_jax.toy import corpus
from ugc_jax.train import step as steps
from ugc_jax.train.settings import SftConfig
from ugc_jax.train.state import Setup, Trainable, create_state

pytestmark = pytest.mark.usefixtures("highest_precision")

MESHES = [(1, 2, 4), (1, 1, 7)]  # 7 devices split the query heads, but not the key/value heads


def small_7b() -> OmniConfig:
    """28 heads of 8, 4 key/value heads, width 224, feed-forward width 592, vocabulary 2112."""
    large, base = omni_7b().text, cases.fewer_layers(tiny())
    width = 8 * large.num_attention_heads
    text = dataclasses.replace(
        base.text, vocab_size=2112, hidden_size=width, intermediate_size=592, head_dim=8,
        num_hidden_layers=1, num_attention_heads=large.num_attention_heads,
        num_key_value_heads=large.num_key_value_heads, mrope_section=(1, 1, 2),
    )  # fmt: skip
    return dataclasses.replace(
        base,
        text=text,
        vision=dataclasses.replace(base.vision, out_hidden_size=width),
        audio=dataclasses.replace(base.audio, output_dim=width),
    )


CONFIG = small_7b()
PARTS = [[3, ("video", 4, 84, 112, 150), 4, ("answer", 6)], [5, ("answer", 4)]]
ADAPTER = dict(
    trainable=Trainable(decoder=False, embeddings=False), lora=LoraConfig(rank=4, alpha=8.0)
)


def setup(mesh=(1, 1, 1), **changes) -> Setup:
    devices = jax.devices()[: int(np.prod(mesh))]
    everything = Trainable(vision=True, audio=True, projector=True)
    mesh = sharding.make_mesh(*mesh, devices=devices)
    return Setup(CONFIG, mesh, **{"trainable": everything, "steps": 10, **changes})


@pytest.fixture(scope="module")
def params():
    return cases.random_params(CONFIG)


@pytest.fixture(scope="module")
def batch():
    rows = [cases.make_example(CONFIG, parts, seed) for seed, parts in enumerate(PARTS)]
    return collate(rows, BucketKey(tokens=96, grids=2, windows=2, chunks=1), 2, CONFIG)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("7b") / "checkpoint"
    write_random(str(folder), CONFIG, corpus.LINES)
    return folder


def gradient(setup: Setup, params, batch):
    """(mean loss, gradient tree) of the SFT step."""
    with jax.set_mesh(setup.mesh):
        state = create_state(jax.tree.map(jnp.array, params), setup)
        if setup.lora.rank:  # of a new adapter, B is zero, and so is the gradient of A
            state = state._replace(params=jax.tree.map(lambda leaf: leaf + 0.01, state.params))
        placed = sharding.place_batch(setup.mesh, batch, len(batch.tokens))
        function = jax.jit(
            lambda *args: steps.sft_gradient(*args, setup), compiler_options=FAST_COMPILE
        )
        sums, grads = jax.device_get(function(state, placed))
    return float(sums.loss / sums.tokens), grads


def check_close(ours, theirs):
    whole = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * max(np.abs(b).max(), 1e-3 * whole)


# ---- the model -----------------------------------------------------------------------------------


def test_the_proportions():
    assert omni_7b().text.vocab_size % 64 == CONFIG.text.vocab_size % 64 == 0
    assert CONFIG.text.num_attention_heads // CONFIG.text.num_key_value_heads == 7


def test_exported_and_loaded_by_transformers(checkpoint, tmp_path):
    """The head is not that of the embeddings, in the file, in the config and in the logits."""
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("ugc_jax.hf.reference")
    params = load_params(checkpoint, CONFIG)
    save_thinker(params, CONFIG, tmp_path / "out", checkpoint, dtype="float32")
    assert load_config(tmp_path / "out") == CONFIG
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["tie_word_embeddings"] is False
    model = reference.load_reference(tmp_path / "out")
    tables = model.get_input_embeddings().weight, model.lm_head.weight
    assert not torch.equal(*tables)
    parts = cases.CASES["video_with_sound"]
    example = cases.make_example(CONFIG, parts)
    inputs = reference.reference_inputs([example], CONFIG, [cases.SECONDS_PER_GRID], True)
    with torch.no_grad():
        theirs = model(**inputs).logits[0].numpy()
    function = jax.jit(
        lambda batch: thinker.hidden_states(params, CONFIG, Compute(), batch),
        compiler_options=FAST_COMPILE,
    )
    hidden = function(cases.one_batch(CONFIG, [example]))
    ours = thinker.logits(thinker.head(params), hidden[0, : len(example.tokens)])
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, ADAPTER], ids=["full", "lora"])
def test_sft_split_over_meshes(changes, params, batch):
    batch = jax.tree.map(lambda leaf: np.repeat(leaf, 4, axis=0)[:8], batch)
    loss, grads = gradient(setup(**changes), params, batch)
    for mesh in MESHES:
        split_loss, split = gradient(setup(mesh, **changes), params, batch)
        assert split_loss == pytest.approx(loss, rel=1e-5)
        check_close(split, grads)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads["model"]["layers"]))
    if not changes:  # each of the tables learns by itself
        tables = grads["model"]["embed_tokens"]["weight"], grads["lm_head"]["weight"]
        assert tables[0].shape == tables[1].shape == (2112, 224)
        assert np.abs(tables[0] - tables[1]).max() > 0


def test_a_merged_adapter(params):
    config = LoraConfig(rank=4, alpha=8.0, targets="q_proj,k_proj,o_proj")
    adapter = lora.init(CONFIG, config, jax.random.key(0))
    adapter = jax.tree.map(lambda leaf: leaf + 0.01, adapter)
    merged = lora.merge(params, adapter, config)["model"]["layers"]["self_attn"]
    before, pairs = (tree["model"]["layers"]["self_attn"] for tree in (params, adapter))
    for name in ("q_proj", "k_proj", "o_proj"):
        change = 2.0 * pairs[name]["lora_b"][0] @ pairs[name]["lora_a"][0]
        expected = before[name]["weight"][0] + change
        np.testing.assert_allclose(merged[name]["weight"][0], expected, rtol=1e-5, atol=1e-6)


def test_grpo_split_over_meshes(monkeypatch):
    """The policy's gradient; and samples, drawn on a mesh of its own."""
    monkeypatch.setattr(fake, "CONFIG", CONFIG)
    options = GrpoOptions(beta=0.05)
    rows = fake.rows(options)
    sampling = dataclasses.replace(RolloutConfig().sampling, max_new_tokens=8, seed=3)
    found = []
    for mesh, tensor in (((1, 1, 1), None), ((1, 8, 1), 4)):
        one = fake.make_setup(mesh, reference=True)
        state = fake.make_state(one)
        with jax.set_mesh(one.mesh):
            placed = sharding.place_batch(one.mesh, rows, len(rows.tokens))
            function = functools.partial(
                objective.policy_gradient, setup=one, options=options, samples=fake.G
            )
            sums, grads = jax.jit(function, compiler_options=FAST_COMPILE)(state, placed)
        on = MeshConfig(None, None, None) if tensor is None else MeshConfig(-1, 1, tensor)
        rollout = Rollout(one, RolloutConfig(samples=2, sampling=sampling, mesh=on))
        rollout.load(state)
        prompts = sharding.place_batch(one.mesh, fake.prompts(), 8)
        tokens = rollout.join(list(rollout.sample(prompts, draw=0)))[0].tokens
        found.append((*jax.device_get((sums, grads)), tokens))
    (sums, grads, tokens), (split_sums, split, split_tokens) = found
    np.testing.assert_allclose(split_sums["loss"], sums["loss"], rtol=1e-5)
    check_close(split, grads)
    np.testing.assert_array_equal(tokens, split_tokens)


# ---- meshes that do not divide the heads ---------------------------------------------------------


def settings(schema, *words):
    needed = ["--checkpoint=c", "--output=o", "--data.train=t"]
    return Schema(schema).parse([*needed, *words])[0]


MESSAGE = r"mesh\.tensor is 8, which does not divide the model's 28 attention heads; use 1, 2, 4, 7"


def test_heads_that_a_mesh_does_not_divide(checkpoint):
    mesh = sharding.make_mesh(1, 1, 8)
    for schema in (SftConfig, GrpoConfig):
        with pytest.raises(UserError, match=f"^{MESSAGE}"):
            settings(schema).setup(CONFIG, mesh, 1)
    sampled = settings(GrpoConfig, "--rollout.mesh.fsdp=1", "--rollout.mesh.tensor=8")
    with pytest.raises(UserError, match=rf"^rollout\.{MESSAGE}"):
        sampled.setup(CONFIG, sharding.make_mesh(1, 8, 1), 1)
    with pytest.raises(UserError, match=f"^{MESSAGE}"):
        Captioner.from_pretrained(checkpoint, mesh=mesh)
    settings(SftConfig).setup(CONFIG, sharding.make_mesh(2, 1, 4), 1)


@pytest.mark.parametrize("name", ["sft_7b", "sft_7b:lora", "grpo_7b", "grpo_7b:lora"])
def test_the_configs(name):
    job = name.partition("_")[0]
    config, _ = cli.load_job(job).SETTINGS.parse([f"--config={name}"])
    small, _ = cli.load_job(job).SETTINGS.parse([f"--config={name.replace('7b', '3b')}"])
    assert "7b" in config.checkpoint.lower()
    assert "7b" in config.output
    assert config.data == small.data
    assert config.lora == small.lora
    config.setup(omni_7b(), sharding.make_mesh(1, 8, 1), steps=1)
    assert name.partition(":")[0] in cli.usage()
    assert sft.SETTINGS.parse(["--config=sft_7b"])[0].checkpoint == "Qwen/Qwen2.5-Omni-7B"
