"""The policy step: shared prompts against the plain way, meshes, parts, references."""

import functools

import fake_rollout as fake
import jax
import numpy as np
import pytest
from fake_training import FAST_COMPILE

from ugc_jax import sharding
from ugc_jax.models.lora import LoraConfig
from ugc_jax.rl import objective
from ugc_jax.rl.options import GrpoOptions
from ugc_jax.train.optimizer import OptimizerConfig
from ugc_jax.train.state import Trainable
from ugc_jax.train.step import jit_step

pytestmark = pytest.mark.usefixtures("highest_precision")

MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 4, 2), (1, 2, 4)]
OPTIONS = dict(beta=0.05, kl="k3", entropy_bonus=0.01)


def place(setup, batch):
    return sharding.place_batch(setup.mesh, batch, len(batch.tokens))


def score(setup, options, of_reference=False):
    bound = functools.partial(objective.token_logprobs, setup=setup, options=options)
    bound = functools.partial(bound, of_reference=of_reference)
    return jax.jit(bound, compiler_options=FAST_COMPILE)


def run(setup, options, batch):
    """(sums, gradient, log-probs of the slots that are trained on, in the order of completions)."""
    state = fake.make_state(setup)
    with jax.set_mesh(setup.mesh):
        placed = place(setup, batch)
        gradient = functools.partial(
            objective.policy_gradient, setup=setup, options=options, samples=fake.G
        )
        gradient = jax.jit(gradient, compiler_options=FAST_COMPILE)
        sums, grads = jax.device_get(gradient(state, placed))
        logprobs = score(setup, options)(state, placed)
    return sums, grads, np.asarray(logprobs)[batch.weight > 0]


def largest_error(ours, theirs) -> float:
    """Of any leaf, relative to its largest value (or a thousandth of the largest of all)."""
    whole = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    errors = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3 * whole)), ours, theirs
    )
    return max(jax.tree.leaves(errors))


@pytest.fixture(scope="module")
def shared():
    options = GrpoOptions(**OPTIONS)
    with jax.default_matmul_precision("highest"):
        return run(fake.make_setup(), options, fake.rows(options))


def agree(name, ours, theirs):
    sums, grads, logprobs = ours
    error = largest_error(grads, theirs[1])
    print(f"{name}: loss {sums['loss']:.6f}, gradients' relative error {error:.1e}")
    for key, value in theirs[0].items():
        np.testing.assert_allclose(sums[key], value, rtol=1e-5, atol=1e-6, err_msg=key)
    np.testing.assert_allclose(logprobs, theirs[2], rtol=1e-5, atol=1e-5)
    assert error <= 1e-5


def test_shared_prompt_equals_a_prompt_for_each_sample(shared):
    """Losses, metrics, log-probs and gradients of all weights; ragged, with picture and sound."""
    options = GrpoOptions(shared_prompt=False, **OPTIONS)
    agree("plain", run(fake.make_setup(), options, fake.rows(options)), shared)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_sharded_equals_unsharded(mesh, shared):
    options = GrpoOptions(**OPTIONS)
    agree(mesh, run(fake.make_setup(mesh), options, fake.rows(options)), shared)


def test_parts_equal_one_pass(shared):
    options = GrpoOptions(**OPTIONS)
    agree(
        "2 parts", run(fake.make_setup(accumulate=2), options, fake.rows(options, parts=2)), shared
    )


def test_media_computed_before_equal_media_computed_within():
    """Frozen encoders: the rollout's rows take the place of picture and sound."""
    from ugc_jax.models.qwen2_5_omni import thinker as omni
    from ugc_jax.train.state import model_params

    options, setup = GrpoOptions(**OPTIONS), fake.make_setup(trainable=Trainable())
    batch = fake.rows(options, 4)
    whole = model_params(fake.make_state(setup), setup)
    media = jax.jit(lambda p, b: omni.encode_media(p, setup.model, setup.compute, b.media))(
        whole, batch.inputs
    )
    within = run(setup, options, batch)
    bare = jax.tree.map(lambda leaf: leaf[:, :0], batch.inputs.media)
    before = batch._replace(inputs=batch.inputs._replace(media=bare), media=jax.device_get(media))
    agree("media", run(setup, options, before), within)


