"""Log-probabilities of tokens and the SFT loss; logits exist for one chunk of tokens at a time.

Letters: B rows, T tokens, C tokens of a chunk, D width, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ugc_jax.data.batching import Batch
from ugc_jax.models.compute import Compute
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.sharding import constrain, on_rows

CHUNK = 256  # most tokens of a row whose logits exist at a time: 256 * 151936 * 4 = 156 MB
CHUNKS = 8  # fewest chunks of a row, so that a short row has chunks to skip, too


class TokenScores(NamedTuple):
    """Of each token whose mask is set; elsewhere undefined.

    logprob: f32[B, T]. hit: bool[B, T], whether it was the likeliest token. entropy: f32[B, T] of
    its distribution, in nats; None unless requested.
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
    params, hidden_BTD, tokens_BT, mask_BT, temperature: float = 1.0, entropy: bool = False
) -> TokenScores:
    """Return log p(tokens[b, t]) by the model's head from hidden[b, t], chunk by chunk.

    mask_BT: bool, the tokens to score. A chunk in which no row has any is skipped: prompts are
    long, and answers come last.
    temperature: logits are divided by it, as where the tokens were sampled.
    Logits and their log-sum-exp are float32. The backward pass recomputes a chunk's logits instead
    of keeping them, and its products are of hidden's dtype with float32 sums. Each device has the
    head whole in its width; its gradient is summed over the chunks in the dtype of the parameter,
    and over the devices after the last one.
    """
    B, T, D = hidden_BTD.shape
    chunk = min(CHUNK, -(-T // CHUNKS))
    pad = -T % chunk
    hidden_BTD = jnp.pad(hidden_BTD, ((0, 0), (0, pad), (0, 0)))
    tokens_BT, mask_BT = (jnp.pad(x, ((0, 0), (0, pad))) for x in (tokens_BT, mask_BT))
    mask_C = jnp.any(mask_BT.reshape(B, -1, chunk), axis=(0, 2))  # the chunks that any row needs
    bound = functools.partial(_scores, chunk=chunk, temperature=temperature, entropy=entropy)
    rows = hidden_BTD, tokens_BT
    axes, dtype = ("vocab", "embed"), hidden_BTD.dtype
    out = on_rows(bound, thinker.head(params), axes, rows, (mask_C,), dtype)
    return jax.tree.map(lambda x: x[:, :T], out)


def _scores(head_VD, rows, others, chunk: int, temperature: float, entropy: bool) -> TokenScores:
    """The scores of the rows of one device; chunks that no row of the batch needs are skipped."""
    hidden_BTD, tokens_BT = rows
    (mask_C,) = others
    B = len(tokens_BT)

    def scores(head_VD, hidden_BCD, tokens_BC):
        logits_BCV = _logits(head_VD, hidden_BCD)
        logits_BCV = constrain(logits_BCV, ("batch", None, "vocab")) / temperature
        # A masked sum, not a gather: the vocabulary may be split over devices.
        match_BCV = jnp.arange(logits_BCV.shape[-1])[None, None] == tokens_BC[..., None]
        logit_BC = jnp.sum(jnp.where(match_BCV, logits_BCV, 0.0), axis=-1)
        total_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
        entropy_BC = None
        if entropy:
            weights_BCV = jnp.exp(logits_BCV - total_BC[..., None])
            entropy_BC = total_BC - jnp.sum(weights_BCV * logits_BCV, axis=-1)
        likeliest = logit_BC >= jnp.max(logits_BCV, axis=-1)
        return TokenScores(logit_BC - total_BC, likeliest, entropy_BC)

    def zeros(head_VD, hidden_BCD, tokens_BC):
        zeros_BC = jnp.zeros(tokens_BC.shape, jnp.float32)
        return TokenScores(zeros_BC, tokens_BC < 0, zeros_BC if entropy else None)

    # Written by hand: jax's gradient of a `cond` saves the head (600 MB) as a residual of the
    # branch, and adds zeros of its size for skipped chunks.
    @jax.custom_vjp
    def of_chunks(head_VD, *chunks):
        def one(inputs):
            *arrays, is_needed = inputs
            return jax.lax.cond(is_needed, scores, zeros, head_VD, *arrays)

        return jax.lax.map(one, chunks)

    def forward(head, *chunks):
        kept = [x.value for x in (head, *chunks)]
        return of_chunks(*kept), (*kept, () if head.perturbed else None)

    def backward(kept, grads):
        head_VD, *chunks, learns = kept
        grads = [
            jnp.zeros(x.shape, x.dtype) if isinstance(x, SymbolicZero) else x
            for x in (grads.logprob, grads.entropy)
        ]

        def one(total_VD, inputs):
            hidden_BCD, tokens_BC, is_needed, grads = inputs

            def pull(total_VD):
                def outputs(hidden_BCD, head_VD=head_VD):
                    found = scores(head_VD, hidden_BCD, tokens_BC)
                    return [found.logprob, found.entropy]

                if learns is None:  # a frozen head, as beside an adapter
                    return total_VD, jax.vjp(outputs, hidden_BCD)[1](grads)[0]
                hidden_grad, head_grad = jax.vjp(outputs, hidden_BCD, head_VD)[1](grads)
                return total_VD + head_grad, hidden_grad

            def skip(total_VD):
                return total_VD, jnp.zeros_like(hidden_BCD)

            return jax.lax.cond(is_needed, pull, skip, total_VD)

        total_VD = None if learns is None else jnp.zeros_like(head_VD)
        total_VD, hidden_grad = jax.lax.scan(one, total_VD, (*chunks, grads))
        return total_VD, hidden_grad, None, None

    of_chunks.defvjp(forward, backward, symbolic_zeros=True)

    def chunks(x):
        return jnp.moveaxis(x.reshape(B, -1, chunk, *x.shape[2:]), 1, 0)

    out = of_chunks(head_VD, chunks(hidden_BTD), chunks(tokens_BT), mask_C)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(B, -1), out)


@jax.custom_vjp
def _logits(head_VD, hidden_BCD) -> jax.Array:
    """Return `thinker.logits`, whose gradients are products of hidden's dtype, summed in float32.

    The gradient of the logits is float32, and of jax alone so would be the products with it: in
    bfloat16 a GPU takes half the time for them.
    """
    return thinker.logits(head_VD, hidden_BCD)


def _logits_forward(head, hidden):
    # A frozen head, as beside an adapter, gets no product.
    kept = head.value, hidden.value, () if head.perturbed else None
    return thinker.logits(head.value, hidden.value), kept


def _logits_backward(kept, grad_BCV):
    head_VD, hidden_BCD, learns = kept
    sums = dict(preferred_element_type=jnp.float32)
    grad_BCV = grad_BCV.astype(hidden_BCD.dtype)
    hidden = jnp.einsum("bcv,vd->bcd", grad_BCV, head_VD.astype(hidden_BCD.dtype), **sums)
    hidden = hidden.astype(hidden_BCD.dtype)
    if learns is None:
        return None, hidden
    return jnp.einsum("bcv,bcd->vd", grad_BCV, hidden_BCD, **sums).astype(head_VD.dtype), hidden


_logits.defvjp(_logits_forward, _logits_backward, symbolic_zeros=True)


def cross_entropy_sums(params, config: OmniConfig, compute: Compute, batch: Batch) -> LossSums:
    """Return sums over the tokens in `batch.target`, each predicted from those before it.

    A target is never the first token of its segment, so its predecessor is of the same example.
    """
    hidden_BTD = thinker.hidden_states(params, config, compute, batch)
    next_BT = jnp.roll(batch.tokens, -1, axis=1)
    mask_BT = jnp.roll(batch.target, -1, axis=1).at[:, -1].set(False)
    scores = token_scores(params, hidden_BTD, next_BT, mask_BT)
    return LossSums(
        loss=-jnp.sum(jnp.where(mask_BT, scores.logprob, 0.0)),
        hits=jnp.sum(scores.hit & mask_BT, dtype=jnp.float32),
        tokens=jnp.sum(mask_BT, dtype=jnp.float32),
    )
