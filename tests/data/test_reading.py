"""ugc_jax.data.reading: prompts from workers are those of this process."""

import numpy as np
import pytest
from clips import write_clip
from PIL import Image

from ugc_jax.data import reading
from ugc_jax.data.batching import Buckets, bucket_of
from ugc_jax.data.example import load_example
from ugc_jax.data.reading import read_prompts
from ugc_jax.data.workers import ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.qwen2_5_omni.config import tiny

SMALL = ClipSettings(fps=4.0, min_pixels=784, max_pixels=6 * 784, question="What is it?")
CONFIG, ONE = tiny(), ReadingConfig(workers=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A video with sound, one without, an image, a sound, and a file that is missing."""
    folder = tmp_path_factory.mktemp("files")
    write_clip(folder / "loud.mp4", seconds=1.2, fps=10, size=(96, 64))
    write_clip(folder / "silent.mkv", seconds=1.2, fps=10, size=(96, 64), audio=False)
    Image.effect_noise((90, 60), 50).save(folder / "still.png")
    write_clip(folder / "tone.mov", seconds=0.5, size=(64, 64))
    return [str(folder / name) for name in ("loud.mp4", "silent.mkv", "still.png", "missing.mp4")]


def flat(example):
    """All arrays of an Example."""
    vision = [array for one in example.vision for array in one[:2]]
    return [example.tokens, example.positions, example.source, example.row, *vision, *example.mels]


def test_prompts_are_those_of_load_example(files, tokenizer):
    read = dict(read_prompts(files, SMALL, tokenizer, CONFIG, Buckets(), ONE))
    assert list(read) == files
    for path in files[:3]:
        example, info = load_example(path, SMALL, tokenizer, CONFIG)
        prompt = read[path]
        assert prompt.info == info
        assert info.prompt_tokens == info.video_tokens + info.audio_tokens + info.text_tokens > 0
        assert prompt.bucket == bucket_of(example, Buckets(), CONFIG)
        for mine, theirs in zip(flat(prompt.example), flat(example), strict=True):
            np.testing.assert_array_equal(mine, theirs)
            assert mine.dtype == theirs.dtype
    assert isinstance(read[files[3]], UserError)


def test_a_prompt_larger_than_all_buckets_is_its_clips_error(files, tokenizer):
    small = Buckets(tokens=(16,))
    loud, silent, *_ = dict(read_prompts(files, SMALL, tokenizer, CONFIG, small, ONE)).values()
    for path, error in zip(files, (loud, silent), strict=False):
        assert str(error).startswith(f"{path}: prompt needs ")


def test_workers_get_no_tokenizer(files, tokenizer, monkeypatch):
    """Its loading would take half a second of every worker."""
    sent = []

    class Pool(reading.Pool):
        def __init__(self, function, *rest):
            super().__init__(function, *rest)
            sent.append(self._setup[0])

    monkeypatch.setattr(reading, "Pool", Pool)
    list(read_prompts(files[:1], SMALL, tokenizer, CONFIG, Buckets(), ONE))
    assert len(sent) == 1
    assert len(sent[0]) < 10_000
    assert b"tokenizer" not in sent[0].lower()
