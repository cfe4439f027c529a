"""The train step: loss and gradients against torch, itself packed, split, sharded, broken."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_training import FAST_COMPILE

from ugc_jax import sharding
from ugc_jax.data.batching import BucketKey, collate, collate_rows
from ugc_jax.hf import mapping
from ugc_jax.models.compute import Compute
from ugc_jax.models.lora import LoraConfig
from ugc_jax.models.params import tensors
from ugc_jax.models.qwen2_5_omni import config as config_lib
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.train import step as steps
from ugc_jax.train.losses import token_scores
from ugc_jax.train.optimizer import OptimizerConfig
from ugc_jax.train.state import Setup, Trainable, create_state

pytestmark = pytest.mark.usefixtures("highest_precision")

WHOLE = config_lib.tiny()  # beside torch
CONFIG = cases.fewer_layers(WHOLE)
EVERYTHING = Trainable(vision=True, audio=True, projector=True)
KEY = BucketKey(tokens=144, grids=4, windows=2, chunks=4)
PACKED = BucketKey(tokens=304, grids=8, windows=2, chunks=8)
# Prompts with answers of different lengths: text, sound, picture, both.
PARTS = [
    [6, ("answer", 5)],
    [3, ("audio", 230), 4, ("answer", 9)],
    [4, ("image", 112, 84), 3, ("answer", 2)],
    [4, ("video", 6, 84, 112, 310), 6, ("answer", 12)],
]
MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 4, 2), (1, 2, 4)]


@pytest.fixture(scope="module")
def params():
    return cases.random_params(CONFIG)


@pytest.fixture(scope="module")
def examples():
    return [cases.make_example(CONFIG, parts, seed) for seed, parts in enumerate(PARTS)]


@pytest.fixture(scope="module")
def batch(examples):
    return collate(examples, KEY, 4, CONFIG)


@pytest.fixture(scope="module")
def packed(examples):
    """The same examples in two rows; the other two rows are empty."""
    return collate_rows([examples[:3], examples[3:]], PACKED, 4, CONFIG)


def setup(mesh=(1, 1, 1), model=CONFIG, **changes) -> Setup:
    count = int(np.prod(mesh))
    mesh = sharding.make_mesh(*mesh, devices=jax.devices()[:count])
    return Setup(model, mesh, **{"trainable": EVERYTHING, "steps": 10, **changes})


def gradient(setup: Setup, params, batch):
    """(mean loss, gradient tree) of the step, on the setup's mesh."""
    with jax.set_mesh(setup.mesh):
        state = create_state(jax.tree.map(jnp.array, params), setup)
        batch = sharding.place_batch(setup.mesh, batch, len(batch.tokens))
        function = jax.jit(
            lambda *a: steps.sft_gradient(*a, setup),
            compiler_options=FAST_COMPILE,
        )
        sums, grads = function(state, batch)
    return float(sums.loss / sums.tokens), grads


def largest_error(ours: dict, theirs: dict) -> float:
    """The largest difference of any leaf, relative to the leaf's largest value.

    Leaves whose gradient is zero in exact arithmetic (a bias of keys) are measured by the whole.
    """
    whole = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    errors = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3 * whole)),
        jax.device_get(ours),
        jax.device_get(theirs),
    )
    return max(jax.tree.leaves(errors))


# ---- against torch -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch_gradient(examples, whole_checkpoint):
    """(mean loss, {Hugging Face name: gradient}) by torch's autograd, an example at a time."""
    torch = pytest.importorskip("torch")
    from ugc_jax.hf import reference

    model = reference.load_reference(whole_checkpoint)
    model.set_attn_implementation("eager")
    total = sum(int(example.target.sum()) for example in examples)
    loss = 0.0
    for example, parts in zip(examples, PARTS, strict=True):
        seconds = [cases.SECONDS_PER_GRID] * cases.videos(parts)
        inputs = reference.reference_inputs(
            [example], CONFIG, seconds, cases.has_sound_in_video(parts)
        )
        logits = model(**inputs).logits[0].float()
        wanted = np.flatnonzero(example.target)
        part = torch.nn.functional.cross_entropy(
            logits[wanted - 1], torch.from_numpy(example.tokens[wanted]).long(), reduction="sum"
        )
        (part / total).backward()
        loss += float(part.detach()) / total
    grads = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:  # by the name that it has in a file
            name = name.removeprefix("model.").replace("language_model.", "model.")
            grads[name] = parameter.grad.numpy()
    return loss, grads


