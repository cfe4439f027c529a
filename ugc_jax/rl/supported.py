"""The reward `evidence`: content words that the media support, minus those that nothing supports.

    prompts, completions -> rows with all completions of a prompt -> Engine.score with media hidden
        -> generate/evidence.py -> balance of each completion, in -1..1

The policy that sampled the completions scores them. It says what this policy rests on: a reward for
grounding beside others, not for being right.
"""

import jax
import numpy as np

from ugc_jax.data.batching import Batch
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.errors import UserError
from ugc_jax.generate import evidence, scoring
from ugc_jax.generate.engine import Engine
from ugc_jax.rl.rows import Completions

NAME = "evidence"


def check_processes():
    """Raise UserError where several processes train together."""
    if jax.process_count() > 1:
        raise UserError("rewards.functions: evidence works with one process; leave it out")


def balances(
    engine: Engine,
    params: dict,
    prompts: Batch,
    completions: Completions,
    tokenizer: ChatTokenizer,
    media: dict[str, jax.Array] | None = None,
) -> np.ndarray:
    """Return `evidence.balance` of completions, f64[B, G]; 0 for empty rows.

    prompts: numpy, one a row. media: the encoders' rows of them, if they are at hand.
    """
    B, G = completions.lengths.shape
    texts = [
        [
            completions.tokens[b, g, : n - int(completions.stopped[b, g] and n > 0)].tolist()
            for g, n in enumerate(completions.lengths[b])
        ]
        for b in range(B)
    ]
    size = scoring.slots_of(max(1, *(sum(map(len, own)) for own in texts)))
    rows = scoring.text_rows(prompts, texts, size, engine.config)
    ways = scoring.hidden_ways(rows.batch, evidence.WAYS, engine.config)
    if media is not None:
        rows = rows._replace(batch=rows.batch._replace(media={}))
    scores, out = engine.score(params, rows, ways, media), np.zeros((B, G))
    for b, own in enumerate(texts):
        for g, ids in enumerate(own):
            if ids:
                spans, text = evidence.token_spans(ids, tokenizer), tokenizer.decode(ids)
                found = scores[b, :, rows.places[b][g]]
                out[b, g] = evidence.balance(evidence.explain("", text, spans, found))
    return out
