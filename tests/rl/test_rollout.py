"""Rollout: parts, meshes and the plain way give the same; its log-probs are those of training."""

import dataclasses
import functools

import fake_rollout as fake
import jax
import numpy as np
import pytest

from ugc_jax import sharding
from ugc_jax.errors import UserError
from ugc_jax.generate.engine import Engine
from ugc_jax.models.compute import Compute
from ugc_jax.models.lora import LoraConfig
from ugc_jax.rl.objective import token_logprobs
from ugc_jax.rl.options import GrpoOptions
from ugc_jax.rl.rollout import Rollout, RolloutConfig
from ugc_jax.rl.rows import policy_rows, slots
from ugc_jax.rl.settings import GRPO_SHORT, GrpoConfig
from ugc_jax.settings import Schema
from ugc_jax.sharding import MeshConfig
from ugc_jax.train.state import Trainable, abstract_state, model_params

FROZEN = Trainable()  # the encoders do not learn
SAMPLING = dataclasses.replace(RolloutConfig().sampling, max_new_tokens=fake.N, seed=3)
SMALL = dict(samples=fake.G, sampling=SAMPLING)
PROMPTS = fake.prompts()
NEEDED = ["--checkpoint=c", "--output=o", "--data.train=t"]


def sample(setup, state, draw=0, shared=True, **changes):
    """(Completions, media) of PROMPTS."""
    rollout = Rollout(setup, RolloutConfig(**SMALL | changes), shared)
    prompts = sharding.place_batch(setup.mesh, PROMPTS, len(PROMPTS.tokens))
    rollout.load(state)
    parts = list(rollout.sample(prompts, draw))
    rollout.drop()
    return rollout.join(parts)


@pytest.fixture(scope="module")
def setup():
    return fake.make_setup(trainable=FROZEN)


@pytest.fixture(scope="module")
def state(setup):
    return fake.make_state(setup)


@pytest.fixture(scope="module")
def whole(setup, state):
    with jax.default_matmul_precision("highest"):
        return sample(setup, state)


def test_samples_of_a_prompt_differ_and_an_empty_row_has_none(whole):
    made, _ = whole
    assert made.tokens.shape == (8, fake.G, 16)  # the next size of an own cache
    assert (made.lengths[3] == 0).all()
    assert (np.delete(made.lengths, 3, axis=0) == fake.N).all()
    assert not made.stopped.any()
    assert len({tuple(row) for row in np.delete(made.tokens, 3, 0).reshape(-1, 16).tolist()}) == 21


def test_a_draw_decides_the_samples(setup, state, whole):
    again, other = sample(setup, state)[0], sample(setup, state, draw=1)[0]
    np.testing.assert_array_equal(again.tokens, whole[0].tokens)
    assert (other.tokens != whole[0].tokens).any()


@pytest.mark.parametrize(
    "way",
    [dict(parts=2), dict(rows=1), dict(parts=4, rows=2), dict(parts=4, shared=False)],
    ids=["parts", "row by row", "parts by two rows", "plain parts"],
)
@pytest.mark.usefixtures("highest_precision")
def test_every_way_gives_the_same_completions(way, setup, state, whole):
    made, media = sample(setup, state, **way)
    np.testing.assert_array_equal(made.tokens, whole[0].tokens)
    np.testing.assert_allclose(made.logprobs, whole[0].logprobs, atol=1e-5)
    copies = 1 if way.get("shared", True) else fake.G
    assert media.keys() == whole[1].keys()
    for name, theirs in whole[1].items():
        np.testing.assert_allclose(media[name], np.repeat(theirs, copies, axis=0), atol=1e-5)


@pytest.mark.usefixtures("highest_precision")
def test_encoders_that_exceed_the_memory_lose_no_prompt(setup, state, whole, monkeypatch):
    """The second part's, once, beside the first one's places."""
    encode, calls = Engine.encode, []

    def full_once(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return encode(self, *args)

    monkeypatch.setattr(Engine, "encode", full_once)
    made, _ = sample(setup, state, parts=2)
    assert len(calls) >= 3
    np.testing.assert_array_equal(made.tokens, whole[0].tokens)


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2)], ids=str)
@pytest.mark.usefixtures("highest_precision")
def test_a_mesh_of_its_own_gives_the_same(mesh, whole):
    """Trained on one mesh, sampled on another: weights, prompts and media are moved."""
    setup = fake.make_setup(mesh, trainable=FROZEN)
    made, media = sample(setup, fake.make_state(setup), mesh=MeshConfig(4, 1, 2))
    np.testing.assert_array_equal(made.tokens, whole[0].tokens)
    np.testing.assert_allclose(made.logprobs, whole[0].logprobs, atol=1e-4)
    assert media["vision"].sharding == sharding.row_sharding(setup.mesh)


