"""The world: captions say all, the clips show and play all, the splits share no combination."""

import collections
import itertools

import numpy as np
import pytest
from scipy import ndimage

from ugc_jax.errors import UserError
from ugc_jax.media import clip as media
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY
from ugc_jax.toy import synthetic, world

RATE = 16_000
# What the words mean, told a second time: steps in (row, column), hertz, beats a second.
STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
PITCHES = {"low": 200, "middle": 700, "high": 2500}
RHYTHMS = {"slow": 2.5, "fast": 8}


@pytest.fixture(scope="module")
def clips():
    """[(scene, attributes, caption)] by split."""
    counts = {"train": 1000, "test": 300}
    return {
        split: [world.make_clip(split, number) for number in range(count)]
        for split, count in counts.items()
    }


# ---- captions ------------------------------------------------------------------------------------


def test_captions_state_every_attribute_and_no_other(clips):
    for _, attributes, caption in itertools.chain.from_iterable(clips.values()):
        assert world.parse_caption(caption) == attributes
        for name, values in world.VALUES.items():
            other = values[values.index(attributes[name]) - 1]
            checked = world.check(caption, attributes | {name: other})
            assert [key for key, right in checked.items() if not right] == [name]


def test_every_phrasing_is_used_and_can_be_parsed(clips):
    _, attributes, _ = clips["test"][0]
    for phrasing in range(len(world.PHRASINGS)):
        for text, change in itertools.product(("MOON", "none"), ("grey", "teal")):
            wanted = attributes | {"text": text, "change": change}
            caption = world.write_caption(wanted, phrasing)
            assert world.parse_caption(caption) == wanted
    starts = {caption.split()[0] for *_, caption in clips["train"]}
    assert starts == {"A", "The", "Over", "Slow", "Fast"}


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("", {}),
        ("!! circles redder slower beep moon<|im_end|>", {}),
        ("A purple circle moves sideways. The word MOOO is shown.", {"shape": "circle"}),
        ("A red circle and a red square.", {"colour": "red"}),
        ("No word is shown. The text reads MOON.", {}),
        ("There is no text.", {"text": "none"}),
        ("FISH FISH slow slow", {"text": "FISH", "rhythm": "slow"}),
        ("The background is grey, ends teal and ends brown.", {"background": "grey"}),
        ("Slow noise, then a circle, then beeps.", {"rhythm": "slow", "shape": "circle"}),
    ],
)
def test_parse_takes_only_what_is_said_once(caption, said):
    assert world.parse_caption(caption) == dict.fromkeys(world.VALUES) | said


# ---- combinations --------------------------------------------------------------------------------


def test_training_never_has_what_the_test_holds(clips):
    for names, held in world.HELD_OUT.items():
        seen = {
            split: {tuple(attributes[name] for name in names) for _, attributes, _ in rows}
            for split, rows in clips.items()
        }
        if "text" in names:
            free = {("none", background) for background in synthetic.BACKGROUNDS}
            assert seen == {"train": seen["train"] - held | free, "test": held | free}
        else:
            assert seen["test"] == held
        table = set(itertools.product(*(world.VALUES[name] for name in names)))
        assert seen["train"] == table - held


def test_the_order_follows_from_the_two_times_alone(clips):
    for split, rows in clips.items():
        pairs = collections.defaultdict(collections.Counter)
        for _, attributes, _ in rows:
            sound = tuple(attributes[name] for name in ("sound", "pitch", "rhythm"))
            pairs[sound][attributes["first"]] += 1
        for sound, counts in pairs.items():
            assert 0.25 < counts["shape"] / counts.total() < 0.75, (split, sound)


def test_values_are_equally_frequent(clips):
    for split, rows in clips.items():
        for name in world.VALUES:
            counts = collections.Counter(attributes[name] for _, attributes, _ in rows)
            assert counts.keys() == set(world.VALUES[name]), (split, name)
            assert max(counts.values()) - min(counts.values()) <= 8, (split, name)


