"""ugc_jax.annotate.media, preparing: each stage's files have only what the stage may have."""

import shutil
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from clips import write_clip
from fake_annotation import Clock
from PIL import Image

from ugc_jax.annotate import media
from ugc_jax.annotate.app import media_folder
from ugc_jax.annotate.media import Job, prepare, read_facts
from ugc_jax.annotate.preparing import Preparing, find
from ugc_jax.annotate.store import Store
from ugc_jax.data.workers import ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.media.clip import probe
from ugc_jax.media.sound import read_sound


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_clip(folder / "clip.mov", seconds=3.0, fps=12.5, size=(1280, 720), rotation=90)
    facts = prepare(Job(str(folder / "clip.mov"), str(folder / "out/1")))
    return folder / "clip.mov", folder / "out/1", facts


def kinds(path) -> list[str]:
    with av.open(str(path)) as container:
        return [stream.type for stream in container.streams]


def test_a_stage_has_only_its_part(prepared):
    _, folder, _ = prepared
    assert kinds(folder / "picture.mp4") == ["video"]
    assert kinds(folder / "both.mp4") == ["video", "audio"]
    with wave.open(str(folder / "sound.wav")) as file:
        assert file.getparams()[:3] == (1, 2, 16000)
    assert {one.name for one in folder.iterdir()} == {
        "facts.json", *(name for names in media.OF_STAGE.values() for name in names)
    }  # fmt: skip


def test_the_sound_is_what_the_model_hears(prepared):
    clip, folder, _ = prepared
    waveform = read_sound(probe(clip), 0.0, None, 100.0).waveform
    with wave.open(str(folder / "sound.wav")) as file:
        heard = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
    np.testing.assert_allclose(heard, waveform, atol=1e-4)


def test_every_picture_at_its_time(prepared):
    clip, folder, facts = prepared
    with av.open(str(folder / "picture.mp4")) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == len(facts["times"]) == 38
    np.testing.assert_allclose([frame.time for frame in frames], facts["times"], atol=1e-3)
    np.testing.assert_allclose(np.diff(facts["times"]), 0.08, atol=1e-3)
    assert (frames[0].width, frames[0].height) == (540, 960)  # upright, at most SIDE
    assert facts["seconds"] == pytest.approx(3.04, abs=0.1)
    with av.open(str(clip)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    upright = np.asarray(Image.fromarray(np.rot90(stored)).resize((540, 960)), np.float32)
    shown = frames[0].to_ndarray(format="rgb24").astype(np.float32)
    assert np.abs(shown - upright).mean() < 6


def test_the_drawing_shows_where_the_sound_is(tmp_path):
    waveform = np.zeros(32000, np.float32)
    waveform[8000:16000] = 0.5 * np.sin(np.arange(8000) * 2 * np.pi * 1000 / 16000)
    drawing = np.asarray(media._draw(waveform, 2.0), np.float32)
    width, height = media.DRAWING
    assert drawing.shape == (height, width, 3)
    loud = (drawing[: height // 2, :, 2] > 200).sum(axis=0)  # rows of each column
    assert loud[width // 4 + 5 : width // 2 - 5].min() > 80
    assert loud[: width // 4 - 5].max() <= 2
    mel = drawing[height // 2 :].mean(axis=2)
    assert mel[:, width // 3].max() > mel[:, width // 8].max() + 60


def test_the_strip_has_the_changes():
    changes = np.zeros(120)
    changes[[30, 60, 61, 90]] = 50.0
    chosen = media._choose(changes)
    assert {30, 60, 61, 90} <= set(chosen.tolist())
    assert len(chosen) <= media.STRIP
    assert media._choose(np.zeros(1)).tolist() == [0]
    even = media._choose(np.ones(120))
    assert len(even) == media.STRIP
    assert np.ptp(np.diff(even)) <= 1


def test_clips_with_one_half(tmp_path):
    write_clip(tmp_path / "mute.mp4", seconds=1.0, fps=10, size=(96, 64), audio=False)
    facts = prepare(Job(str(tmp_path / "mute.mp4"), str(tmp_path / "out/1")))
    assert (facts["sound"], facts["picture"]) == (False, True)
    assert kinds(tmp_path / "out/1/both.mp4") == ["video"]
    assert not (tmp_path / "out/1/sound.wav").exists()
    with wave.open(str(tmp_path / "only.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(0).integers(-9000, 9000, 16000, "<i2").tobytes())
    facts = prepare(Job(str(tmp_path / "only.wav"), str(tmp_path / "out/2")))
    assert (facts["sound"], facts["picture"], facts["times"]) == (True, False, [])


def test_all_files_or_none(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 5000)
    with pytest.raises(UserError, match=r"broken\.mp4"):
        prepare(Job(str(tmp_path / "broken.mp4"), str(tmp_path / "out/1")))
    assert list((tmp_path / "out").iterdir()) == []
    Image.new("RGB", (20, 20)).save(tmp_path / "still.png")
    with pytest.raises(UserError, match="is an image; annotate videos"):
        prepare(Job(str(tmp_path / "still.png"), str(tmp_path / "out/1")))


def test_a_folder_of_clips_is_prepared(tmp_path):
    folder = tmp_path / "clips"
    (folder / "inner").mkdir(parents=True)
    write_clip(folder / "inner/a.mp4", seconds=1.0, fps=10, size=(96, 64))
    (folder / "b.mp4").write_bytes(b"nothing of a video")
    write_clip(tmp_path / "secret.mp4", seconds=1.0, fps=10, size=(96, 64))
    (folder / "c.mp4").symlink_to(tmp_path / "secret.mp4")
    odd = folder / "d \udce9<b>.mp4"
    odd.write_bytes((folder / "inner/a.mp4").read_bytes())
    clips = find(str(folder))
    store = Store(str(tmp_path / "a.sqlite"), {}, Clock())
    store.add_clips([*clips, "gone.mp4"])
    (tmp_path / "media/000001.99999999.new").mkdir(parents=True)  # of a process that was killed

    def run():
        one = Preparing(store, clips, str(folder), tmp_path / "media", ReadingConfig(workers=1))
        one.start()
        one.join()

    run()
    run()  # finds nothing new
    rows = {row.path: row for row in store.clips()}
    assert {path: row.state for path, row in rows.items()} == {
        "b.mp4": "broken", "c.mp4": "broken", "d \\udce9<b>.mp4": "ready",
        "gone.mp4": "broken", "inner/a.mp4": "ready",
    }  # fmt: skip
    assert "leads out of the folder" in rows["c.mp4"].note
    assert "no such file in the folder" in rows["gone.mp4"].note
    assert {one.name for one in (tmp_path / "media").iterdir()} == {
        media_folder(Path(), row.id).name for row in rows.values() if row.state == "ready"
    }
    made = media_folder(tmp_path / "media", rows["inner/a.mp4"].id)
    assert read_facts(made)["sound"]
    # What the messages tell people to do: copy a clip again, delete a folder of media.
    (folder / "b.mp4").write_bytes((folder / "inner/a.mp4").read_bytes())
    shutil.rmtree(made)
    run()
    rows = {row.path: row for row in store.clips()}
    assert (rows["b.mp4"].state, rows["b.mp4"].note) == ("ready", "")
    assert rows["inner/a.mp4"].state == "ready"
    assert read_facts(made)["sound"]
    store.close()
    with pytest.raises(UserError, match="not a folder"):
        find(str(tmp_path / "nothing"))
