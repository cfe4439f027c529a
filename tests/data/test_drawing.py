"""ugc_jax.data.drawing: time to the right, pitch up, over the whole range of grey."""

import io

import numpy as np
from PIL import Image

from ugc_jax.data.drawing import draw_mel, encode


def test_a_rising_tone():
    mel = np.full((4, 8), -1.0, np.float32)
    mel[range(4), [0, 2, 4, 6]] = 1.5
    picture = Image.open(io.BytesIO(encode(draw_mel(mel), "png")))
    assert (picture.format, picture.size, picture.mode) == ("PNG", (4, 8), "L")
    levels = np.asarray(picture)
    assert sorted({*levels.ravel().tolist()}) == [0, 255]
    assert levels.argmax(axis=0).tolist() == [7, 5, 3, 1]  # rows count from the top


def test_silence_is_dark():
    assert not np.asarray(draw_mel(np.zeros((3, 128), np.float32))).any()
