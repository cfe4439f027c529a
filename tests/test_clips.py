"""Files and questions -> Examples: what the prompt holds, and how an oversized clip is made to fit."""

import logging
import re

import av
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from ugc_jax.config import tiny
from ugc_jax.data import clips
from ugc_jax.data.batching import Buckets, bucket_of, collate
from ugc_jax.data.clips import build_example, load_example, load_medium
from ugc_jax.data.media import probe, read_clip
from ugc_jax.data.positions import AUDIO, TEXT, VISION
from ugc_jax.data.presets import ClipSettings, resolve
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.errors import UserError
from ugc_jax.hf.tokenizer import build_tokenizer

CONFIG = tiny()
IDS = CONFIG.tokens
SMALL = dict(question="What happens?", min_pixels=4 * 784, max_pixels=12 * 784)


def write_video(path, frames=50, fps=25, size=(128, 96), sound=None):
    """An mp4 of moving noise. size: (width, height). sound: seconds of a tone, None for a silent file."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=fps)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for _ in range(frames):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        if audio:
            wave = np.sin(np.arange(int(16000 * sound)) / 8).astype(np.float32)[None]
            block = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            block.rate = 16000
            container.mux(audio.encode(block))
            container.mux(audio.encode())
    return path


def write_sound(path, seconds):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        wave = (np.sin(np.arange(int(16000 * seconds)) / 8) * 9000).astype(np.int16)[None]
        block = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        block.rate = 16000
        container.mux(stream.encode(block))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{name: path}: a video with sound, a silent one, a long one, an image and a sound."""
    folder = tmp_path_factory.mktemp("clips")
    Image.fromarray(np.full((90, 120, 3), 77, np.uint8)).save(folder / "still.png")
    return {
        "loud": write_video(folder / "loud.mp4", sound=2.0),
        "silent": write_video(folder / "silent.mp4"),
        "long": write_video(folder / "long.mp4", frames=400, sound=16.0),
        "still": folder / "still.png",
        "tone": write_sound(folder / "tone.wav", 3.0),
    }


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(CONFIG, folder)
    return ChatTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), IDS)


def counts(example):
    return {kind: int((example.source == kind).sum()) for kind in (TEXT, VISION, AUDIO)}


def test_video_with_sound(files, tokenizer):
    example, info = load_example(files["loud"], ClipSettings(**SMALL), tokenizer, CONFIG)
    assert (info.kind, info.frames, info.sample_fps, info.has_audio) == ("video", 4, 2.0, True)
    assert info.grid == example.vision[0].grid == (2, 6, 8)
    assert info.video_tokens == 2 * 3 * 4
    assert info.audio_seconds == pytest.approx(2.0, abs=0.2)  # the codec adds a little
    assert info.audio_tokens == pytest.approx(50, abs=5)
    assert (
        info.prompt_tokens
        == len(example.tokens)
        == info.video_tokens + info.audio_tokens + info.text_tokens
    )
    assert list(counts(example).values()) == [
        info.text_tokens,
        info.video_tokens,
        info.audio_tokens,
    ]
    text = tokenizer.decode(example.tokens)
    assert re.fullmatch(
        r"system\nYou are a helpful assistant.\nuser\nWhat happens\?\nassistant\n", text
    )
    before = example.tokens.tolist().index(IDS.vision_start_token_id)
    assert example.tokens[before + 1] == IDS.audio_start_token_id
    assert example.next_position == example.positions[0, -1] + 1


def test_silence_is_a_fact_of_the_example(files, tokenizer):
    silent, info = load_example(files["silent"], ClipSettings(**SMALL), tokenizer, CONFIG)
    assert (info.has_audio, info.audio_tokens, info.notes) == (False, 0, ("no sound in the file",))
    muted, told = load_example(files["loud"], ClipSettings(**SMALL, audio=False), tokenizer, CONFIG)
    assert (told.has_audio, told.notes) == (False, ("sound left out, as asked",))
    for example in (silent, muted):
        assert IDS.audio_start_token_id not in example.tokens
        assert example.mels == ()
    np.testing.assert_array_equal(silent.tokens, muted.tokens)
    np.testing.assert_array_equal(silent.positions, muted.positions)


