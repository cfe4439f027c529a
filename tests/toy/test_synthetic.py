"""Synthetic clips: real files, equal for equal arguments."""

import av
import clips
import numpy as np
import pytest
from clips import random_scene

from ugc_jax.toy.synthetic import (
    BACKGROUNDS,
    COLOURS,
    Beeps,
    Music,
    Noise,
    Scene,
    Shape,
    draw_scene,
    sound,
    write_clip,
)

USUAL = dict(seconds=1, fps=25, size=(128, 128), sound_seconds=1.0, rate=44_100)


def test_equal_arguments_give_equal_files(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_clip(tmp_path / name, random_scene(3), **USUAL)
    write_clip(tmp_path / "c.mp4", random_scene(4), **USUAL)
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.mp4", "b.mp4", "c.mp4"))
    assert a == b
    assert a != c


@pytest.mark.parametrize(("audio", "seconds"), [(True, 1.2), (0.5, 0.5), (False, None)])
def test_file_holds_what_was_asked(tmp_path, audio, seconds):
    asked = dict(seconds=1.2, fps=30, size=(192, 128))
    clips.write_clip(tmp_path / "a.mp4", audio=audio, **asked)
    _check_file(tmp_path / "a.mp4", seconds)
    if seconds:
        asked |= dict(sound_seconds=seconds, rate=44_100)
        write_clip(tmp_path / "b.mp4", random_scene(0), **asked)
        _check_file(tmp_path / "b.mp4", seconds)


def _check_file(path, seconds):
    with av.open(str(path)) as container:
        picture = container.streams.video[0]
        assert (picture.codec_context.name, picture.width, picture.height) == ("h264", 192, 128)
        assert (picture.frames, picture.average_rate) == (36, 30)
        assert bool(container.streams.audio) == (seconds is not None)
        if seconds:
            track = container.streams.audio[0]
            assert track.codec_context.name == "aac"
            assert float(track.duration * track.time_base) == pytest.approx(seconds, abs=0.05)


def test_picture_is_the_scene(tmp_path):
    scene = random_scene(5)
    write_clip(tmp_path / "a.mp4", scene, **USUAL)
    with av.open(str(tmp_path / "a.mp4")) as container:
        for frame in container.decode(video=0):
            difference = frame.to_ndarray(format="rgb24").astype(int) - draw_scene(
                scene, frame.time, (128, 128)
            )
            assert np.abs(difference).mean() < 6


def test_shapes_move_and_stay_inside():
    shape = Shape("square", "red", 0.25, (0.5, 0.5), (0.9, -0.7))
    scene = Scene("purple", (shape,), Beeps(440, 2), seed=0)
    areas = [
        np.count_nonzero(draw_scene(scene, time, (100, 80))[..., 0] > 200)
        for time in np.linspace(0, 5, 40)
    ]
    assert min(areas) > 0.9 * max(areas) > 0
    assert not np.array_equal(draw_scene(scene, 0, (100, 80)), draw_scene(scene, 0.2, (100, 80)))


def test_beeps_have_pitch_and_rhythm():
    scene = Scene("purple", (), Beeps(pitch=440, per_second=2), seed=0)
    wave = sound(scene, 2.0, rate=8000)
    assert wave.shape == (16_000,)
    assert wave.dtype == np.float32
    loud = np.abs(wave.reshape(8, 2000)).mean(axis=1) > 0.1
    assert loud.tolist() == [True, False] * 4
    assert np.argmax(np.abs(np.fft.rfft(wave[:2000]))) * 4 == 440


def test_music_changes_its_notes_and_has_no_gaps():
    scene = Scene("purple", (), Music(pitch=500, per_second=4, hiss=0), seed=1)
    notes = sound(scene, 2.0, rate=8000).reshape(8, 2000)
    loud = np.abs(notes[:, :1900].reshape(8, 19, 100)).max(axis=2)
    assert loud.min() > 0.05
    assert (loud[:, 0] > 2 * loud[:, -1]).all()
    tones = np.argmax(np.abs(np.fft.rfft(notes)), axis=1) * 4
    assert len(set(tones)) > 1
    assert tones.min() > 500 * 2 ** (-6 / 12)
    assert tones.max() < 500 * 2 ** (5 / 12)


def test_noise_stays_in_its_octave():
    scene = Scene("purple", (), Noise(pitch=1000, per_second=2, hiss=0), seed=0)
    wave = sound(scene, 2.0, rate=8000)
    loud = np.abs(wave.reshape(8, 2000)).mean(axis=1) > 0.05
    assert loud.tolist() == [True, False] * 4
    power = np.abs(np.fft.rfft(wave[:2000])) ** 2
    within = power[int(1000 / 2**0.5 / 4) : int(1000 * 2**0.5 / 4)]
    assert within.sum() > 0.95 * power.sum()
    assert np.count_nonzero(within > within.mean() / 10) > 50  # a tone has a few


@pytest.mark.parametrize("kind", [Beeps, Music, Noise])
def test_sound_begins_when_it_should(kind):
    scene = Scene("purple", (), kind(400, 3, hiss=0, begins=0.75), seed=2)
    wave = sound(scene, 1.0, rate=8000)
    assert not wave[:6000].any()
    assert np.abs(wave[6000:6100]).max() > 0.02
    assert not sound(scene, 0.5, rate=8000).any()  # ends before
    assert np.abs(wave).max() <= 1


def test_silence_is_silent(tmp_path):
    scene = Scene("purple", (), None, seed=0)
    assert not sound(scene, 1.0, 44_100).any()
    write_clip(tmp_path / "a.mp4", scene, **USUAL | dict(size=(64, 64), rate=16_000))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.audio[0].rate == 16_000
        assert not any(frame.to_ndarray().any() for frame in container.decode(audio=0))


def test_shape_appears_and_background_turns():
    shape = Shape("square", "red", 0.5, (0.5, 0.5), (0.0, 0.0), appears=0.5)
    scene = Scene("purple", (shape,), None, seed=0, turns=("teal", 1.0))
    middle, corner = (40, 50), (2, 2)
    for time, ground, shown in ((0.0, "purple", False), (0.5, "purple", True), (1.0, "teal", True)):
        picture = draw_scene(scene, time, (100, 80))
        assert tuple(picture[corner]) == BACKGROUNDS[ground]
        assert tuple(picture[middle]) == (COLOURS["red"] if shown else BACKGROUNDS[ground])


def test_text_has_a_band_of_its_own():
    shape = Shape("circle", "red", 0.4, (0.5, 1.0), (0.0, 0.0))
    plain = draw_scene(Scene("purple", (shape,), None, seed=0, band=True), 0, (112, 112))
    moon = Scene("purple", (shape,), None, seed=0, band=True, text="MOON")
    text = draw_scene(moon, 0, (112, 112))
    np.testing.assert_array_equal(plain[:84], text[:84])
    assert (plain[84:] == BACKGROUNDS["purple"]).all()
    ink = np.argwhere((text[84:] < 128).all(axis=-1))
    assert np.ptp(ink, axis=0).tolist() > [16, 70]
    assert ink.min() > 0  # not cut off
    fish = Scene("purple", (shape,), None, seed=0, band=True, text="FISH")
    other = draw_scene(fish, 0, (112, 112))
    assert (other[84:] != text[84:]).any()


def test_random_scenes_differ():
    assert random_scene(1) == random_scene(1)
    assert len({random_scene(seed) for seed in range(20)}) == 20
