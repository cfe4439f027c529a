"""Synthetic clips: real files, equal for equal arguments."""

import av
import numpy as np
import pytest

from ugc_jax.data.synthetic import Beeps, Scene, Shape, draw, random_scene, sound, write_clip


def test_equal_arguments_give_equal_files(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_clip(tmp_path / name, seconds=1, seed=3)
    write_clip(tmp_path / "c.mp4", seconds=1, seed=4)
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.mp4", "b.mp4", "c.mp4"))
    assert a == b
    assert a != c


@pytest.mark.parametrize(("audio", "seconds"), [(True, 1.2), (0.5, 0.5), (False, None)])
def test_file_holds_what_was_asked(tmp_path, audio, seconds):
    write_clip(tmp_path / "a.mp4", seconds=1.2, fps=30, size=(192, 128), audio=audio)
    with av.open(str(tmp_path / "a.mp4")) as container:
        picture = container.streams.video[0]
        assert (picture.codec_context.name, picture.width, picture.height) == ("h264", 192, 128)
        assert (picture.frames, picture.average_rate) == (36, 30)
        assert bool(container.streams.audio) == (seconds is not None)
        if seconds:
            track = container.streams.audio[0]
            assert track.codec_context.name == "aac"
            assert float(track.duration * track.time_base) == pytest.approx(seconds, abs=0.05)


def test_picture_is_the_scene(tmp_path):
    scene = write_clip(tmp_path / "a.mp4", seconds=1, seed=5, size=(128, 128), audio=False)
    with av.open(str(tmp_path / "a.mp4")) as container:
        for frame in container.decode(video=0):
            difference = frame.to_ndarray(format="rgb24").astype(int) - draw(
                scene, frame.time, (128, 128)
            )
            assert np.abs(difference).mean() < 6


def test_shapes_move_and_stay_inside():
    shape = Shape("square", "red", 0.25, (0.5, 0.5), (0.9, -0.7))
    scene = Scene("black", (shape,), Beeps(440, 2), seed=0)
    areas = [
        np.count_nonzero(draw(scene, time, (100, 80))[..., 0] > 200)
        for time in np.linspace(0, 5, 40)
    ]
    assert min(areas) > 0.9 * max(areas) > 0
    assert not np.array_equal(draw(scene, 0, (100, 80)), draw(scene, 0.2, (100, 80)))


def test_beeps_have_pitch_and_rhythm():
    scene = Scene("black", (), Beeps(pitch=440, per_second=2), seed=0)
    wave = sound(scene, 2.0, rate=8000)
    assert wave.shape == (16_000,)
    assert wave.dtype == np.float32
    loud = np.abs(wave.reshape(8, 2000)).mean(axis=1) > 0.1
    assert loud.tolist() == [True, False] * 4
    assert np.argmax(np.abs(np.fft.rfft(wave[:2000]))) * 4 == 440


def test_random_scenes_differ():
    assert random_scene(1) == random_scene(1)
    assert len({random_scene(seed) for seed in range(20)}) == 20