@pytest.mark.parametrize("form", ["batch", "packed"])
def test_loss_and_gradients_equal_torch(form, request, torch_gradient):
    params = cases.random_params(WHOLE)
    loss, grads = gradient(setup(model=WHOLE), params, request.getfixturevalue(form))
    torch_loss, torch_grads = torch_gradient
    assert abs(loss - torch_loss) <= 1e-5 * torch_loss
    ours, theirs = {}, {}
    for tensor in tensors(thinker.declare(WHOLE)):
        name = tensor.name
        ours[name] = mapping.read_tensor(grads, tensor)
        if name not in torch_grads:  # of which neither model makes any use
            assert "audio_bos_eos_token" in name
            assert not ours.pop(name).any()
        else:
            theirs[name] = torch_grads[name].reshape(ours[name].shape)
    assert len(ours) == len(torch_grads)
    error = largest_error(ours, theirs)
    print(f"{form}: loss {loss:.6f}, torch {torch_loss:.6f}; gradients' relative error {error:.1e}")
    assert error <= 1e-4


# ---- against itself ------------------------------------------------------------------------------


def test_packed_equals_unpacked_for_each_example(params, examples, packed):
    weights = jax.tree.map(jnp.array, params)

    @jax.jit
    def logprobs(batch):
        hidden = thinker.hidden_states(weights, CONFIG, Compute(), batch)
        return token_scores(
            weights, hidden, jnp.roll(batch.tokens, -1, axis=1), batch.tokens >= 0
        ).logprob

    whole = np.asarray(logprobs(packed))
    for number, example in enumerate(examples):
        row, segment = (0, number + 1) if number < 3 else (1, 1)
        place = np.flatnonzero(packed.segment_ids[row] == segment)[:-1]
        alone = np.asarray(logprobs(collate([example], KEY, 1, CONFIG)))
        np.testing.assert_allclose(whole[row, place], alone[0, : len(place)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_equals_one_pass(parts, params, batch):
    loss, grads = gradient(setup(), params, batch)
    loss_parts, grads_parts = gradient(setup(accumulate=parts), params, batch)
    assert abs(loss - loss_parts) <= 1e-5 * loss
    assert largest_error(grads_parts, grads) <= 1e-5


@pytest.fixture(scope="module")
def unsharded(params, examples):
    """Eight rows, packed, single and empty; their loss and gradient on one device."""
    rows = [examples[:3], examples[3:], *([example] for example in examples), examples[::-1], []]
    batch = collate_rows(rows, PACKED, 8, CONFIG)
    with jax.default_matmul_precision("highest"):
        return batch, *gradient(setup(), params, batch)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_sharded_equals_unsharded(mesh, params, unsharded):
    batch, loss, grads = unsharded
    loss_split, grads_split = gradient(setup(mesh), params, batch)
    error = largest_error(grads_split, grads)
    print(f"{mesh}: gradients' relative error {error:.1e}")
    assert abs(loss - loss_split) <= 1e-5 * loss
    assert error <= 1e-5


@pytest.mark.parametrize("length", [4, 5, 8, 11])
def test_sharded_equals_unsharded_at_awkward_lengths(length, params):
    mesh = (2, 2, 2)
    examples = [cases.make_example(CONFIG, [2, ("answer", length - 2)], i) for i in range(8)]
    batch = collate(examples, BucketKey(length, 0, 1, 0), 8, CONFIG)
    loss, grads = gradient(setup(), params, batch)
    loss_split, grads_split = gradient(setup(mesh), params, batch)
    assert abs(loss - loss_split) <= 1e-5 * loss
    assert largest_error(grads_split, grads) <= 1e-5


# ---- the step ------------------------------------------------------------------------------------


@functools.cache
def step_of(setup: Setup):
    """The jitted step, which several tests run with the same setup."""
    return steps.jit_step(steps.train_step, setup)


def run(setup: Setup, params, batches):
    """(last state, metrics of each step), of batches of one shape."""
    with jax.set_mesh(setup.mesh):
        state = create_state(jax.tree.map(jnp.array, params), setup)
        placed = [sharding.place_batch(setup.mesh, one, len(one.tokens)) for one in batches]
        history = []
        for batch in placed:
            state, metrics = step_of(setup)(state, batch)
            history.append(jax.device_get(metrics))
    return state, history


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": OptimizerConfig(name="adafactor", learning_rate=1e-2)},
        {"compute": Compute(dtype="bfloat16", remat="full")},
        {"compute": Compute(dtype="bfloat16", remat="full"), "trainable": Trainable()},
        {"compute": Compute(dtype="bfloat16"), "master": "bfloat16"},
        {"optimizer": OptimizerConfig(learning_rate=3e-3, warmup=0.0, mu_dtype="bfloat16")},
        {"accumulate": 2},
        {
            "trainable": Trainable(decoder=False, embeddings=False),
            "lora": LoraConfig(rank=4, alpha=8.0),
        },
    ],
    ids=[
        "adamw",
        "adafactor",
        "bf16",
        "bf16-decoder",
        "bf16-master",
        "bf16-mean",
        "accumulated",
        "lora",
    ],
)
def test_loss_falls(changes, params, batch):
    optimizer = OptimizerConfig(learning_rate=3e-3, schedule="constant", weight_decay=0.01)
    state, history = run(setup(**{"optimizer": optimizer, **changes}), params, [batch] * 8)
    losses = [float(metrics["loss"]) for metrics in history]
    assert losses[-1] < losses[0] - 0.05
    assert int(state.step) == 8
    assert history[0]["targets"] == 28
    assert history[0]["examples"] == 4
    assert history[0]["tokens"] == sum(batch.segment_ids.ravel() > 0)


