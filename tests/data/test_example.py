"""Files and questions -> Examples: what the prompt holds, how an oversized clip is made to fit."""

import re
import struct

import av
import jax
import numpy as np
import pytest
from clips import write_clip
from PIL import Image

from ugc_jax.data import example as module
from ugc_jax.data.batching import Buckets, bucket_of, collate
from ugc_jax.data.example import (
    MediaRequest,
    build_example,
    clip_messages,
    load_example,
    medium_input,
    raw_medium,
    read_several,
    shares,
    text_tokens,
)
from ugc_jax.data.prompt import AUDIO, TEXT, VISION
from ugc_jax.errors import UserError
from ugc_jax.media import clip as clip_module
from ugc_jax.media.clip import probe, read_clip
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import tiny

CONFIG = tiny()
IDS = CONFIG.tokens
SMALL = dict(question="What happens?", min_pixels=4 * 784, max_pixels=12 * 784)


def write_video(path, frames=50, fps=25, size=(128, 96), sound=None):
    """An mp4 of noise. size: (width, height). sound: seconds of a tone, None for a silent file."""
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


def load_medium(path, settings):
    clip = read_clip(probe(path), settings, 10_000, CONFIG)
    return medium_input(raw_medium(clip, settings, CONFIG.vision), CONFIG.vision)


def counts(example):
    return {kind: int((example.source == kind).sum()) for kind in (TEXT, VISION, AUDIO)}


def test_video_with_sound(files, tokenizer):
    example, info = load_example(files["loud"], ClipSettings(**SMALL), tokenizer, CONFIG)
    assert (info.kind, info.frames, info.sample_fps, info.has_audio) == ("video", 4, 2.0, True)
    assert info.grid == example.vision[0].grid == (2, 6, 8)
    assert info.video_tokens == 2 * 3 * 4
    assert info.audio_seconds == pytest.approx(2.0, abs=0.2)  # the codec adds a little
    assert info.audio_tokens == pytest.approx(50, abs=5)
    parts = [info.text_tokens, info.video_tokens, info.audio_tokens]
    assert list(counts(example).values()) == parts
    assert info.prompt_tokens == len(example.tokens) == sum(parts)
    assert info.notes == ()
    text = tokenizer.decode(example.tokens)
    assert text == "system\nYou are a helpful assistant.\nuser\nWhat happens?\nassistant\n"
    before = example.tokens.tolist().index(IDS.vision_start_token_id)
    assert example.tokens[before + 1] == IDS.audio_start_token_id
    assert example.next_position == example.positions[0, -1] + 1


def test_silence_is_a_fact_of_the_example(files, tokenizer):
    silent, info = load_example(files["silent"], ClipSettings(**SMALL), tokenizer, CONFIG)
    assert (info.has_audio, info.audio_tokens, info.notes) == (False, 0, ("no sound in the file",))
    muted, told = load_example(files["loud"], ClipSettings(**SMALL, audio=False), tokenizer, CONFIG)
    assert (told.has_audio, told.notes) == (False, ("the sound is left out (audio=false)",))
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
    assert (told.kind, told.has_audio) == ("audio", True)
    assert (told.audio_tokens, told.audio_seconds) == (75, 3.0)
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


def test_budget_takes_pixels_first_then_frames_and_never_tokens(files, tokenizer):
    wanted, info = load_example(files["long"], ClipSettings(**SMALL), tokenizer, CONFIG)
    assert (info.frames, info.grid) == (32, (16, 6, 8))

    budget = info.prompt_tokens - 16 * 4
    example, fewer_pixels = load_example(
        files["long"], ClipSettings(**SMALL, max_tokens=budget), tokenizer, CONFIG
    )
    assert fewer_pixels.frames == 32
    assert fewer_pixels.prompt_tokens <= budget
    assert fewer_pixels.audio_tokens == info.audio_tokens
    assert re.match(r"picture needs 192 tokens, the budget has 1\d\d left", fewer_pixels.notes[0])

    budget = info.prompt_tokens - 16 * 12 + 20
    example, fewer_frames = load_example(
        files["long"], ClipSettings(**SMALL, max_tokens=budget), tokenizer, CONFIG
    )
    assert 2 <= fewer_frames.frames < 32
    assert fewer_frames.prompt_tokens <= budget
    assert fewer_frames.audio_tokens == info.audio_tokens
    assert re.search(
        r"reduced from 32 frames of 112x84 to \d+ frames of \d+x\d+", fewer_frames.notes[0]
    )
    collate([example], bucket_of(example, Buckets(), CONFIG), 1, CONFIG)  # which compares counts
    # fewer frames are spread over the same seconds
    assert example.positions[0, example.source == VISION].max() > 250
    assert wanted.positions[0, wanted.source == VISION].max() < 450


