"""The objective of GRPO: the formula and the paper of every option.

A prompt has G completions (arXiv 2402.03300). A completion has a reward r and an advantage A. A
token of it has four log-probabilities: l of the trained policy, o of the policy before the first
update on this batch, u of the rollout that sampled it, f of the reference; and the entropy H of its
distribution. Only l has a gradient, and H in the entropy bonus. An update descends the gradient of

    sum over tokens of  w * (m * tis * clipped + beta * kl - entropy_bonus * m * H)

rho: the importance ratio (`importance`).
    token      exp(l - o)
    sequence   exp(mean of l - o over the completion), for all its tokens: GSPO, arXiv 2507.18071
    With one update per batch, o is l without its gradient, and rho = 1.
clipped: PPO's loss (arXiv 1707.06347), with the wider upper side of DAPO (arXiv 2503.14476).
    -min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A), and where A < 0 at most
    dual_clip * |A| (arXiv 1912.09729)
tis: min(exp(o - u), tis_cap), truncated importance sampling: rollout and training compute the same
    policy by different programs, so o differs slightly from u (fengyao.notion.site/off-policy-rl).
m:  1 for tokens with H in the top entropy_quantile of their microbatch, 0 for the others, which
    stay in the denominators (arXiv 2506.01939).
kl: an estimate of KL(policy || reference) (joschu.net/blog/kl-approx.html). x = f - l is clamped
    to +-20 and the value to +-10, with no gradient beyond, as in NeMo-RL.
    k1   -x: unbiased, but its gradient's mean is 0, so it restrains nothing
    k2   x^2 / 2: its gradient is unbiased
    k3   exp(x) - 1 - x: unbiased and never negative
    k3+  the value of k3 with the gradient of k2 (of its x, not of its clamped value)
w:  the aggregation. Each sum is over the batch of one update, on all devices.
    dapo      1 / tokens (arXiv 2503.14476)
    grpo      1 / (completions * tokens of its own completion)
    bnpo      1 / (microbatches * tokens of its microbatch), by loop.accumulate
    dr_grpo   1 / (completions * max_new_tokens) (arXiv 2503.20783)
A:  r is the sum of weight * reward; mean and std (divided by n - 1) are over the group.
    group   (r - mean) / (std + 1e-4)
    batch   (r - mean) / (std of r over the batch + 1e-4) (arXiv 2508.08221)
    none    r - mean (arXiv 2503.20783)
    gdpo    each reward as in `group`, their weighted sum s, and (s - mean of s over the batch) /
            (std of s over the batch + 1e-4) (arXiv 2601.05242)
overlong: tokens before max_new_tokens in which the penalty of a long completion rises linearly
    from 0 to overlong_penalty (DAPO). It is subtracted from r; for gdpo it is a reward of weight 1.
mask_truncated: a completion that was cut off at max_new_tokens counts in the statistics of its
    group, but w = 0 (DAPO's overlong filtering).
dynamic_sampling: groups of equal rewards, whose A is 0, are replaced by those of further prompts
    until the batch is full or `resamples` more batches were drawn (DAPO).
reference_sync: after every reference_sync updates,
    reference <- mix * policy + (1 - mix) * reference, with mix = reference_mix (TR-DPO, arXiv
    2404.09656).

Differences from TRL:
- A completion that lacks a reward (the function failed on every attempt) is left out of its group,
  and so is one that is then alone in it; TRL sums the rewards that exist.
- Completions that are left out or masked as truncated are in no numerator and no denominator;
  TRL's grpo and dr_grpo count them.
- A microbatch of bnpo is spread over all devices; TRL's is one device's.
- The entropy bonus is summed with w, as all other terms; TRL takes its mean over tokens, which is
  the same for dapo only.
- TRL clamps no kl and no log-ratio. Here l - o and o - u are kept within +-20, as in verl.
- TRL's correction masks whole completions by default; tis is its mode token_truncate.
"""

import dataclasses
from typing import Literal

from ugc_jax.errors import UserError
from ugc_jax.settings import check_minimum


