"""What the records of a training set show a model: clip settings, system prompt and question."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ugc_jax.data.records import IndexEntry, RecordSource, text_of
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.qwen2_5_omni.tokens import DEFAULT_SYSTEM

logger = logging.getLogger(__name__)


def shown_clip(sources: Sequence[RecordSource], items: np.ndarray) -> ClipSettings:
    """Return the resolved clip settings, with system prompt and question, of most examples.

    items: i32[n, 2], (source, record) of each example of the run. Warns if other examples differ,
    and of prompts of another form than a caption's: the clip, then one question. The part of a clip
    that was used (start, end) is not a setting of the model.
    """
    shown: Counter = Counter()
    others = 0
    for (source, number), count in zip(*np.unique(items, axis=0, return_counts=True), strict=True):
        entry, clip = sources[source].entries[number], sources[source].clip
        first = entry.messages[0]
        system = text_of(first) if first["role"] == "system" else DEFAULT_SYSTEM
        texts = dict(system=system, question=entry.question)
        shown[dataclasses.replace(clip, start=None, end=None, **texts)] += int(count)
        others += int(count) * (not _is_plain(entry))
    (most, count), *rest = shown.most_common()
    if rest:
        logger.warning(
            "the examples have %d kinds of clip settings, system prompts and questions; the model "
            "takes those of %.0f %% of the examples as its defaults",
            len(shown), 100 * count / shown.total(),
        )  # fmt: skip
    if others:
        logger.warning(
            "%d of %d examples have prompts of another form than a caption's, which is the clip "
            "and then one question; the model's defaults cannot express them",
            others, shown.total(),
        )  # fmt: skip
    return most


def _is_plain(entry: IndexEntry) -> bool:
    """Whether a prompt is one turn of the user: its media, then text."""
    turns = [turn for turn in entry.prompt if turn["role"] != "system"]
    content = turns[0]["content"]
    parts = [{"type": "text"}] if isinstance(content, str) else content
    is_text = ["text" in (part["type"], *part) for part in parts]
    return len(turns) == 1 and is_text == sorted(is_text)
