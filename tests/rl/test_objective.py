"""Losses and gradients against TRL's formulas, written out in torch in TRL's own layout."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ugc_jax.rl.advantages import token_weights
from ugc_jax.rl.objective import objective
from ugc_jax.rl.options import GrpoOptions
from ugc_jax.rl.rows import PolicyBatch
from ugc_jax.train.losses import TokenScores

B, G, N, S = 4, 3, 9, 32  # rows, completions of a row, most tokens of one, slots of a row
PARTS, MAX_NEW_TOKENS = 2, 12


class Case(NamedTuple):
    """TRL's layout: f32[B * G, N], but advantage [B * G]; count is 0 where left out."""

    logprob: np.ndarray
    entropy: np.ndarray
    old: np.ndarray
    reference: np.ndarray
    rollout: np.ndarray
    advantage: np.ndarray
    count: np.ndarray
    length: np.ndarray

    @property
    def mask(self):
        return np.arange(N) < self.count[:, None]


@pytest.fixture(scope="module")
def case():
    random = np.random.default_rng(0)

    def normal(scale, *shape):
        return (scale * random.standard_normal(shape or (B * G, N))).astype(np.float32)

    logprob = -np.abs(normal(2))
    old = logprob + normal(0.7)
    reference = logprob + normal(1)
    reference[::2, 0] += 6  # k2 and k3 are clamped there
    reference[1::2, 0] -= 30  # and x is
    length = random.integers(2, N + 1, B * G)
    count = length.copy()
    count[np.arange(B) * G + np.arange(B) % G] = 0  # as many of each row, for TRL's means
    return Case(
        logprob, np.abs(normal(1)), old, reference, old + normal(0.7), normal(1, B * G), count,
        length,
    )  # fmt: skip


# ---- TRL -----------------------------------------------------------------------------------------


