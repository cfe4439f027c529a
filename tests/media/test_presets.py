"""Presets: what they fill in, and what they refuse."""

import dataclasses
import json

import pytest

from ugc_jax.errors import UserError
from ugc_jax.media.presets import PRESETS, QUESTION, ClipSettings, resolve
from ugc_jax.settings import field_help


def test_every_field_has_its_help():
    assert all(field_help(ClipSettings).values())


def test_qwen_is_the_default():
    settings = resolve(ClipSettings())
    assert (settings.fps, settings.frames) == (2.0, None)
    assert (settings.min_frames, settings.max_frames) == (4, 768)
    assert (settings.min_pixels, settings.max_pixels) == (100_352, 602_112)
    assert settings.total_pixels == 90_316_800
    assert (settings.image_min_pixels, settings.image_max_pixels) == (3136, 12_845_056)
    assert settings.system == "You are a helpful assistant."
    assert settings.start is None
    assert settings.max_tokens is None


def test_upstream():
    settings = resolve(ClipSettings(preset="upstream"))
    assert (settings.fps, settings.frames) == (None, 32)
    assert settings.system.startswith("You are Qwen, a virtual human")
    assert settings.system.endswith("long and detailed enough.")


def test_question_is_the_benchmarks(shared_data):
    path = shared_data / "ugc_videocap" / "qa" / "final_caption_qa.json"
    assert json.loads(path.read_text())["question"] == QUESTION


@pytest.mark.parametrize("preset", PRESETS)
def test_resolve_is_idempotent(preset):
    once = resolve(ClipSettings(preset=preset, max_pixels=50_000, min_frames=1000))
    assert resolve(once) == once


def test_own_value_wins():
    settings = resolve(ClipSettings(preset="upstream", fps=1.0, question="What?", system=""))
    assert (settings.fps, settings.frames) == (1.0, None)
    assert (settings.question, settings.system) == ("What?", "")
    assert resolve(ClipSettings(frames=8)).fps is None


def test_own_limit_moves_the_presets_opposite_one():
    assert resolve(ClipSettings(max_pixels=50_000)).min_pixels == 50_000
    assert resolve(ClipSettings(min_pixels=700_000)).max_pixels == 700_000
    assert resolve(ClipSettings(max_frames=2)).min_frames == 2


OF_ANOTHER_TYPE = [
    ("fps", "2"), ("frames", 8.0), ("frames", True), ("max_pixels", 1e5),
    ("image_max_pixels", "big"), ("max_audio_seconds", "long"), ("question", 5), ("audio", "no"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        *OF_ANOTHER_TYPE,
        ("preset", "gemini"),
        ("fps", 0),
        ("fps", float("nan")),
        ("frames", 1),
        ("min_frames", 0),
        ("max_frames", -4),
        ("min_pixels", 0),
        ("total_pixels", 0),
        ("start", -1),
        ("end", 0),
        ("end", float("inf")),
        ("max_audio_seconds", 0),
        ("max_tokens", 0),
    ],
)
def test_wrong_value_names_its_field(field, wrong):
    of_another_type = any(one == field and value is wrong for one, value in OF_ANOTHER_TYPE)
    with pytest.raises(TypeError if of_another_type else UserError, match=rf"^{field}.* {wrong!r}"):
        resolve(dataclasses.replace(ClipSettings(), **{field: wrong}))


@pytest.mark.parametrize(
    "pair",
    [
        dict(fps=1.0, frames=8),
        dict(start=3.0, end=2.0),
        dict(min_frames=8, max_frames=4),
        dict(min_pixels=2000, max_pixels=1000),
        dict(image_min_pixels=2000, image_max_pixels=1000),
    ],
)
def test_contradiction_names_both_fields(pair):
    with pytest.raises(UserError) as error:
        resolve(ClipSettings(**pair))
    assert all(name in str(error.value) for name in pair)