def test_neither_picture_nor_sound_alone_tells_which_is_first(clips):
    rows = clips["train"]
    shares = []
    for begins in (lambda scene: scene.shapes[0].appears, lambda scene: scene.sound.begins):
        votes = collections.defaultdict(collections.Counter)
        for scene, attributes, _ in rows:
            votes[round(begins(scene) / 0.05)][attributes["first"]] += 1
        shares.append(sum(max(counts.values()) for counts in votes.values()) / len(rows))
    # 6/10 and 7/10, and a little more for votes that are counted in hindsight
    assert 0.58 < shares[0] < 0.66
    assert 0.68 < shares[1] < 0.76
    for scene, attributes, _ in rows:
        early = scene.shapes[0].appears < scene.sound.begins
        assert attributes["first"] == ("shape" if early else "sound")
        assert abs(scene.shapes[0].appears - scene.sound.begins) > 0.16


def test_clips_follow_from_split_number_and_seed():
    assert world.make_clip("train", 7, seed=1) == world.make_clip("train", 7, seed=1)
    different = [("train", 7, 1), ("train", 7, 2), ("train", 8, 1), ("test", 7, 1)]
    assert len({repr(world.make_clip(*which)) for which in different}) == 4


# ---- clips ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """[(frames as the model samples them, waveform, attributes)] of clips read back from mp4."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "test").mkdir()
    settings = world.WorldSettings()
    rows = [world.write_example("test", number, settings, folder) for number in range(48)]
    return [(*_read(folder / row["videos"][0]), row["attributes"]) for row in rows]


def _read(path):
    settings = resolve(ClipSettings(fps=2.0, min_pixels=112 * 112))
    clip = media.read_clip(media.probe(path), settings, 10_000, GEOMETRY)
    assert clip.frames.shape == (4, 112, 112, 3)
    assert clip.sample_fps == 2
    assert 1.95 < len(clip.waveform) / RATE <= 2  # one chunk of the audio encoder
    return clip.frames.astype(float), clip.waveform


def _closest(colour, palette) -> str:
    return min(palette, key=lambda name: np.abs(np.array(palette[name]) - colour).sum())


def _inside(picture, mark) -> tuple[np.ndarray, str]:
    """The pixels of a shape within its outline, i64[n, 2], and its colour: the largest patch."""
    patches = []
    for name, colour in synthetic.COLOURS.items():
        labels, _ = ndimage.label(mark & (np.abs(picture - colour).sum(axis=-1) < 90))
        largest = np.bincount(labels.ravel())[1:].argmax() + 1 if labels.any() else -1
        patches.append((np.argwhere(labels == largest), name))
    return max(patches, key=lambda patch: len(patch[0]))


def test_pictures_show_what_the_attributes_say(files):
    font = synthetic._font(28)
    for frames, _, attributes in files:
        upper = frames[:, :84]
        grounds = [np.median(frame.reshape(-1, 3), axis=0) for frame in upper]
        names = [_closest(ground, synthetic.BACKGROUNDS) for ground in grounds]
        assert (names[0], names[-1]) == (attributes["background"], attributes["change"])
        marks = np.abs(upper - np.array(grounds)[:, None, None]).sum(axis=-1) > 80
        assert not marks[0].any()
        shown = [mark for mark in marks if mark.any()]
        places = [np.argwhere(mark).mean(axis=0) for mark in (shown[0], shown[-1])]
        step = STEPS[attributes["motion"]]
        assert (places[1] - places[0]) @ step > 10
        assert abs((places[1] - places[0]) @ step[::-1]) < 4
        plough = np.argwhere(marks[-1]) @ step
        mark = marks[-1] & (np.indices((84, 112)).transpose(1, 2, 0) @ step < plough.max() - 13)
        inside, colour = _inside(upper[-1], mark)
        fill = len(inside) / np.prod(np.ptp(inside, axis=0) + 1)
        form = "square" if fill > 0.9 else "circle" if fill > 0.65 else "triangle"
        assert (form, colour) == (attributes["shape"], attributes["colour"])
        band = frames[0, 84:].mean(axis=-1)
        if attributes["text"] == "none":
            assert np.ptp(band) < 20
        else:
            ink = np.count_nonzero((band < 128).any(axis=0))  # columns with ink
            assert (band > 200).any()
            assert ink > 0.6 * font.getlength(attributes["text"]) > 30


