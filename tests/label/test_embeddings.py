"""ugc_jax.label.embeddings: what is pooled, and the file that a killed run continues."""

import logging
import os

import numpy as np
import pytest
from clips import random_scene, write_clip

from ugc_jax.data.batching import Buckets, bucket_of, collate
from ugc_jax.data.example import load_example
from ugc_jax.data.workers import ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.label.embeddings import PARTS, EmbeddingFile, embed, pool
from ugc_jax.media.presets import ClipSettings, resolve

HOW = {"weights": "0123", "clip": {"fps": 1.0}}
SETTINGS = resolve(ClipSettings(fps=2.0, max_pixels=12544))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for number in range(3):
        write_clip(folder / f"{number}.mp4", scene=random_scene(number), seconds=2.0)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def embedded(captioner, paths, batch_size=2):
    how = SETTINGS, ReadingConfig(workers=1), batch_size
    return dict(embed(captioner, [str(path) for path in paths], *how))


def test_an_embedding_is_of_the_clip_alone(tiny_captioner, clips):
    paths = [clips / f"{number}.mp4" for number in (0, 1, 2)]
    together = embedded(tiny_captioner, paths)
    for path in paths:
        (alone,) = embedded(tiny_captioner, [path]).values()
        width = tiny_captioner.config.text.hidden_size * (PARTS + 1)
        for name in ("vision", "audio"):
            assert alone[name].shape == (width,)
            np.testing.assert_allclose(together[str(path)][name], alone[name], atol=2e-2)
    different = [together[str(path)]["vision"] for path in paths]
    assert np.abs(different[0] - different[1]).max() > 0.1


def test_pooled_rows_are_those_that_tokens_take(tiny_captioner, clips):
    config = tiny_captioner.config
    example, _ = load_example(str(clips / "0.mp4"), SETTINGS, tiny_captioner.tokenizer, config)
    batch = collate([example], bucket_of(example, Buckets(), config), 2, config)
    rows = {
        name: np.array(rows)
        for name, rows in tiny_captioner.engine.encode(tiny_captioner.params, batch).items()
    }
    pooled = pool(batch, rows, 0)
    count = rows["vision"].shape[1]
    places = batch.splice[0][batch.splice[0] >= 0]
    own = rows["audio"][0, places[places >= count] - count]
    half = len(own) // 2
    expected = [own[:half].mean(axis=0), own[half:].mean(axis=0), own.std(axis=0)]
    np.testing.assert_allclose(pooled["audio"], np.concatenate(expected), atol=2e-3)
    # what is padding does not count
    unused = np.setdiff1d(np.arange(count), places)
    rows["vision"][0, unused] = 1e6
    np.testing.assert_array_equal(pool(batch, rows, 0)["vision"], pooled["vision"])
    # a row of the batch without an example
    assert not pool(batch, rows, 1)["vision"].any()


def test_a_clip_that_cannot_be_read(tiny_captioner, clips):
    found = embedded(tiny_captioner, [clips / "broken.mp4", clips / "0.mp4"])
    assert isinstance(found[str(clips / "broken.mp4")], UserError)
    assert isinstance(found[str(clips / "0.mp4")], dict)


# ---- the file ------------------------------------------------------------------------------------


def row(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=6).astype(np.float16) for name in ("vision", "audio")}


def equal(a, b):
    return a is not None and all(np.array_equal(a[name], b[name]) for name in b)


@pytest.fixture
def written(tmp_path):
    """A file of embeddings, and its clips."""
    paths = [str(tmp_path / f"{number}.mp4") for number in range(2)]
    for path in paths:
        with open(path, "w") as file:
            file.write("clip")
    with EmbeddingFile(tmp_path / "e.jsonl", HOW) as known:
        for number, path in enumerate(paths):
            assert known.get(path) is None
            known.put(path, row(number))
    return tmp_path / "e.jsonl", paths


def test_what_was_written_is_known_again(written):
    path, clips = written
    with EmbeddingFile(path, HOW) as known:
        assert all(equal(known.get(clip), row(number)) for number, clip in enumerate(clips))


def test_a_half_written_line_is_removed(written):
    path, clips = written
    text = path.read_text()
    path.write_text(text[:-10])
    with EmbeddingFile(path, HOW) as known:
        assert equal(known.get(clips[0]), row(0))
        assert known.get(clips[1]) is None
        known.put(clips[1], row(1))
    assert path.read_text() == text


def test_a_clip_that_changed_is_not_known(written):
    path, clips = written
    with open(clips[0], "a") as file:
        file.write("more")
    os.utime(clips[1], ns=(1, 1))
    with EmbeddingFile(path, HOW) as known:
        assert known.get(clips[0]) is None
        assert known.get(clips[1]) is None


def test_embeddings_of_other_weights_are_made_again(written, caplog):
    path, clips = written
    with (
        caplog.at_level(logging.WARNING, "ugc_jax"),
        EmbeddingFile(path, HOW | {"weights": "4567"}) as known,
    ):
        assert known.get(clips[0]) is None
    assert "of another checkpoint or other clip settings; made again" in caplog.text
    assert path.read_text().count("\n") == 1


@pytest.mark.parametrize("text", ['{"videos": ["a.mp4"]}\n', "[]\n", "{\n"])
def test_another_file_is_not_overwritten(tmp_path, text):
    path = tmp_path / "train.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=r"train\.jsonl: has no embeddings; name another file"):
        EmbeddingFile(path, HOW)
    assert path.read_text() == text


def test_a_line_of_something_else(written):
    path, _ = written
    path.write_text(path.read_text() + '{"clip": "x"}\n')
    with pytest.raises(UserError, match=r"e\.jsonl:4: is no embedding"):
        EmbeddingFile(path, HOW)
