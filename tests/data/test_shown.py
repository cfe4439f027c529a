"""ugc_jax.data.shown: what most examples of a training set show a model."""

from types import SimpleNamespace

import numpy as np

from ugc_jax.data.records import IndexEntry
from ugc_jax.data.shown import shown_clip
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.tokens import DEFAULT_SYSTEM


def entry(question, system=None):
    turns = [] if system is None else [{"role": "system", "content": system}]
    turns += [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]},
        {"role": "assistant", "content": "A cat."},
    ]
    return IndexEntry("id", turns, None, {}, ())


def source(entries, **clip):
    return SimpleNamespace(entries=entries, clip=resolve(ClipSettings(**clip)))


def test_settings_of_the_extraction_and_texts_of_the_messages(caplog):
    clips = source([entry("What?", "Look.")] * 2, fps=1.0, start=3.0, question="not asked")
    clip = shown_clip([clips], np.array([[0, 0], [0, 1]]))
    assert clip == resolve(ClipSettings(fps=1.0, question="What?", system="Look."))
    assert not caplog.records


def test_messages_without_a_system_prompt_have_the_default_one():
    clip = shown_clip([source([entry("What?")], preset="upstream")], np.array([[0, 0]]))
    assert (clip.system, clip.frames) == (DEFAULT_SYSTEM, 32)


def test_most_examples_decide(caplog):
    sources = [
        source([entry("a"), entry("b"), entry("b")]),
        source([entry("c")], frames=4),
    ]
    once = np.array([[0, 0], [0, 1], [0, 2], [1, 0]])
    assert shown_clip(sources, once).question == "b"
    assert "3 kinds of clip settings" in caplog.text
    assert "those of 50 %" in caplog.text
    drawn_often = np.concatenate([once, [[1, 0]] * 3])
    assert shown_clip(sources, drawn_often).frames == 4


def test_prompts_that_a_caption_cannot_have_are_warned_of(caplog):
    inside = entry("What?")
    inside.messages[0]["content"].insert(0, {"type": "text", "text": "Before "})
    turns = entry("What?")
    turns.messages[:0] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
    clips = source([entry("What?"), inside, turns])
    shown_clip([clips], np.array([[0, 0], [0, 1], [0, 2], [0, 2]]))
    assert "3 of 4 examples have prompts of another form" in caplog.text
