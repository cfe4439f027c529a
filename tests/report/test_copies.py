"""ugc_jax.report.copies: small mp4 of clips, on their clock."""

import io

import av
import numpy as np
import pytest
from clips import write_clip

from ugc_jax.media.clip import probe
from ugc_jax.report.copies import SIDE, small_copy


@pytest.fixture
def copy_of(tmp_path):
    def make(**options) -> tuple:
        write_clip(tmp_path / "clip.mp4", **options)
        source = probe(tmp_path / "clip.mp4")
        return source, av.open(io.BytesIO(small_copy(source)))

    return make


def test_a_copy_is_small_and_on_the_clock_of_the_clip(copy_of):
    source, copy = copy_of(seconds=3.0, fps=25, size=(640, 480))
    (picture,), (sound,) = copy.streams.video, copy.streams.audio
    assert (picture.codec_context.name, sound.codec_context.name) == ("h264", "aac")
    assert (picture.width, picture.height) == (320, SIDE)
    assert float(picture.duration * picture.time_base) == pytest.approx(source.seconds, abs=0.1)
    assert float(sound.duration * sound.time_base) == pytest.approx(3.0, abs=0.15)
    frames = sum(1 for _ in copy.decode(picture))
    assert frames == 36


def test_a_clip_without_sound_and_one_of_a_few_odd_pixels(copy_of):
    _, copy = copy_of(seconds=1.0, fps=5, size=(66, 34), audio=False)
    assert not copy.streams.audio
    frames = [frame.to_ndarray(format="rgb24") for frame in copy.decode(video=0)]
    assert len(frames) == 5
    assert frames[0].shape == (34, 66, 3)
    assert np.std(frames[0]) > 0