def test_image_sound_and_bare_question(files, tokenizer):
    image, told = load_example(files["still"], ClipSettings(question="Where?"), tokenizer, CONFIG)
    assert (told.kind, told.frames, told.grid) == ("image", 1, (1, 6, 8))
    assert (image.tokens == IDS.image_token_id).sum() == told.video_tokens == 12
    sound, told = load_example(files["tone"], ClipSettings(question="Who?"), tokenizer, CONFIG)
    assert (told.kind, told.audio_tokens, told.audio_seconds, told.has_audio) == (
        "audio",
        75,
        3.0,
        True,
    )
    assert (sound.vision, told.grid) == ((), None)
    text, told = load_example(None, ClipSettings(question="Why?"), tokenizer, CONFIG)
    assert (told.kind, told.path, told.prompt_tokens) == ("text", None, told.text_tokens)
    np.testing.assert_array_equal(text.positions, np.tile(np.arange(len(text.tokens)), (3, 1)))


def test_all_kinds_go_into_one_batch(files, tokenizer):
    settings = ClipSettings(**SMALL)
    examples = [
        load_example(path, settings, tokenizer, CONFIG)[0] for path in [None, *files.values()]
    ]
    keys = [bucket_of(example, Buckets(), CONFIG) for example in examples]
    batch = collate(examples, type(keys[0])(*map(max, zip(*keys, strict=True))), 8, CONFIG)
    lengths = [len(example.tokens) for example in examples]
    assert (batch.segment_ids > 0).sum(axis=1).tolist() == [*lengths, 0, 0]


def test_time_follows_the_clips_own_rate_or_the_references(files, tokenizer):
    settings = dict(SMALL, fps=4.0, audio=False)
    own, info = load_example(files["silent"], ClipSettings(**settings), tokenizer, CONFIG)
    fixed, _ = load_example(
        files["silent"], ClipSettings(**settings, reference_fps=True), tokenizer, CONFIG
    )
    assert info.sample_fps == 4.0
    times = [np.unique(example.positions[0, example.source == VISION]) for example in (own, fixed)]
    assert np.diff(times[0]).tolist() == [12, 13, 12]  # 12.5 positions, truncated
    assert np.diff(times[1]).tolist() == [25, 25, 25]


def test_budget_takes_pixels_first_then_frames_and_never_tokens(files, tokenizer, caplog):
    wanted, info = load_example(files["long"], ClipSettings(**SMALL), tokenizer, CONFIG)
    assert (info.frames, info.grid) == (32, (16, 6, 8))
    caplog.set_level(logging.WARNING, logger="ugc_jax")

    budget = info.prompt_tokens - 16 * 4
    example, fewer_pixels = load_example(
        files["long"], ClipSettings(**SMALL, max_tokens=budget), tokenizer, CONFIG
    )
    assert fewer_pixels.frames == 32
    assert fewer_pixels.prompt_tokens <= budget
    assert fewer_pixels.audio_tokens == info.audio_tokens
    assert "picture of 192 tokens" in caplog.text

    budget = info.prompt_tokens - 16 * 12 + 20
    example, fewer_frames = load_example(
        files["long"], ClipSettings(**SMALL, max_tokens=budget), tokenizer, CONFIG
    )
    assert 2 <= fewer_frames.frames < 32
    assert fewer_frames.prompt_tokens <= budget
    assert fewer_frames.audio_tokens == info.audio_tokens
    assert re.search(r"32 frames of 112x84 became \d+ of \d+x\d+", fewer_frames.notes[0])
    collate(
        [example], bucket_of(example, Buckets(), CONFIG), 1, CONFIG
    )  # every media token has its feature
    # fewer frames are spread over the same seconds
    assert example.positions[0, example.source == VISION].max() > 250
    assert wanted.positions[0, wanted.source == VISION].max() < 450