def trl(case: Case, options: GrpoOptions, on_policy: bool):
    """(loss, its gradient by logprob, by entropy) of all parts, in float64.

    What is left out is taken away beforehand. Added to TRL: the kinds of KL with NeMo-RL's clamps,
    and the entropy bonus in the loss of a token.
    """
    logprob = torch.tensor(case.logprob, dtype=torch.float64, requires_grad=True)
    entropy = torch.tensor(case.entropy, dtype=torch.float64, requires_grad=True)
    loss = torch.zeros((), dtype=torch.float64)
    for part in range(PARTS):
        rows = np.arange(B * G)
        rows = rows[(rows // G % PARTS == part) & (case.count > 0)]
        loss = loss + trl_part(case, options, on_policy, rows, logprob[rows], entropy[rows])
    loss.backward()
    zeros = torch.zeros_like(entropy)
    return loss.item(), logprob.grad, zeros if entropy.grad is None else entropy.grad


def trl_part(case, options, on_policy, rows, logprob, entropy):
    mask, old, reference, rollout = (
        torch.tensor(x[rows], dtype=torch.float64)
        for x in (case.mask, case.old, case.reference, case.rollout)
    )
    advantages = torch.tensor(case.advantage[rows], dtype=torch.float64).unsqueeze(1)
    if on_policy:
        old = logprob.detach()

    log_ratio = logprob - old
    if options.importance == "sequence":
        log_ratio = ((log_ratio * mask).sum(-1) / mask.sum(-1)).unsqueeze(-1)
    coef_1 = torch.exp(log_ratio)
    coef_2 = torch.clamp(coef_1, 1 - options.clips[0], 1 + options.clips[1])
    if options.dual_clip:
        coef_1 = torch.clamp(coef_1, max=options.dual_clip)
    per_token = -torch.min(coef_1 * advantages, coef_2 * advantages).expand_as(mask)
    effective = mask
    if options.entropy_quantile < 1:
        threshold = torch.quantile(entropy.detach()[mask.bool()], 1 - options.entropy_quantile)
        effective = mask * (entropy >= threshold)
    per_token = per_token * effective
    if options.tis_cap:
        per_token = per_token * torch.clamp(torch.exp(old - rollout), max=options.tis_cap)
    if options.beta:
        per_token = per_token + options.beta * trl_kl(logprob, reference, options.kl)
    if options.entropy_bonus:
        per_token = per_token - options.entropy_bonus * entropy * effective

    if options.aggregation == "grpo":
        return ((per_token * mask).sum(-1) / mask.sum(-1)).mean() / PARTS
    if options.aggregation == "bnpo":
        return (per_token * mask).sum() / mask.sum() / PARTS
    if options.aggregation == "dr_grpo":
        return (per_token * mask).sum() / (len(rows) * MAX_NEW_TOKENS) / PARTS
    return (per_token * mask).sum() / case.mask.sum()


def trl_kl(logprob, reference, kind):
    x = torch.clamp(reference - logprob, -20, 20)
    if kind == "k3+":
        k2 = x**2 / 2
        return torch.clamp(torch.exp(x) - x - 1, -10, 10).detach() + k2 - k2.detach()
    value = {"k1": -x, "k2": x**2 / 2, "k3": torch.exp(x) - x - 1}[kind]
    return torch.clamp(value, -10, 10)


# ---- ours ----------------------------------------------------------------------------------------


def places(case: Case):
    """(row, slot) i[B * G, N] of each token: completions follow each other after two free slots."""
    slot = np.zeros((B * G, N), int)
    for row in range(B):
        start = 2
        for n in range(row * G, (row + 1) * G):
            slot[n] = start + np.arange(N)
            start += case.length[n]
    return np.repeat(np.arange(B * G) // G, N).reshape(B * G, N), slot


class Scored(NamedTuple):
    """Rows and the scores of their tokens, without what the loss does not read."""

    batch: PolicyBatch
    scores: TokenScores


def scored_rows(case: Case, options: GrpoOptions, on_policy: bool) -> Scored:
    """The case in rows; what is not scored is NaN."""
    row, slot = places(case)
    inside = np.arange(N) < case.length[:, None]

    def lay(x_NT, free=np.nan):
        out = np.full((B, S), free, np.asarray(x_NT).dtype)
        out[row[inside], slot[inside]] = np.broadcast_to(x_NT, (B * G, N))[inside]
        return out

    def score(x_NT):
        return lay(np.where(case.mask, x_NT, np.float32(np.nan)))

    weights = token_weights(case.count.reshape(B, G), options, MAX_NEW_TOKENS, PARTS)
    batch = PolicyBatch(
        inputs=None,
        media=None,
        previous=None,
        tokens=None,
        sample=lay((np.arange(B * G) % G).astype(np.int32)[:, None], -1),
        rollout=score(case.rollout),
        advantage=score(case.advantage[:, None]),
        weight=lay(weights.reshape(-1, 1), 0),
        old=None if on_policy else score(case.old),
        reference=score(case.reference) if options.beta else None,
    )
    return Scored(batch, TokenScores(score(case.logprob), hit=None, entropy=score(case.entropy)))


def gradients(scored: Scored, options: GrpoOptions, samples: int = G):
    def loss(logprob, entropy):
        return objective(scored.batch, TokenScores(logprob, None, entropy), options, samples)

    scores = scored.scores
    return jax.value_and_grad(loss, (0, 1), has_aux=True)(scores.logprob, scores.entropy)


def parted(scored: Scored, options: GrpoOptions):
    """(loss, sums, gradient by logprob, by entropy) of the rows, part by part."""
    loss, total, grads = 0.0, {}, np.zeros((2, B, S))
    for part in range(PARTS):
        rows = jax.tree.map(lambda x, part=part: x[part::PARTS], scored)
        (value, sums), (by_logprob, by_entropy) = gradients(rows, options)
        loss += float(value)
        grads[:, part::PARTS] = by_logprob, by_entropy
        total = {
            name: total.get(name, 0) + float(x) for name, x in sums.items() if name[:3] != "max"
        }
    return loss, total, *grads


def assert_near(ours, theirs):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


VARIANTS = [
    dict(),
    dict(aggregation="grpo"),
    dict(aggregation="bnpo"),
    dict(aggregation="dr_grpo"),
    dict(importance="sequence", aggregation="grpo", clip_low=3e-4, clip_high=4e-4),
    dict(importance="sequence", clip_low=0.1, clip_high=0.5),
    dict(importance="sequence", aggregation="dr_grpo", dual_clip=1.5),
    dict(dual_clip=1.5),
    dict(dual_clip=3.0, aggregation="grpo"),
    dict(beta=0.0),
    dict(kl="k1", beta=0.5),
    dict(kl="k2", beta=0.5),
    dict(kl="k3", beta=0.5),
    dict(kl="k3+", beta=0.5),
    dict(tis_cap=0.0),
    dict(tis_cap=1.2, beta=0.0),
    dict(entropy_quantile=0.2),
    dict(entropy_quantile=0.5, aggregation="bnpo"),
    dict(entropy_bonus=0.1),
    dict(entropy_bonus=0.1, entropy_quantile=0.3, aggregation="grpo"),
    dict(
        aggregation="bnpo", importance="sequence", dual_clip=2.0, kl="k3+", beta=0.1,
        entropy_quantile=0.4, entropy_bonus=0.05, tis_cap=1.5,
    ),
]  # fmt: skip


CASES = [(variant, False) for variant in VARIANTS] + [(variant, True) for variant in VARIANTS[::3]]


@pytest.mark.parametrize(("variant", "on_policy"), CASES)
def test_loss_and_gradient_equal_trls(case, variant, on_policy):
    options = GrpoOptions(**variant)
    loss, _, by_logprob, by_entropy = parted(scored_rows(case, options, on_policy), options)
    expected, logprob_grad, entropy_grad = trl(case, options, on_policy)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    mask, (row, slot) = case.mask, places(case)
    for ours, theirs in ((by_logprob, logprob_grad), (by_entropy, entropy_grad)):
        assert_near(ours[row[mask], slot[mask]], theirs.numpy()[mask])
        ours[row[mask], slot[mask]] = 0
        assert not ours.any()  # neither padding nor what is left out has a gradient


@pytest.mark.parametrize("importance", ["token", "sequence"])
def test_the_ratio_is_exactly_1_in_the_first_update(case, importance):
    options = GrpoOptions(importance=importance, beta=0.0, tis_cap=0.0)
    scored = scored_rows(case, options, on_policy=True)
    compiled = jax.jit(gradients, static_argnums=1)
    (_, sums), (by_logprob, _) = compiled(scored, options)
    assert sums["ratio"] == sums["tokens"] == case.mask.sum()
    assert sums["max_ratio"] == 1
    assert sums["clip_low"] == sums["clip_high"] == 0
    # That of the log-prob times the advantage: what is updated on the spot needs no `old`.
    batch = scored.batch
    expected = np.where(batch.weight > 0, -batch.weight * batch.advantage, 0)
    assert_near(by_logprob, expected)


def test_metrics(case):
    options = GrpoOptions(dual_clip=2.0)
    scored = scored_rows(case, options, on_policy=False)
    _, sums, *_ = parted(scored, options)
    mask = case.mask
    ratio = np.exp(case.logprob - case.old)[mask].astype(np.float64)
    mismatch = (case.old - case.rollout)[mask].astype(np.float64)
    above = np.broadcast_to(case.advantage[:, None] > 0, mask.shape)[mask]
    kl = trl_kl(torch.tensor(case.logprob), torch.tensor(case.reference), "k3").numpy()[mask]
    expected = {
        "tokens": mask.sum(),
        "ratio": ratio.sum(),
        "clip_low": (~above & (ratio < 0.8)).sum(),
        "clip_high": (above & (ratio > 1.28)).sum(),
        "dual_clip": (~above & (ratio > 2.0)).sum(),
        "entropy": case.entropy[mask].sum(),
        "mult_prob_error": np.exp(np.abs(mismatch)).sum(),
        "tis": np.minimum(np.exp(mismatch), 2).sum(),
        "kl": kl.sum(),
    }
    assert all(value > 0 for value in expected.values())
    assert sums.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-5, err_msg=name)
    (_, whole), _ = gradients(scored, options)
    np.testing.assert_allclose(whole["max_ratio"], ratio.max(), rtol=1e-5)


def test_without_beta_the_reference_is_not_in_the_program(case):
    def program(options):
        scored = scored_rows(case, options, on_policy=True)
        jaxpr = jax.make_jaxpr(lambda scored: objective(*scored, options, G))(scored)
        return len(jaxpr.in_avals), str(jaxpr).count(" exp ")

    inputs, exponentials = program(GrpoOptions())
    inputs_0, exponentials_0 = program(GrpoOptions(beta=0.0))
    assert inputs_0 == inputs - 1
    assert exponentials_0 == exponentials - 1


@pytest.mark.parametrize("importance", ["token", "sequence"])
def test_rows_of_one_completion_have_the_same_loss(case, importance):
    """The plain path: the slots of each completion in a row of its own."""
    options = GrpoOptions(importance=importance)
    scored = scored_rows(case, options, on_policy=False)
    alone = jax.tree.map(lambda x: np.repeat(x, G, axis=0), scored)
    own = alone.batch.sample == np.arange(B * G)[:, None] % G
    own_weight, own_sample = np.where(own, alone.batch.weight, 0), np.where(own, 0, -1)
    batch = alone.batch._replace(weight=own_weight, sample=own_sample.astype(np.int32))
    alone = alone._replace(batch=batch)
    (together, sums), _ = gradients(scored, options)
    (apart, sums_apart), _ = gradients(alone, options, samples=1)
    np.testing.assert_allclose(apart, together, rtol=1e-6)
    np.testing.assert_allclose(sums_apart["ratio"], sums["ratio"], rtol=1e-6)


@pytest.mark.parametrize("difference", [-200.0, 200.0])
def test_far_policies_give_finite_gradients(case, difference):
    options = GrpoOptions(dual_clip=3.0, entropy_bonus=0.1)
    scored = scored_rows(case, options, on_policy=False)
    batch, logprob = scored.batch, scored.scores.logprob
    batch = batch._replace(
        old=logprob + np.float32(difference), reference=logprob - np.float32(difference)
    )
    scored = scored._replace(batch=batch)
    (loss, sums), grads = gradients(scored, options)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((loss, sums, grads)))


def test_a_part_without_tokens_is_worth_nothing(case):
    options = GrpoOptions(entropy_quantile=0.2, importance="sequence", beta=0.1)
    scored = scored_rows(case, options, on_policy=False)
    batch = scored.batch._replace(weight=jnp.zeros((B, S)))
    (loss, sums), grads = gradients(scored._replace(batch=batch), options)
    assert not any(np.any(x) for x in jax.tree.leaves((loss, sums, grads)))
