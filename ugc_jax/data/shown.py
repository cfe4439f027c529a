"""What the records of a training set show a model: clip settings, system prompt and question."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ugc_jax.data.records import RecordSource, text_of
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.qwen2_5_omni.tokens import DEFAULT_SYSTEM

logger = logging.getLogger(__name__)


def shown_clip(sources: Sequence[RecordSource], items: np.ndarray) -> ClipSettings:
    """Return the resolved clip settings, with system prompt and question, of most examples.

    items: i32[n, 2], (source, record) of each example of the run. Logs the share of the examples if
    others differ. The part of a clip that was used (start, end) is not a setting of the model.
    """
    kinds: Counter = Counter()
    for (source, number), count in zip(*np.unique(items, axis=0, return_counts=True), strict=True):
        entry = sources[source].entries[number]
        first = entry.messages[0]
        system = text_of(first) if first["role"] == "system" else DEFAULT_SYSTEM
        kinds[int(source), system, entry.question] += int(count)
    shown: Counter = Counter()
    for (source, system, question), count in kinds.items():
        clip = sources[source].clip
        clip = dataclasses.replace(clip, start=None, end=None, system=system, question=question)
        shown[clip] += count
    (most, count), *others = shown.most_common()
    if others:
        logger.info(
            "the examples have %d kinds of clip settings, system prompts and questions; the model "
            "takes those of %.0f %% of the examples as its defaults",
            len(shown), 100 * count / shown.total(),
        )  # fmt: skip
    return most