def test_budget_holds_where_the_header_hides_sound(files, tokenizer, monkeypatch):
    _, info = load_example(files["long"], ClipSettings(**SMALL), tokenizer, CONFIG)
    monkeypatch.setattr(module, "probe", lambda path: probe(path)._replace(audio_seconds=0.1))
    reads = []
    for name in ("read_sound", "read_frames"):
        read = getattr(clip_module, name)
        monkeypatch.setattr(
            clip_module,
            name,
            lambda *words, name=name, read=read: reads.append(name) or read(*words),
        )
    _, fitted = load_example(
        files["long"], ClipSettings(**SMALL, max_tokens=500), tokenizer, CONFIG
    )
    assert info.prompt_tokens > 500 >= fitted.prompt_tokens
    assert fitted.audio_tokens == info.audio_tokens
    assert reads == ["read_sound", "read_frames"]


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
    _, bare = load_example(None, ClipSettings(**SMALL), tokenizer, CONFIG)
    least = bare.prompt_tokens
    raise_it = "raise max_tokens"
    for name, budget, message in (
        ("long", least + 20, rf"long.mp4: picture needs \d+ tokens even as 2 frames .*{raise_it}"),
        ("tone", least + 20, rf"tone.wav: sound needs \d+ tokens more than .*{raise_it}"),
        ("tone", least - 1, rf"question: .* has {least} tokens, the budget is .*{raise_it}"),
        (None, least - 1, rf"question: .* has {least} tokens, the budget is .*{raise_it}"),
    ):
        settings = ClipSettings(**SMALL, max_tokens=budget)
        with pytest.raises(UserError, match=message) as caught:
            load_example(files.get(name), settings, tokenizer, CONFIG)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("question", ["Why?", "", "\n\nWhy?", " Why?"])
def test_budget_is_met_to_the_token(question, files, tokenizer):
    """Beside a medium the text is tokenized in two parts, which may take a token more."""
    settings = dict(SMALL, question=question, frames=4)
    for name in ("silent", "still", "tone"):
        _, info = load_example(files[name], ClipSettings(**settings), tokenizer, CONFIG)
        for budget in range(info.prompt_tokens - 4, info.prompt_tokens + 1):
            tight = ClipSettings(**settings, max_tokens=budget, image_min_pixels=1)
            if name == "tone" and budget < info.prompt_tokens:
                continue  # a sound has nothing to give up
            _, fitted = load_example(files[name], tight, tokenizer, CONFIG)
            assert fitted.prompt_tokens <= budget


def test_what_is_left_away_is_noted(files, tokenizer):
    for settings, note in (
        (dict(max_audio_seconds=1.0), r"sound of 2.\d s is cut at 1 s; raise max_audio_seconds"),
        (dict(frames=64), "64 frames are requested, the clip has 50"),
        (dict(start=1.0, end=1.5, frames=20), "20 frames are requested, the clip has 12"),
    ):
        example, info = load_example(
            files["loud"], ClipSettings(**SMALL, **settings), tokenizer, CONFIG
        )
        assert len(info.notes) == 1
        assert re.match(note, info.notes[0])


def test_several_media_and_turns(files, tokenizer):
    settings = resolve(ClipSettings(**SMALL))
    media = [load_medium(files[name], settings) for name in ("still", "loud", "tone")]
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
    n = len(example.tokens)  # training and captioning share the prompt
    np.testing.assert_array_equal(answered.tokens[:n], example.tokens)
    np.testing.assert_array_equal(answered.positions[:, :n], example.positions)
    assert (answered.positions[:, n] == example.next_position).all()


@pytest.mark.parametrize("name", ["loud", "tone"])
def test_sound_under_40_ms_gives_markers_and_no_token(name, files, tokenizer):
    """20 ms are two mel frames: they stay in the batch, and no token takes a row of them."""
    settings = ClipSettings(**SMALL, end=0.02)
    example, info = load_example(files[name], settings, tokenizer, CONFIG)
    assert (info.has_audio, info.audio_tokens) == (True, 0)
    assert info.notes == ("the sound is too short to give a token",)
    assert IDS.audio_start_token_id in example.tokens
    batch = collate([example], bucket_of(example, Buckets(), CONFIG), 1, CONFIG)
    assert batch.media["audio"].frames.tolist() == [[2]]
    patches = batch.media["vision"].patches[0].size // CONFIG.vision.patch_dim
    assert batch.splice.max() < patches // 4


def test_sound_without_a_sample(files):
    settings = resolve(ClipSettings(**SMALL, max_audio_seconds=1e-5))
    silent = load_medium(files["loud"], settings)
    assert (silent.mel, silent.piece.mel_frames) == (None, None)
    with pytest.raises(UserError, match="tone.wav: holds no sound within"):
        load_medium(files["tone"], settings)


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


# ---- bad files -----------------------------------------------------------------------------------


def cut(part, faststart):
    def write(path):
        write_clip(path, faststart=faststart, seconds=2, size=(128, 96))
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * part)])

    return write


def cut_at_index(path):
    """All of picture and sound, but not the index behind them, without which they are nothing."""
    write_clip(path, faststart=False, seconds=2, size=(128, 96))
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"moov") - 4])