def test_budget_holds_where_the_header_hides_sound(files, tokenizer, monkeypatch):
    _, info = load_example(files["long"], ClipSettings(**SMALL), tokenizer, CONFIG)
    monkeypatch.setattr(clips, "probe", lambda path: probe(path)._replace(audio_seconds=0.1))
    _, fitted = load_example(
        files["long"], ClipSettings(**SMALL, max_tokens=500), tokenizer, CONFIG
    )
    assert info.prompt_tokens > 500 >= fitted.prompt_tokens
    assert fitted.audio_tokens == info.audio_tokens


def test_budget_of_an_image(files, tokenizer):
    settings = ClipSettings(question="Where?")
    _, info = load_example(files["still"], settings, tokenizer, CONFIG)
    budget = info.text_tokens + 6
    _, smaller = load_example(
        files["still"], ClipSettings(question="Where?", max_tokens=budget), tokenizer, CONFIG
    )
    assert 4 <= smaller.video_tokens <= 6
    with pytest.raises(
        UserError, match=r"still.png: picture needs 2 tokens even .* image_min_pixels"
    ):
        load_example(
            files["still"],
            ClipSettings(question="Where?", max_tokens=info.text_tokens + 1),
            tokenizer,
            CONFIG,
        )


def test_budget_that_cannot_be_met_says_what_to_change(files, tokenizer):
    cases = {
        "long": r"long.mp4: picture needs \d+ tokens even with 2 frames of .*raise max_tokens, lower min_pixels or",
        "tone": r"tone.wav: sound needs \d+ tokens more than the budget has; raise max_tokens",
        None: r"question: the prompt has \d+ tokens, the budget is 20; shorten it",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            load_example(files.get(name), ClipSettings(**SMALL, max_tokens=20), tokenizer, CONFIG)
        assert "\n" not in str(caught.value)


def test_several_media_and_turns(files, tokenizer):
    settings = resolve(ClipSettings(**SMALL))
    media = [
        load_medium(read_clip(files[name], settings), settings, CONFIG)
        for name in ("still", "loud", "tone")
    ]
    messages = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "Same?"}],
        },
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "And now?"}]},
    ]
    example = build_example(messages, media, tokenizer, CONFIG)
    assert (len(example.vision), len(example.mels)) == (2, 2)
    collate([example], bucket_of(example, Buckets(), CONFIG), 1, CONFIG)
    answered = build_example(
        [*messages, {"role": "assistant", "content": "Yes."}], media, tokenizer, CONFIG, False
    )
    n = len(example.tokens)
    np.testing.assert_array_equal(
        answered.tokens[:n], example.tokens
    )  # training and captioning share the prompt
    np.testing.assert_array_equal(answered.positions[:, :n], example.positions)
    assert (answered.positions[:, n] == example.next_position).all()


def test_a_clip_whose_sound_has_no_token(files, tokenizer):
    settings = resolve(ClipSettings(**SMALL))
    clip = read_clip(files["loud"], settings)
    short = load_medium(clip._replace(waveform=clip.waveform[:320]), settings, CONFIG)
    example = build_example(
        [{"role": "user", "content": [{"type": "video"}]}], [short], tokenizer, CONFIG
    )
    assert counts(example)[AUDIO] == 0
    assert (
        collate([example], bucket_of(example, Buckets(), CONFIG), 1, CONFIG).mel_frames[0, 0] == 2
    )
    none = load_medium(clip._replace(waveform=clip.waveform[:0]), settings, CONFIG)
    assert none.mel is None
    assert none.piece.audio_frames is None
    with pytest.raises(UserError, match="no sound to caption"):
        load_medium(
            clip._replace(kind="audio", frames=None, waveform=clip.waveform[:0]), settings, CONFIG
        )


def test_real_clips(shared_data, tokenizer):
    settings = ClipSettings(max_pixels=100_352)
    expected = {
        "bigbuckbunny": (10, 132, True),
        "bikes": (20, 250, False),
        "testMovie": (14, None, True),
    }
    for name, (frames, total, has_audio) in expected.items():
        example, info = load_example(
            shared_data / "videos" / f"{name}.mp4", settings, tokenizer, CONFIG
        )
        assert (info.frames, info.has_audio) == (frames, has_audio)
        if total:
            assert info.sample_fps == pytest.approx(frames / total * 25)
        collate([example], bucket_of(example, Buckets(), CONFIG), 1, CONFIG)
