"""Log-probabilities of tokens and the SFT loss, without ever building logits of a whole batch.

Letters: B rows, T tokens, C tokens of a chunk, D width, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ugc_jax.config import Compute, OmniConfig
from ugc_jax.data.schema import Batch
from ugc_jax.models import omni
from ugc_jax.sharding import constrain

CHUNK = 256  # tokens of a row whose logits exist at a time: 256 * 151936 * 4 bytes = 156 MB


class TokenScores(NamedTuple):
    """logprob f32[B, T] of each wanted token; hit bool[B, T], whether it was the likeliest."""

    logprob: jax.Array
    hit: jax.Array


class LossSums(NamedTuple):
    """Sums over the trained tokens of a batch, f32 scalars: divide once, by the global count."""

    loss: jax.Array
    hits: jax.Array
    tokens: jax.Array


def token_scores(params, hidden_BTD, tokens_BT, chunk: int = CHUNK) -> TokenScores:
    """log p(tokens[b, t]) by the model's head from hidden[b, t], `chunk` tokens of a row at a time.

    Logits and their log-sum-exp are float32. The backward pass makes a chunk's logits again
    instead of keeping them. The head is whole in its width (see `omni.embed`), and its gradient
    gathers over the chunks in the dtype of the parameter.
    """
    B, T, D = hidden_BTD.shape
    chunk = min(chunk, T)
    pad = -T % chunk
    hidden_BTD = jnp.pad(hidden_BTD, ((0, 0), (0, pad), (0, 0)))
    tokens_BT = jnp.pad(tokens_BT, ((0, 0), (0, pad)))
    head_VD = constrain(params["lm_head"]["weight"], ("vocab", None))

    @jax.checkpoint
    def scores(inputs):
        hidden_BCD, tokens_BC = inputs
        logits_BCV = omni.logits({"lm_head": {"weight": head_VD}}, hidden_BCD)
        logits_BCV = constrain(logits_BCV, ("batch", None, "vocab"))
        wanted_BC = jnp.take_along_axis(logits_BCV, tokens_BC[..., None], axis=-1)[..., 0]
        logprob_BC = wanted_BC - jax.nn.logsumexp(logits_BCV, axis=-1)
        return TokenScores(logprob_BC, wanted_BC >= jnp.max(logits_BCV, axis=-1))

    def chunks(x):
        return jnp.moveaxis(x.reshape(B, -1, chunk, *x.shape[2:]), 1, 0)

    out = jax.lax.map(scores, (chunks(hidden_BTD), chunks(tokens_BT)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(B, -1)[:, :T], out)


def sft_sums(params, config: OmniConfig, compute: Compute, batch: Batch) -> LossSums:
    """Cross-entropy of the tokens in `batch.target`, each predicted from the tokens before it.

    A target is never the first token of its segment, so its predecessor is its own example's.
    """
    hidden_BTD = omni.hidden_states(params, config, compute, batch)
    wanted_BT = jnp.roll(batch.tokens, -1, axis=1)
    weight_BT = jnp.roll(batch.target, -1, axis=1).at[:, -1].set(False)
    scores = token_scores(params, hidden_BTD, wanted_BT)
    return LossSums(
        loss=-jnp.sum(jnp.where(weight_BT, scores.logprob, 0.0)),
        hits=jnp.sum(scores.hit & weight_BT, dtype=jnp.float32),
        tokens=jnp.sum(weight_BT, dtype=jnp.float32),
    )