def test_what_is_frozen_stays_and_carries_no_optimizer_state(params, batch):
    trainable = Trainable(decoder=False, embeddings=False, projector=True)
    compute = Compute(dtype="bfloat16")
    state, _ = run(setup(trainable=trainable, compute=compute), params, [batch])
    learnt = jax.tree.leaves(state.params)
    shapes = sorted(leaf.shape for leaf in learnt for _ in range(2))
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sorted(leaf.shape for leaf in moments) == shapes
    assert {str(leaf.dtype) for leaf in learnt + moments} == {"float32"}
    frozen = state.frozen["model"]["layers"]["mlp"]["up_proj"]["weight"]
    assert frozen.dtype == jnp.bfloat16
    before = params["model"]["layers"]["mlp"]["up_proj"]["weight"]
    np.testing.assert_array_equal(np.asarray(frozen), np.asarray(before, jnp.bfloat16))


def test_a_step_that_is_not_finite_changes_nothing_ever_after(params, batch):
    sound = batch.media["audio"]
    sound = sound._replace(mel=np.full_like(sound.mel, np.nan))
    broken = batch._replace(media=batch.media | {"audio": sound})
    good, _ = run(setup(), params, [batch])
    state, history = run(setup(), params, [batch, broken, batch])
    assert [float(metrics["finite"]) for metrics in history] == [1.0, 0.0, 0.0]
    assert not bool(state.finite)
    assert int(state.step) == 1
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (good[:4], state[:4])))


def test_evaluation_gives_the_loss_of_the_step(params, batch):
    one = setup()
    with jax.set_mesh(one.mesh):
        state = create_state(jax.tree.map(jnp.array, params), one)
        placed = sharding.place_batch(one.mesh, batch, 4)
        evaluation = jax.jit(
            functools.partial(steps.eval_step, setup=one), compiler_options=FAST_COMPILE
        )
        sums = evaluation(state, placed)
    _, (metrics,) = run(one, params, [batch])
    np.testing.assert_allclose(sums.loss / sums.tokens, metrics["loss"], rtol=1e-6)
    np.testing.assert_allclose(sums.hits / sums.tokens, metrics["accuracy"], rtol=1e-6)
