"""Log-probabilities of tokens and the SFT loss, without ever building logits of a whole batch.

Letters: B rows, T tokens, C tokens of a chunk, D width, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ugc_jax.data.batching import Batch
from ugc_jax.models.compute import Compute
from ugc_jax.models.qwen2_5_omni import thinker as omni
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.sharding import constrain

CHUNK = 256  # most tokens of a row whose logits exist at a time: 256 * 151936 * 4 = 156 MB
CHUNKS = 8  # fewest parts that a row is cut into, so that a short row has parts to skip, too


class TokenScores(NamedTuple):
    """logprob f32[B, T] of each wanted token; hit bool[B, T], whether it was the likeliest.

    entropy: f32[B, T] of its distribution, in nats; None unless asked for.
    """

    logprob: jax.Array
    hit: jax.Array
    entropy: jax.Array | None


class LossSums(NamedTuple):
    """Sums over the trained tokens of a batch, f32 scalars: divide once, by the global count."""

    loss: jax.Array
    hits: jax.Array
    tokens: jax.Array


def token_scores(
    params, hidden_BTD, tokens_BT, wanted_BT, temperature: float = 1.0, entropy: bool = False
) -> TokenScores:
    """log p(tokens[b, t]) by the model's head from hidden[b, t], a chunk of all rows at a time.

    wanted_BT: bool, where scores are wanted; elsewhere they mean nothing. A chunk in which no row
    wants any is skipped: prompts are long, and answers stand at the end.
    temperature: logits are divided by it, as where the tokens were sampled.
    Logits and their log-sum-exp are float32. The backward pass makes a chunk's logits again
    instead of keeping them. The head is whole in its width (see `omni.embed`), and its gradient
    gathers over the chunks in the dtype of the parameter.
    """
    B, T, D = hidden_BTD.shape
    chunk = min(CHUNK, -(-T // CHUNKS))
    pad = -T % chunk
    hidden_BTD = jnp.pad(hidden_BTD, ((0, 0), (0, pad), (0, 0)))
    tokens_BT, wanted_BT = (jnp.pad(x, ((0, 0), (0, pad))) for x in (tokens_BT, wanted_BT))
    head_VD = constrain(omni.head(params), ("vocab", None))

    @jax.checkpoint
    def scores(hidden_BCD, tokens_BC):
        logits_BCV = omni.logits(head_VD, hidden_BCD)
        logits_BCV = constrain(logits_BCV, ("batch", None, "vocab")) / temperature
        # A masked sum, not a gather: the vocabulary may be split over devices.
        here_BCV = jnp.arange(logits_BCV.shape[-1])[None, None] == tokens_BC[..., None]
        logit_BC = jnp.sum(jnp.where(here_BCV, logits_BCV, 0.0), axis=-1)
        total_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
        entropy_BC = None
        if entropy:
            weights_BCV = jnp.exp(logits_BCV - total_BC[..., None])
            entropy_BC = total_BC - jnp.sum(weights_BCV * logits_BCV, axis=-1)
        likeliest = logit_BC >= jnp.max(logits_BCV, axis=-1)
        return TokenScores(logit_BC - total_BC, likeliest, entropy_BC)

    def nothing(hidden_BCD, tokens_BC):
        zeros_BC = jnp.zeros(tokens_BC.shape, jnp.float32)
        return TokenScores(zeros_BC, tokens_BC < 0, zeros_BC if entropy else None)

    @jax.checkpoint  # or the branch's residuals, a copy of the head for each chunk, would be kept
    def scores_if_wanted(inputs):
        *arrays, wanted_BC = inputs
        return jax.lax.cond(jnp.any(wanted_BC), scores, nothing, *arrays)

    def chunks(x):
        return jnp.moveaxis(x.reshape(B, -1, chunk, *x.shape[2:]), 1, 0)

    out = jax.lax.map(scores_if_wanted, tuple(map(chunks, (hidden_BTD, tokens_BT, wanted_BT))))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(B, -1)[:, :T], out)


def cross_entropy_sums(params, config: OmniConfig, compute: Compute, batch: Batch) -> LossSums:
    """Sums of cross-entropy over the tokens in `batch.target`, each predicted from those before it.

    A target is never the first token of its segment, so its predecessor is its own example's.
    """
    hidden_BTD = omni.hidden_states(params, config, compute, batch)
    next_BT = jnp.roll(batch.tokens, -1, axis=1)
    wanted_BT = jnp.roll(batch.target, -1, axis=1).at[:, -1].set(False)
    scores = token_scores(params, hidden_BTD, next_BT, wanted_BT)
    return LossSums(
        loss=-jnp.sum(jnp.where(wanted_BT, scores.logprob, 0.0)),
        hits=jnp.sum(scores.hit & wanted_BT, dtype=jnp.float32),
        tokens=jnp.sum(wanted_BT, dtype=jnp.float32),
    )
