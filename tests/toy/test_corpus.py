"""ugc_jax.toy.corpus: the tokenizer that learns from it knows the world."""

import re

from ugc_jax.hf.tokenizer import build_tokenizer, load_tokenizer
from ugc_jax.models.qwen2_5_omni.config import tiny
from ugc_jax.toy import corpus, world


def test_the_tiny_tokenizer_has_every_word_as_one_token(tmp_path):
    build_tokenizer(tiny(), corpus.LINES, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    longest = 0
    counts = {"train": 1000, "test": 300}
    clips = [world.make_clip(split, n) for split, count in counts.items() for n in range(count)]
    for caption in [world.QUESTION, *(caption for *_, caption in clips)]:
        ids = tokenizer.encode(caption).ids
        assert [tokenizer.decode([i]) for i in ids] == re.findall(r" ?\w+|[.,]", caption)
        longest = max(longest, len(ids))
    assert longest <= 32
