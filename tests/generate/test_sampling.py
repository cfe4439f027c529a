"""Choosing tokens: the formulas of transformers' logits processors, and what the seed decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ugc_jax.errors import UserError
from ugc_jax.generate import sampling
from ugc_jax.generate.settings import SamplingConfig

LOGITS = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32) * 3


@pytest.mark.parametrize(
    ("k", "p"), [(0, 1.0), (5, 1.0), (0, 0.7), (10, 0.5), (1, 1.0), (0, 0.01), (60, 0.99)]
)
def test_truncation_as_in_transformers(k, p):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    theirs = torch.from_numpy(LOGITS)
    if k:
        theirs = processors.TopKLogitsWarper(min(k, 50))(None, theirs)
    if p < 1:
        theirs = processors.TopPLogitsWarper(p)(None, theirs)
    ours = sampling.truncate(LOGITS, k, p)
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs.numpy()))


def test_repetition_penalty_as_in_transformers():
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    seen_ids = np.random.default_rng(1).integers(0, 50, (4, 12))
    seen = np.zeros((4, 50), bool)
    seen[np.arange(4)[:, None], seen_ids] = True
    theirs = processors.RepetitionPenaltyLogitsProcessor(1.3)(
        torch.from_numpy(seen_ids), torch.from_numpy(LOGITS)
    )
    np.testing.assert_allclose(sampling.penalize(LOGITS, seen, 1.3), theirs.numpy(), rtol=1e-6)


def choose(config: SamplingConfig, keys, logits=LOGITS):
    configs = [config.resolve()] * len(logits)
    mode, knobs = sampling.mode_of(configs), sampling.knobs_of(configs)
    seen = np.zeros(logits.shape, bool)
    return tuple(map(np.asarray, sampling.next_token(logits, seen, keys, mode, knobs)[:2]))


def test_greedy_takes_the_largest():
    tokens, logprobs = choose(SamplingConfig(), None)
    np.testing.assert_array_equal(tokens, LOGITS.argmax(-1))
    np.testing.assert_allclose(logprobs, jax.nn.log_softmax(LOGITS).max(-1), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(temperature=1.0), [0.5, 0.3, 0.15, 0.05]),
        (dict(temperature=1.0, top_p=0.75), [0.625, 0.375, 0, 0]),
        (dict(temperature=0.5), np.square([0.5, 0.3, 0.15, 0.05]) / 0.365),
    ],
)
def test_samples_follow_the_distribution_that_their_logprobs_tell(options, expected):
    logits = np.broadcast_to(np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32)), (20000, 4))
    keys = jax.random.split(jax.random.key(0), len(logits))
    tokens, logprobs = choose(SamplingConfig(**options), keys, logits)
    np.testing.assert_allclose(np.bincount(tokens, minlength=4) / len(logits), expected, atol=0.012)
    np.testing.assert_allclose(np.exp(logprobs), np.array(expected)[tokens], rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.5),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
        ("seed", -1),
    ],
)
def test_impossible_settings_name_the_field(field, value):
    with pytest.raises(UserError, match=field):
        SamplingConfig(**{field: value})


def test_no_token_without_probability_is_drawn_from_a_large_vocabulary():
    """151,936 tokens, of which top_p leaves some: float32 sums over them would not ascend."""
    logits = np.random.default_rng(0).normal(0, 2, (1, 151_936)).astype(np.float32)
    knobs = sampling.knobs_of([SamplingConfig(temperature=1.0, top_p=0.9).resolve()])

    @jax.jit
    def draw(keys, logits):  # as arguments: XLA would sort constants while it compiles
        left = sampling.truncate(logits, knobs.top_k[:, None], knobs.top_p[:, None])
        tokens = sampling.sample(jnp.broadcast_to(left, (len(keys), left.shape[1])), keys)
        return left[0, tokens]

    keys = jax.random.split(jax.random.key(0), 2000)
    chosen = np.concatenate([draw(part, logits) for part in keys.reshape(100, 20)])
    assert np.isfinite(chosen).all()


@pytest.mark.parametrize("size", [50, 128 * 5, 1000])
def test_a_cpu_and_others_take_the_same(size, monkeypatch):
    """[V, B] on a CPU, [B, V] elsewhere: the same tokens, and log-probs within rounding."""
    logits = 5 * jax.random.normal(jax.random.key(size), (4, size))
    seen = jnp.zeros((4, 0), bool)
    keys = jax.random.split(jax.random.key(1), 4)
    knobs = sampling.knobs_of([SamplingConfig(temperature=1.0).resolve()] * 4)
    for greedy in (True, False):
        mode = sampling.Mode(greedy, truncates=False, penalizes=False)
        found = {}
        for platform in ("cpu", "gpu"):
            monkeypatch.setattr(sampling, "platform", lambda name=platform: name)
            found[platform] = sampling.next_token(logits, seen, keys, mode, knobs)
        np.testing.assert_array_equal(found["cpu"].token, found["gpu"].token)
        np.testing.assert_allclose(found["cpu"].logprob, found["gpu"].logprob, atol=1e-5)
        all_logprobs = np.asarray(jax.nn.log_softmax(logits))
        if greedy:
            np.testing.assert_array_equal(found["cpu"].token, all_logprobs.argmax(axis=-1))
            np.testing.assert_allclose(found["cpu"].logprob, all_logprobs.max(axis=-1), atol=1e-5)