def claim_4_gb(box):
    def write(path):
        write_clip(path, faststart=True, seconds=1, size=(128, 96))
        content = path.read_bytes()
        place = content.index(box) - 4
        path.write_bytes(content[:place] + struct.pack(">I", 0xFFFF_FFF0) + content[place + 4 :])

    return write


BAD = {
    "missing": (lambda path: None, "no such file; check its name"),
    "folder": (lambda path: path.mkdir(), "not a file; name a video"),
    "empty": (lambda path: path.touch(), "empty; copy it again"),
    "not a video": (lambda path: path.write_text("No video\n" * 999), "not readable as .*copy or"),
    "half, index last": (cut(0.5, False), "not readable as .*copy or encode it again"),
    "index last, missing": (cut_at_index, "not readable as .*copy or encode it again"),
    "half, index first": (cut(0.5, True), r"cut off, only \d+ of its \d+ bytes .*copy it again"),
    "nine tenths, index first": (cut(0.9, True), r"cut off, only \d+ of its .*copy it again"),
    "4 GB of data": (claim_4_gb(b"mdat"), r"cut off, only \d+ of its 429\d+ bytes .*copy it again"),
    "4 GB of index": (
        claim_4_gb(b"moov"),
        r"cut off, only \d+ of its 429\d+ bytes .*copy it again",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_told_in_one_line(name, tmp_path, tokenizer):
    write, message = BAD[name]
    path = tmp_path / "bad.mp4"
    write(path)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: .*{message}") as caught:
        load_example(path, ClipSettings(**SMALL), tokenizer, CONFIG)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("seconds", "audio", "frames"), [(2.0, 0.0, 4), (0.04, False, 2)])
def test_odd_but_good_files(seconds, audio, frames, tmp_path, tokenizer):
    """A sound stream without sound, and a video of one frame."""
    write_clip(tmp_path / "a.mp4", seconds=seconds, audio=audio, size=(128, 96))
    example, info = load_example(tmp_path / "a.mp4", ClipSettings(**SMALL), tokenizer, CONFIG)
    assert (info.frames, info.has_audio) == (frames, False)
    assert info.notes == ("no sound in the file",)
    collate([example], bucket_of(example, Buckets(), CONFIG), 1, CONFIG)


# ---- several media -------------------------------------------------------------------------------


def several(files, tokenizer, names, **fields):
    """What is read of some files, and their settings."""
    settings = resolve(ClipSettings(**SMALL | fields))
    wanted = MediaRequest(
        [files[name] for name in names], settings, text_tokens(settings, tokenizer)
    )
    return list(read_several(wanted, CONFIG)), settings


@pytest.mark.parametrize("max_tokens", [None, 120])
@pytest.mark.parametrize("name", ["loud", "silent", "still"])
def test_one_of_several_media_is_that_of_a_clip_alone(files, tokenizer, name, max_tokens):
    read, settings = several(files, tokenizer, [name], max_tokens=max_tokens)
    ((_, medium, info),) = read
    alone, facts = load_example(files[name], settings, tokenizer, CONFIG)
    own = build_example(clip_messages(settings, info.kind), [medium], tokenizer, CONFIG)
    for left, right in zip(jax.tree.leaves(own), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(left, right)
    assert info.instants == facts.instants


def test_several_media_share_the_budget(files, tokenizer):
    names = ["still", "loud", "tone"]
    whole, _ = several(files, tokenizer, names)
    read, settings = several(files, tokenizer, names, max_tokens=185, min_pixels=784)
    messages = [
        {"role": "system", "content": settings.system},
        {"role": "user", "content": [{"type": raw.kind} for raw, _, _ in read]},
        {"role": "user", "content": settings.question},
    ]
    example = build_example(messages, [medium for _, medium, _ in read], tokenizer, CONFIG)
    assert len(example.tokens) <= 185 + 6  # of the other turn
    assert [raw.kind for raw, _, _ in read] == ["image", "video", "audio"]
    assert read[1][0].frames.nbytes < whole[1][0].frames.nbytes
    assert "the budget has" in read[1][2].notes[0]
    for number in (0, 2):  # what is small stays whole
        np.testing.assert_array_equal(read[number][0].mel, whole[number][0].mel)
    np.testing.assert_array_equal(read[0][0].frames, whole[0][0].frames)


def test_the_sound_of_a_video_alone(files, tokenizer):
    settings = resolve(ClipSettings(**SMALL))
    ((raw, _, info),) = read_several(MediaRequest([files["loud"]], settings, 30, False), CONFIG)
    assert (raw.kind, raw.frames, info.kind) == ("audio", None, "audio")
    assert info.audio_seconds == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize(
    ("needs", "budget", "parts"),
    [
        ([], 5, []), ([3], 5, [3]), ([9], 5, [5]), ([1, 9, 9], 11, [1, 5, 5]),
        ([2, 2, 2], 3, [1, 1, 1]), ([4, 1], -3, [0, 0]),
    ],
)  # fmt: skip
def test_shares(needs, budget, parts):
    assert shares(needs, budget) == parts