def test_sounds_play_what_the_attributes_say(files):
    for _, wave, attributes in files:
        loud = np.sqrt(np.convolve(wave**2, np.full(480, 1 / 480), "same"))[:: RATE // 100]
        begin = int(np.argmax(loud > 0.05))  # hundredths of a second
        loud, wave = loud[begin:], wave[begin * RATE // 100 :]
        power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
        power /= power.sum()
        middle = np.searchsorted(np.cumsum(power), 0.5) * RATE / len(wave)
        pitch = min(PITCHES, key=lambda name: abs(np.log(PITCHES[name] / middle)))
        breadth = np.exp(-power @ np.log(power + 1e-12)) * RATE / len(wave) / middle
        kind = "music" if np.mean(loud < 0.05) < 0.15 else "noise" if breadth > 0.25 else "beeps"
        time = np.arange(len(loud)) / 100
        beats = {
            name: np.abs((loud - loud.mean()) @ np.exp(-2j * np.pi * per_second * time))
            for name, per_second in RHYTHMS.items()
        }
        rhythm = max(beats, key=beats.get)
        heard = dict(sound=kind, pitch=pitch, rhythm=rhythm)
        assert heard == {name: attributes[name] for name in heard}


def test_which_is_first_can_be_seen_and_heard(files):
    for frames, wave, attributes in files:
        upper = frames[:, :84].reshape(4, -1, 3)
        seen = 1 if np.ptp(upper[1], axis=0).max() > 60 else 2  # the first frame with the shape
        heard = np.argmax(np.abs(wave) > 0.1) / RATE
        shape_first = heard > 0.58 if seen == 1 else heard > 1.2
        assert attributes["first"] == ("shape" if shape_first else "sound")


def test_muted_and_blanked_clips_are_the_same_but_for_that(tmp_path):
    rows, read = [], {}
    for kind in ("whole", "mute", "blank"):
        settings = world.WorldSettings(mute=kind == "mute", blank=kind == "blank")
        (tmp_path / kind / "test").mkdir(parents=True)
        rows.append(world.write_example("test", 3, settings, tmp_path / kind))
        read[kind] = _read(tmp_path / kind / rows[-1]["videos"][0])
    assert rows[0] == rows[1] == rows[2]
    np.testing.assert_array_equal(read["mute"][0], read["whole"][0])
    np.testing.assert_array_equal(read["blank"][1], read["whole"][1])
    assert not read["mute"][1].any()
    assert len(read["mute"][1]) == len(read["whole"][1])
    assert np.ptp(read["blank"][0]) < 10


def test_clip_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match=r"test/000000.mp4: cannot be written"):
        world.write_example("test", 0, world.WorldSettings(), tmp_path / "absent")


def test_a_share_of_the_training_captions_leaves_out_how_the_background_ends():
    whole = [world.make_clip("train", number) for number in range(200)]
    some = [world.make_clip("train", number, incomplete=0.6) for number in range(200)]
    assert [clip[:2] for clip in some] == [clip[:2] for clip in whole]
    stated = [world.parse_caption(caption) for *_, caption in some]
    for (_, attributes, _), said in zip(some, stated, strict=True):
        assert said in (attributes, attributes | {"change": None})
    assert 0.5 < sum(said["change"] is None for said in stated) / 200 < 0.7
    assert world.make_clip("test", 3, incomplete=1.0) == world.make_clip("test", 3)