def steps(setup, options, batch, count=1):
    step = functools.partial(objective.policy_step, options=options, samples=fake.G)
    state = fake.make_state(setup)
    with jax.set_mesh(setup.mesh):
        placed, metrics = place(setup, batch), []
        step = jit_step(step, setup).lower(state, placed).compile(FAST_COMPILE)
        for _ in range(count):
            state, found = step(state, placed)
            metrics.append(jax.device_get(found))
    return state, metrics


def test_first_update_is_on_policy_exactly_and_has_no_reference():
    """beta 0, one update of a batch: ratio 1; the program takes nothing of a reference."""
    options, setup = GrpoOptions(beta=0.0), fake.make_setup(trainable=Trainable())
    batch = fake.rows(options, 4)._replace(old=None, reference=None)
    state, (metrics,) = steps(setup, options, batch)
    assert metrics["ratio"] == 1.0
    assert metrics["max_ratio"] == 1.0
    assert "kl" not in metrics
    assert state.reference == {}
    assert int(state.step) == 1
    assert metrics["finite"] == 1


def test_what_is_rewarded_becomes_likelier():
    rate = OptimizerConfig(learning_rate=3e-3, schedule="constant", warmup=0.0)
    options = GrpoOptions(beta=0.0, tis_cap=0.0)
    batch = fake.rows(options, 4)._replace(old=None, reference=None)
    setup = fake.make_setup(optimizer=rate, trainable=Trainable())
    state, metrics = steps(setup, options, batch, count=3)
    with jax.set_mesh(setup.mesh):
        before, after = (
            np.asarray(score(setup, options)(s, place(setup, batch)))
            for s in (fake.make_state(setup), state)
        )
    change = (after - before)[batch.weight > 0]
    advantage = batch.advantage[batch.weight > 0]
    assert np.corrcoef(change, advantage)[0, 1] > 0.8
    assert all(found["grad_norm"] > 0 for found in metrics)


def test_reference_stays_while_the_policy_moves_and_follows_when_told():
    rate = OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup=0.0)
    setup = fake.make_setup(optimizer=rate, trainable=Trainable(), reference=True)
    options = GrpoOptions(beta=0.1)
    batch = fake.rows(options, 4)._replace(old=None)
    first = fake.make_state(setup)
    state, _ = steps(setup, options, batch)
    with jax.set_mesh(setup.mesh):
        placed = place(setup, batch)
        of_policy, of_reference = (score(setup, options, which) for which in (False, True))
        begun = np.asarray(of_policy(first, placed))
        np.testing.assert_array_equal(begun, of_reference(first, placed))
        np.testing.assert_array_equal(begun, of_reference(state, placed))
        assert np.abs(np.asarray(of_policy(state, placed)) - begun).max() > 0.01
        kept = jax.device_get(state.reference["lm_head"]["weight"])
        now = jax.device_get(state.params["lm_head"]["weight"])
        mixed = jax.jit(objective.mix_reference, static_argnums=1)(state, 0.6)
        mixed = mixed.reference["lm_head"]["weight"]
    np.testing.assert_allclose(mixed, 0.6 * now + 0.4 * kept, rtol=1e-6, atol=1e-8)


def test_reference_of_an_adapter_is_the_model_without_it():
    learns = Trainable(decoder=False, embeddings=False)
    setup = fake.make_setup(trainable=learns, lora=LoraConfig(rank=4), reference=True)
    options = GrpoOptions(beta=0.1)
    batch = fake.rows(options, 4)._replace(old=None)
    state = fake.make_state(setup)
    assert state.reference == {}  # nothing is copied
    moved = state._replace(params=jax.tree.map(lambda leaf: leaf + 0.1, state.params))
    with jax.set_mesh(setup.mesh):
        placed = place(setup, batch)
        of_policy, of_reference = (score(setup, options, which) for which in (False, True))
        expected = np.asarray(of_policy(state, placed))
        np.testing.assert_allclose(of_reference(moved, placed), expected, rtol=1e-5, atol=1e-5)
        assert np.abs(np.asarray(of_policy(moved, placed)) - expected).max() > 0.01