def test_the_planned_move_of_the_weights_is_the_one_that_is_made():
    setup = fake.make_setup((1, 8, 1), trainable=FROZEN)
    rollout = Rollout(setup, RolloutConfig(**SMALL, mesh=MeshConfig(4, 1, 2)))
    prompts = sharding.abstract(PROMPTS, sharding.batch_shardings(setup.mesh, PROMPTS))
    planned = rollout.trace(prompts)[0]["weights"].lower().as_text()
    assert planned == rollout._weights.lower(abstract_state(setup)).as_text()


def mismatch(setup, state, temperature=1.0):
    """|rollout's log-prob - training's| of every token sampled."""
    options = GrpoOptions()
    made, media = sample(
        setup, state, sampling=dataclasses.replace(SAMPLING, temperature=temperature)
    )
    weights = (made.lengths > 0).astype(np.float32)
    size = slots(made.lengths, fake.N, shared=True)
    rows = policy_rows(PROMPTS, made, weights, weights, size, fake.CONFIG, keep_media=False)
    rows = sharding.place_batch(setup.mesh, rows, len(rows.tokens))._replace(media=media)
    with jax.set_mesh(setup.mesh):
        bound = dict(setup=setup, options=options, temperature=temperature)
        logprobs = jax.jit(functools.partial(token_logprobs, **bound))(state, rows)
    return np.abs(np.asarray(logprobs) - np.asarray(rows.rollout))[np.asarray(rows.weight) > 0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.usefixtures("highest_precision")
def test_logprobs_are_those_of_training(temperature, setup, state):
    error = mismatch(setup, state, temperature)
    print(f"temperature {temperature}: largest difference {error.max():.1e}")
    assert error.max() <= 1e-4


def test_logprobs_in_bfloat16_are_near_those_of_training():
    setup = fake.make_setup(trainable=FROZEN, compute=Compute("bfloat16"))
    error = np.exp(mismatch(setup, fake.make_state(setup))).mean()
    print(f"bfloat16: token_mult_prob_error {error:.4f}")
    assert error < 1.05


def test_an_adapter_takes_part(setup, state, whole):
    learns = Trainable(decoder=False, embeddings=False)
    adapted = fake.make_setup(trainable=learns, lora=LoraConfig(rank=4))
    fresh = fake.make_state(adapted)
    np.testing.assert_array_equal(sample(adapted, fresh)[0].tokens, whole[0].tokens)
    params = jax.tree.map(lambda leaf: leaf + 0.3, fresh.params)
    assert (sample(adapted, fresh._replace(params=params))[0].tokens != whole[0].tokens).any()


def test_weights_are_not_copied_where_nothing_changes(setup, state):
    """All but the decoder's layers, which decode faster in another form here."""
    rollout = Rollout(setup, RolloutConfig(**SMALL))
    rollout.load(state)
    here = model_params(state, setup)["visual"]["blocks"]["mlp"]["up_proj"]["weight"]
    there = rollout._params["visual"]["blocks"]["mlp"]["up_proj"]["weight"]
    assert here.unsafe_buffer_pointer() == there.unsafe_buffer_pointer()
    assert isinstance(rollout._params["model"]["layers"], tuple)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("samples", 1),
        ("parts", 0),
        ("eval_prompts", 0),
        ("temperature", 0),
        ("max_new_tokens", 10000),
        ("top_p", 0),
        ("sampling.repetition_penalty", 1.1),
    ],  # fmt: skip
)
def test_wrong_settings_are_told(field, value):
    schema = Schema(GrpoConfig, short=GRPO_SHORT)
    with pytest.raises(UserError, match=rf"^rollout\.(sampling\.)?{field} is {value}(\.0)?; use"):
        schema.parse([*NEEDED, f"--config.rollout.{field}={value}"])


def test_a_mesh_that_does_not_fit_is_told():
    with pytest.raises(UserError, match="rollout mesh data=3 .* needs .* devices, 8 found"):
        Rollout(fake.make_setup((8, 1, 1)), RolloutConfig(mesh=MeshConfig(3, None, None)))
