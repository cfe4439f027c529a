"""ugc_jax.generate.defaults: which settings a checkpoint has where the user names none."""

import dataclasses
import logging

import pytest

from ugc_jax.generate.defaults import PUBLISHED, Defaults
from ugc_jax.generate.settings import SamplingConfig, piece_seconds
from ugc_jax.hf.trained import Trained, write_trained
from ugc_jax.media.presets import PRESETS, QUESTION, UPSTREAM_SYSTEM, ClipSettings, resolve

NONE, GREEDY = ClipSettings(), SamplingConfig()
CLIP = resolve(ClipSettings(preset="upstream", frames=8, system="Look.", question="What?"))
TRAINED = Trained(CLIP)


def test_published_captioner_has_its_preset(tmp_path):
    clip, sampling = Defaults.of(PUBLISHED, tmp_path).apply(NONE, GREEDY)
    assert (clip.preset, clip.frames, clip.fps, clip.system) == (
        "upstream", 32, None, UPSTREAM_SYSTEM,
    )  # fmt: skip
    assert (sampling.temperature, sampling.max_new_tokens, sampling.top_p) == (0.2, 1024, 1.0)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("Memories-ai/UGC-VideoCaptioner", "upstream"),
        ("UGC-VideoCaptioner", "upstream"),  # a folder with a copy
        ("Qwen/Qwen2.5-Omni-3B", "qwen"),
        ("mine/UGC-VideoCaptioner", "qwen"),  # another repository
    ],
)
def test_other_names(name, preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "UGC-VideoCaptioner").mkdir()
    clip, sampling = Defaults.of(name, tmp_path).apply(NONE, GREEDY)
    assert clip.preset == preset
    assert sampling.temperature == {"upstream": 0.2, "qwen": 0.0}[preset]


@pytest.mark.parametrize(
    ("name", "preset", "pixels", "total", "frames", "new_tokens", "pieces"),
    [  # spec/captioners_and_benchmarks.md; what it does not name is qwen's
        ("AVoCaDO-Captioner/AVoCaDO", "avocado", 401_408, 20_070_400, 768, 2048, None),
        ("AudioVisual-Caption/ASID-Captioner-3B", "asid", 401_408, 90_316_800, 768, 512, None),
        ("AudioVisual-Caption/ASID-Captioner-7B", "asid", 401_408, 90_316_800, 768, 512, None),
        ("yaolily/TimeChat-Captioner-GRPO-7B", "timechat", 297_920, 90_316_800, 160, 9216, 60.0),
        ("NJU-LINK/OmniCaptioner-IF-3B", "omnicaptioner-if", 602_112, 90_316_800, 768, 512, None),
        ("NJU-LINK/OmniCaptioner-IF-7B", "omnicaptioner-if", 602_112, 90_316_800, 768, 512, None),
    ],
)
def test_captioners_of_this_family(
    name, preset, pixels, total, frames, new_tokens, pieces, tmp_path
):
    clip, sampling = Defaults.of(name, tmp_path).apply(NONE, GREEDY)
    assert (clip.preset, clip.fps, clip.question) == (preset, 2.0, QUESTION)
    assert (clip.max_pixels, clip.total_pixels, clip.max_frames) == (pixels, total, frames)
    assert (sampling.temperature, sampling.max_new_tokens) == (0.0, new_tokens)
    assert piece_seconds(None, clip) == pieces
    assert (piece_seconds(0, clip), piece_seconds(30, clip)) == (None, 30.0)
    # a converted copy keeps them, whatever its folder is called
    write_trained(tmp_path, Defaults.of(name, tmp_path).as_trained())
    copied, same = Defaults.of("copy", tmp_path).apply(NONE, GREEDY)
    assert (copied, same, piece_seconds(None, copied)) == (clip, sampling, pieces)


def test_a_trained_model_is_asked_as_it_was_trained(tmp_path):
    write_trained(tmp_path, TRAINED)
    defaults = Defaults.of(PUBLISHED, tmp_path)
    clip, sampling = defaults.apply(NONE, GREEDY)
    assert clip == CLIP
    assert sampling == SamplingConfig().resolve("qwen")  # training has no sampling
    assert defaults.differences(clip) is None


def test_users_settings_go_before_all(tmp_path):
    write_trained(tmp_path, TRAINED)
    defaults = Defaults.of("x", tmp_path)
    clip, sampling = defaults.apply(ClipSettings(fps=1.0, start=2.0), SamplingConfig(top_k=3))
    assert (clip.fps, clip.frames, clip.system, sampling.top_k) == (1.0, None, "Look.", 3)
    # start is of the clip, not of the model
    assert defaults.differences(clip) == (
        "x: was trained with other settings: clip.fps None, now 1.0; clip.frames 8, now None"
    )
    named, _ = defaults.apply(ClipSettings(preset="qwen"), GREEDY)
    assert named == resolve(ClipSettings(preset="qwen"))
    assert "clip.system 'Look.', now 'You are a helpful assistant.'" in defaults.differences(named)


def test_a_preset_says_what_it_sets():
    note = Defaults("x").notes(ClipSettings(preset="upstream", system="Look."), GREEDY)
    assert note == (
        "preset upstream: clip.frames=32, sampling.temperature=0.2, sampling.max_new_tokens=1024"
    )
    assert Defaults("x").notes(NONE, GREEDY) == "x: how it was trained is not known; preset qwen"
    note = Defaults("x", trained=TRAINED).notes(NONE, GREEDY)
    assert note == (
        "x: as trained (captioner.json): clip.preset='upstream', clip.frames=8, "
        "clip.system='Look.', clip.question='What?'"
    )


def test_differences_are_warned_of(caplog):
    defaults = Defaults("x", trained=TRAINED)
    with caplog.at_level(logging.INFO):
        defaults.report(dataclasses.replace(NONE, bgr=True), GREEDY)
    note, warning = caplog.records
    assert (note.levelname, warning.levelname) == ("INFO", "WARNING")
    assert warning.getMessage() == ("x: was trained with other settings: clip.bgr False, now True")


def test_a_converted_copy_of_a_published_captioner_keeps_its_preset(tmp_path):
    trained = Defaults.of(PUBLISHED, tmp_path).as_trained()
    write_trained(tmp_path, trained)
    expected = Defaults.of(PUBLISHED, tmp_path / "none").apply(NONE, GREEDY)
    assert Defaults.of("copy", tmp_path).apply(NONE, GREEDY) == expected
    assert expected[1].temperature == 0.2
    greedy = Defaults.of("copy", tmp_path).apply(ClipSettings(preset="qwen"), GREEDY)[1]
    assert greedy.temperature == 0.0
    assert Defaults("x").as_trained() is None


def test_a_copy_in_the_hubs_cache_is_known(tmp_path, monkeypatch):
    cached = tmp_path / "models--openinterx--UGC-VideoCaptioner" / "snapshots" / "0123"
    cached.mkdir(parents=True)
    assert Defaults.of(cached, cached).preset == "upstream"
    copy = tmp_path / "UGC-VideoCaptioner"
    copy.mkdir()
    monkeypatch.chdir(copy)
    assert Defaults.of(".", copy).preset == "upstream"


def test_both_tables_have_the_same_presets():
    from ugc_jax.generate import settings

    assert settings.PRESETS.keys() == PRESETS.keys()
    assert "sampling" not in settings.preset_help(False)
    assert "--preset upstream sets clip.system" in settings.preset_help(True)
    for with_sampling in (False, True):
        told = settings.preset_help(with_sampling)
        assert "--preset omnicaptioner-if sets nothing of its own. The" in told
        assert "sets ." not in told