@dataclasses.dataclass(frozen=True)
class GrpoOptions:
    """Objective of GRPO, with its formulas in ugc_jax/rl/options."""

    iterations: int = 1  # passes over a batch of rollouts
    minibatches: int = 1  # updates that a batch of rollouts is divided into in each pass
    # how far below 1 the importance ratio counts (default: 0.2; 3e-4 with importance=sequence)
    clip_low: float | None = None
    clip_high: float | None = None  # how far above 1 (default: 0.28; 4e-4 with sequence)
    dual_clip: float = 0.0  # largest ratio that counts where the advantage is negative; 0: any
    beta: float = 0.01  # weight of the KL to the reference; 0: no reference
    # estimate of that KL: k1 has no use as a loss, k3+ is k3 with an unbiased gradient
    kl: Literal["k1", "k2", "k3", "k3+"] = "k3"
    # divisor of a token's loss: all tokens (dapo), completions times tokens of its own (grpo),
    # microbatches times tokens of its own (bnpo), completions times max_new_tokens (dr_grpo)
    aggregation: Literal["dapo", "grpo", "bnpo", "dr_grpo"] = "dapo"
    # divisor of a reward above its group's mean: std of the group, of the batch, none, or each
    # reward's own (gdpo); auto: gdpo for more than one reward function, else group
    scale: Literal["auto", "group", "batch", "none", "gdpo"] = "auto"
    # importance ratio of a token or of its completion (GSPO)
    importance: Literal["token", "sequence"] = "token"
    tis_cap: float = 2.0  # cap of the weight that corrects for the rollout's log-probs; 0: none
    mask_truncated: bool = True  # learn nothing from completions cut off at max_new_tokens
    overlong: int = 0  # tokens before max_new_tokens in which a penalty rises; 0: no penalty
    overlong_penalty: float = 1.0  # the penalty at max_new_tokens, off the reward
    dynamic_sampling: bool = False  # replace groups whose rewards are all equal
    resamples: int = 3  # maximum number of further batches for it
    # share of the last 20 steps that may be skipped, as none of their groups had its rewards
    skipped_share: float = 0.5
    entropy_bonus: float = 0.0  # weight of the entropy in the objective
    entropy_quantile: float = 1.0  # share of tokens, by highest entropy, that learn; 0.2 is usual
    reference_sync: int = 0  # updates between mixing the policy into the reference; 0: never
    reference_mix: float = 0.6  # share of the policy in that mixture
    # compute a prompt once for all its completions; false: once for each, without sharing
    shared_prompt: bool = True

    def __post_init__(self):
        def require(holds: bool, name: str, remedy: str):
            if not holds:
                raise UserError(f"{name} is {getattr(self, name)}; use {remedy}")

        nonnegative = (
            "clip_low", "clip_high", "beta", "tis_cap", "overlong", "overlong_penalty",
            "resamples", "entropy_bonus", "reference_sync",
        )  # fmt: skip
        check_minimum(self, iterations=1, minibatches=1, **dict.fromkeys(nonnegative, 0))
        require(
            self.dual_clip == 0 or self.dual_clip > 1 + self.clips[1],
            "dual_clip",
            f"0, or more than 1 + clip_high = {1 + self.clips[1]:g}",
        )
        require(0 < self.entropy_quantile <= 1, "entropy_quantile", "more than 0, at most 1")
        require(0 <= self.skipped_share <= 1, "skipped_share", "0 to 1")
        require(0 <= self.reference_mix <= 1, "reference_mix", "0 to 1")
        require(
            self.beta > 0 or self.reference_sync == 0,
            "reference_sync",
            "0, as there is no reference without beta; or set beta",
        )

    @property
    def clips(self) -> tuple[float, float]:
        """Return how far below and above 1 the importance ratio counts."""
        usual = (3e-4, 4e-4) if self.importance == "sequence" else (0.2, 0.28)
        given = self.clip_low, self.clip_high
        return tuple(u if g is None else g for u, g in zip(usual, given, strict=True))

    @property
    def updates(self) -> int:
        """Return the updates on one batch of rollouts; with 1, no `old` log-probs are needed."""
        return self.iterations * self.minibatches
