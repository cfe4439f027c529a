"""Log-probabilities in chunks."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ugc_jax.train import losses

B, T, D, V = 3, 19, 8, 50


@pytest.fixture
def case():
    random = np.random.default_rng(0)
    hidden = random.standard_normal((B, T, D)).astype(np.float32)
    head = random.standard_normal((V, D)).astype(np.float32)
    tokens = random.integers(0, V, (B, T))
    wanted = np.zeros((B, T), bool)
    wanted[0, 2:5] = wanted[1, 17:] = True
    return hidden, head, tokens, wanted


def plain(hidden, head, tokens):
    """f64 log-probabilities of all tokens, straight from the definition."""
    logits = hidden.astype(np.float64) @ head.T.astype(np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(logits, tokens[..., None], -1)[..., 0], logits.argmax(-1) == tokens


def test_scores_equal_the_definition_where_they_are_wanted(case):
    hidden, head, tokens, wanted = case
    scores = losses.token_scores({"lm_head": {"weight": head}}, hidden, tokens, wanted)
    logprob, hit = plain(hidden, head, tokens)
    np.testing.assert_allclose(scores.logprob[wanted], logprob[wanted], rtol=1e-5)
    np.testing.assert_array_equal(scores.hit[wanted], hit[wanted])


def test_chunks_without_a_wanted_token_are_skipped(case):
    hidden, head, tokens, wanted = case
    scores = losses.token_scores({"lm_head": {"weight": head}}, hidden, tokens, wanted)
    chunk = -(-T // losses.CHUNKS)
    idle = [start for start in range(0, T, chunk) if not wanted[:, start : start + chunk].any()]
    assert idle
    for start in idle:
        assert not np.asarray(scores.logprob[:, start : start + chunk]).any()


def test_gradient_equals_that_of_whole_logits(case):
    hidden, head, tokens, wanted = case

    def chunked(hidden, head):
        scores = losses.token_scores({"lm_head": {"weight": head}}, hidden, tokens, wanted)
        return jnp.sum(jnp.where(wanted, scores.logprob, 0.0))

    def whole(hidden, head):
        logprobs = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden, head))
        picked = jnp.take_along_axis(logprobs, tokens[..., None], -1)[..., 0]
        return jnp.sum(jnp.where(wanted, picked, 0.0))

    ours, theirs = (jax.grad(f, (0, 1))(hidden, head) for f in (chunked, whole))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def long_row() -> tuple:
    """A loss of (hidden, head, tokens, wanted), and the shapes of a long row of a large model."""

    def loss(hidden, head, tokens, wanted):
        scores = losses.token_scores({"lm_head": {"weight": head}}, hidden, tokens, wanted)
        return jnp.sum(scores.logprob)

    shapes = ((1, 4096, 64), jnp.bfloat16), ((32768, 64), jnp.bfloat16)
    shapes += ((1, 4096), jnp.int32), ((1, 4096), jnp.bool_)
    return loss, [jax.ShapeDtypeStruct(*one) for one in shapes]


def test_no_program_holds_the_logits_of_all_tokens():
    loss, shapes = long_row()
    compiled = jax.jit(jax.grad(loss, 1)).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4096 * 32768 * 4 / 2


def products(jaxpr) -> list[tuple]:
    """(dtypes of the factors, dtype of the result) of all products of a program."""
    return [
        tuple(str(x.aval.dtype) for x in (*one.invars, *one.outvars))
        for one in cases.equations(jaxpr)
        if one.primitive.name == "dot_general"
    ]


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_products_of_bfloat16_with_sums_of_float32(case, frozen):
    hidden, head, tokens, wanted = case
    narrow = jnp.asarray(hidden, jnp.bfloat16)

    def loss(hidden, head):
        scores = losses.token_scores({"lm_head": {"weight": head}}, hidden, tokens, wanted)
        return jnp.sum(jnp.where(wanted, scores.logprob, 0.0))

    traced = jax.jit(jax.grad(loss, 0 if frozen else (0, 1))).trace(narrow, head)
    # The logits, again in the backward pass, and their gradients; a frozen head has none.
    made = [one for one in products(traced.jaxpr.jaxpr) if "bfloat16" in one[:2]]
    assert set(products(traced.jaxpr.jaxpr)) == {("bfloat16", "bfloat16", "float32")}
    assert len(made) in ((2, 3) if frozen else (3, 4))
    if frozen:
        return
    exact = jax.grad(loss, (0, 1))(narrow.astype(jnp.float32), head)
    ours = jax.grad(loss, (0, 1))(narrow, head)
    assert [x.dtype for x in ours] == [jnp.bfloat16, jnp.float32]
    for a, b in zip(ours, exact, strict=True):
        assert jnp.linalg.norm(a.astype(jnp.float32) - b) < 0.01 * jnp.linalg.norm(b)


def test_a_frozen_head_is_not_copied():
    """Nor is a gradient of it made, of zeros, for each chunk."""
    loss, shapes = long_row()

    def made(arguments):
        traced = jax.jit(jax.grad(loss, arguments)).trace(*shapes)
        found = cases.equations(traced.jaxpr.jaxpr)
        shape = (32768, 64)  # of the head
        return [one.primitive.name for one in found for x in one.outvars if x.aval.shape == shape]

    assert set(made(0)) <= {"sharding_constraint"}
    assert "broadcast_in_dim" in made((0, 1))  # the sum over the chunks


@pytest.mark.parametrize("entropy_counts", [False, True])
def test_gradients_of_entropy(case, entropy_counts):
    hidden, head, tokens, wanted = case

    def chunked(hidden, head):
        scores = losses.token_scores(
            {"lm_head": {"weight": head}}, hidden, tokens, wanted, 0.7, entropy=True
        )
        total = scores.entropy if entropy_counts else jax.lax.stop_gradient(scores.entropy)
        return jnp.sum(jnp.where(wanted, scores.logprob + 0.3 * total, 0.0))

    def whole(hidden, head):
        logprobs = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden, head) / 0.7)
        picked = jnp.take_along_axis(logprobs, tokens[..., None], -1)[..., 0]
        total = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
        total = total if entropy_counts else jax.lax.stop_gradient(total)
        return jnp.sum(jnp.where(wanted, picked + 0.3 * total, 0.0))

    ours, theirs = (jax.value_and_grad(f, (0, 1))(hidden, head) for f in (chunked, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), ours, theirs)
