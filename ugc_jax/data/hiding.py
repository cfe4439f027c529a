"""Sound and picture that are in a row, but that nothing attends to.

A hidden token is padding (segment 0) for attention; it keeps its place, and so all tokens keep
their positions. `generate/evidence.py` scores captions with hidden media, and training hides them
in a share of its examples (`hide_media` of sft), so that the model knows prompts without them.
"""

from collections.abc import Sequence

import numpy as np

from ugc_jax.data.batching import Batch
from ugc_jax.models.qwen2_5_omni.config import OmniConfig

SOUND, PICTURE = "audio", "vision"  # as in `Batch.media`
PARTS = ((SOUND,), (PICTURE,), (SOUND, PICTURE))  # what is hidden of an example in training
_DRAW = 20  # sets these random numbers apart from others of a run


def is_of(tokens: np.ndarray, kinds: Sequence[str], config: OmniConfig) -> np.ndarray:
    """Return which tokens are of media of the kinds (SOUND, PICTURE); markers are not. bool."""
    ids = config.tokens
    of = {SOUND: [ids.audio_token_id], PICTURE: [ids.image_token_id, ids.video_token_id]}
    return np.isin(tokens, [token for kind in kinds for token in of[kind]])


def hide_some(batch: Batch, share: float, step: int, rows: Sequence[int], config: OmniConfig):
    """Hide sound, picture or both, a third each, in a share of a batch's examples, in place.

    rows: their numbers in the global batch, which with `step` and the example's place in its row
    decide what is hidden of it.
    """
    for number, tokens, segments in zip(rows, batch.tokens, batch.segment_ids, strict=True):
        for segment in range(1, segments.max(initial=0) + 1):
            draw = np.random.default_rng((_DRAW, step, number, segment))
            if draw.random() < share:
                kinds = PARTS[draw.integers(len(PARTS))]
                segments[(segments == segment) & is_of(tokens, kinds, config)] = 0
