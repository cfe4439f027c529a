"""Records give what their files give, tell of damage in one line, and are what TFDS reads."""

import json
import pickle
import shutil

import numpy as np
import pytest
from clips import write_clip
from fake_bucket import bucket  # noqa: F401 (fixture)
from PIL import Image

from ugc_jax import files
from ugc_jax.data.example import build_example, load_example
from ugc_jax.data.extract import Extraction, extract_row, run_local
from ugc_jax.data.manifest import ManifestRow, read_manifest
from ugc_jax.data.records import (
    IndexEntry,
    MediumFacts,
    RecordSource,
    Storage,
    decode_record,
    shard_name,
)
from ugc_jax.data.workers import ReadingConfig
from ugc_jax.errors import EnvironmentFailure, UserError
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import tiny

CONFIG = tiny()
CLIP = resolve(ClipSettings(frames=5, min_pixels=4 * 784, max_pixels=12 * 784, question="What?"))
EXACT = Storage("png", mel="float32")


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A folder with two clips with sound, a silent one, and a still image."""
    folder = tmp_path_factory.mktemp("media")
    for seed, name in enumerate(("a", "b", "silent")):
        audio = name != "silent"
        write_clip(
            folder / f"{name}.mp4", seconds=1.5, fps=10, size=(128, 96), seed=seed, audio=audio
        )
    Image.fromarray(np.arange(90 * 120 * 3, dtype=np.uint8).reshape(90, 120, 3)).save(
        folder / "still.png"
    )
    return folder


def extract(rows, folder, storage, shard_clips=2):
    extraction = Extraction(folder, rows, CLIP, storage, shard_clips)
    for _ in run_local(extraction.prepare(), ReadingConfig(workers=1)):
        pass
    return extraction.finish()


@pytest.fixture(scope="module")
def folder(media, tmp_path_factory):
    """An exact extraction: three clips of a folder in two shards."""
    from etils import epath

    folder = epath.Path(tmp_path_factory.mktemp("records") / "exact")
    extract(read_manifest(media, CLIP), folder, EXACT)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def assert_equal(first, second):
    np.testing.assert_equal(first._asdict(), second._asdict())


def test_a_record_and_its_file_give_the_same_example(media, folder, tokenizer):
    source = RecordSource(folder)
    assert len(source) == 3
    for index, name in enumerate(("a", "b", "silent")):
        wanted, _ = load_example(media / f"{name}.mp4", CLIP, tokenizer, CONFIG)
        entry, loaded = source[index]
        assert_equal(build_example(entry.messages, loaded, tokenizer, CONFIG), wanted)
        assert [medium.piece for medium in loaded] == list(entry.media)
        assert entry.id == str(media / f"{name}.mp4")
    assert source.entries[2].media[0].mel_frames is None


@pytest.mark.parametrize(("quality", "error"), [(95, 1.5), (60, 3.0)])
def test_what_jpeg_and_half_precision_cost(media, quality, error):
    (row, *_) = read_manifest(media, CLIP)
    found = {}
    for storage in (EXACT, Storage(quality=quality)):
        line, record = extract_row(row, CLIP, storage)
        facts = [MediumFacts(**fact) for fact in line["media"]]
        found[storage.format] = decode_record(record, facts, storage.mel)[0], len(record)
    (exact, exact_bytes), (lossy, lossy_bytes) = found["png"], found["jpeg"]
    difference = np.abs(exact.frames.astype(float) - lossy.frames)
    print(f"quality {quality}: pixels differ by {difference.mean():.2f} of 255 on average")
    assert 0 < difference.mean() < error
    assert np.abs(exact.mel - lossy.mel).max() <= 2**-11 * np.abs(exact.mel).max()
    assert lossy.mel.dtype == np.float32
    assert lossy_bytes < exact_bytes


def test_several_media_in_one_record(media, tmp_path, tokenizer):
    names = ["still.png", "b.mp4", "silent.mp4"]
    parts = [{"type": kind} for kind in ("image", "video", "video")]
    user = {"role": "user", "content": [*parts, {"type": "text", "text": "Which?"}]}
    row = ManifestRow("r", [user], [str(media / name) for name in names], "b", {"tag": [1]})
    extract([row], tmp_path / "out", EXACT)
    entry, loaded = RecordSource(tmp_path / "out")[0]
    assert entry[:4] == ("r", [user], "b", {"tag": [1]})
    for medium, name in zip(loaded, names, strict=True):
        wanted, _ = load_example(media / name, CLIP, tokenizer, CONFIG)
        np.testing.assert_equal(medium.vision._asdict(), wanted.vision[0]._asdict())
        np.testing.assert_equal(medium.mel, wanted.mels[0] if wanted.mels else None)


def test_facts_are_kept(media, folder):
    line = json.loads((folder / "index.jsonl").read_text().split("\n")[0])
    (fact,) = line["media"]
    assert (fact["frames"], fact["fps"], fact["has_sound"]) == (4, 10.0, True)
    assert fact["instants"] == [0.0, 0.5, 0.9, 1.4]  # a video's frames come in pairs
    assert (fact["height"] % 28, fact["width"] % 28) == (0, 0)
    plan = json.loads((folder / "extraction.json").read_text())
    assert ClipSettings(**plan["clip"]) == CLIP
    assert Storage(**plan["storage"]) == EXACT
    assert {"ugc_jax", "av", "numpy", "pillow"} <= set(plan["versions"])


def test_a_name_that_is_not_utf8(media, tmp_path):
    from etils import epath

    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "caf\udce9.mp4").symlink_to(sorted(media.glob("*.mp4"))[0])
    output = epath.Path(tmp_path / "records")
    extract(read_manifest(clips, CLIP), output, EXACT)
    ((entry, _),) = RecordSource(output)
    assert entry.id == f"{clips}/caf\udce9.mp4"
    lines = [{"path": entry.id, "caption": "A cat."}]
    (tmp_path / "train.jsonl").write_text(files.to_lines(lines), encoding="utf-8")
    (row,) = read_manifest(tmp_path / "train.jsonl", CLIP)
    assert row.media == [entry.id]


def test_a_source_travels_to_other_processes(folder):
    source = RecordSource(folder)
    source[0]  # opens a file, which cannot be pickled
    again = pickle.loads(pickle.dumps(source))
    assert again.entries == source.entries
    np.testing.assert_equal(again[1][1][0].mel, source[1][1][0].mel)


def test_tfds_reads_the_folder(folder):
    import tensorflow_datasets as tfds

    data = tfds.builder_from_directory(str(folder)).as_data_source("train")
    assert len(data) == 3
    source = RecordSource(folder)
    for index, example in enumerate(data):
        entry, loaded = source[index]
        assert example["id"].decode() == entry.id
        assert json.loads(example["messages"]) == entry.messages
        assert len(example["frames"]) == 4
        np.testing.assert_equal(example["mel"], loaded[0].mel if index < 2 else np.zeros((0, 128)))


def test_a_flipped_bit_is_found_wherever_it_is(folder, copy):
    """Of a record, by ArrayRecord's hashes or ours; elsewhere in the file it may do no harm."""
    wanted = RecordSource(folder)
    name = copy / shard_name(1, 2)
    whole = name.read_bytes()
    errors = []
    for place in np.linspace(0, len(whole) - 1, 60).astype(int):
        broken = bytearray(whole)
        broken[place] ^= 4
        name.write_bytes(broken)
        source = RecordSource(copy)
        for index in (1, 2):
            try:
                np.testing.assert_equal(source[index], wanted[index])
            except UserError as error:
                errors.append(str(error))
        source[0]  # the other shard is as good as ever
    assert len(errors) > 10
    for error in errors:
        assert error.startswith(f"{name}: record ")
        assert " is damaged; delete this file and run ugc-jax extract again" in error
        assert "\n" not in error


def test_without_handles_no_record_is_called_damaged(folder, no_handles):
    source = RecordSource(folder)
    with no_handles(), pytest.raises(EnvironmentFailure, match="^too many open files; raise"):
        source[0]


def truncated(folder):
    name = folder / shard_name(0, 2)
    name.write_bytes(name.read_bytes()[:-1])
    return name


def missing(folder):
    (folder / shard_name(1, 2)).unlink()
    return folder / shard_name(1, 2)


def no_index(folder):
    (folder / "index.jsonl").unlink()
    return folder / "index.jsonl"


def flipped_index(folder):
    text = (folder / "index.jsonl").read_text()
    (folder / "index.jsonl").write_text(text.replace("What?", "When?", 1))
    return folder / "index.jsonl"


def unfinished(folder):
    (folder / "shards.json").unlink()
    return folder / "shards.json"


def garbage(folder):
    (folder / "extraction.json").write_text('{"storage": ')
    return folder / "extraction.json"


def rewritten(folder, change):
    path = folder / "extraction.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def no_storage(folder):
    return rewritten(folder, lambda content: content.pop("storage"))


def unknown_storage(folder):
    return rewritten(folder, lambda content: content["storage"].update(codec="av1"))


def list_as_storage(folder):
    return rewritten(folder, lambda content: content.update(storage=["jpeg"]))


def wrong_quality(folder):
    return rewritten(folder, lambda content: content["storage"].update(quality=0))


HARMS = [truncated, missing, no_index, flipped_index, unfinished, garbage]
HARMS += [no_storage, unknown_storage, list_as_storage, wrong_quality]


@pytest.mark.parametrize("harm", HARMS)
def test_harm_is_told_at_opening(copy, harm):
    name = harm(copy)
    with pytest.raises(UserError) as error:
        RecordSource(copy)
    assert str(error.value).startswith(f"{name}: ")
    assert "run ugc-jax extract" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_quality_that_does_not_exist():
    with pytest.raises(UserError, match="quality is 0; use 1 to 100"):
        Storage(quality=0)


USER = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What?"}]}
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "Re"}, {"text": "d."}]}


@pytest.mark.parametrize(
    ("messages", "solution", "prompt", "answer"),
    [
        ([USER, ANSWER], "B", [USER], "Red."),
        ([USER], "B", [USER], "B"),
        ([USER], None, [USER], None),
        ([USER, ANSWER, USER, ANSWER], None, [USER, ANSWER, USER], "Red."),
        ([USER, ANSWER, USER], "B", [USER, ANSWER, USER], "B"),
    ],
)
def test_prompt_and_answer(messages, solution, prompt, answer):
    entry = IndexEntry("a", messages, solution, {}, ())
    assert entry.prompt == prompt
    assert entry.answer == answer
    assert entry.question == "What?"


# ---- a bucket ------------------------------------------------------------------------------------


@pytest.fixture
def in_bucket(folder, bucket, tmp_path):  # noqa: F811
    """The folder in a bucket, read with copies below tmp_path/cache; returns (bucket, source)."""
    for file in folder.iterdir():
        if file.is_file():
            bucket.pipe_file(f"s3://b/exact/{file.name}", file.read_bytes())
    return bucket, RecordSource("s3://b/exact", cache=str(tmp_path / "cache"))


def test_records_of_a_bucket_are_fetched_once_and_tried_again(in_bucket, folder, tmp_path):
    bucket, source = in_bucket  # noqa: F811
    bucket.asked.clear()
    bucket.faults["array_record"] = [ConnectionResetError("reset"), TimeoutError()]
    source.fetch(range(len(source)))
    names = [shard_name(number, 2) for number in range(2)]
    copies = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert sorted(file.name for file in copies) == names
    first = len(bucket.asked)
    assert first == 4  # two files, and two further tries
    local = RecordSource(folder)
    for number in range(len(local)):
        for a, b in zip(source[number][1], local[number][1], strict=True):
            np.testing.assert_array_equal(a.vision.patches, b.vision.patches)
    again = pickle.loads(pickle.dumps(source))  # a worker of this machine
    assert again[2][0].id == local[2][0].id
    assert not [path for path in bucket.asked[first:] if "array_record" in path]


def test_a_damaged_copy_is_fetched_again_and_a_damaged_file_is_named(in_bucket, tmp_path):
    bucket, source = in_bucket  # noqa: F811
    source.fetch([0])
    (copy,) = (file for file in (tmp_path / "cache").rglob("*") if file.is_file())
    content = bytearray(copy.read_bytes())
    content[1000:1100] = bytes(100)
    copy.write_bytes(content)
    assert source[0][0].id == source.entries[0].id
    bucket.pipe_file(f"s3://b/exact/{copy.name}", bytes(content))
    other = RecordSource("s3://b/exact", cache=str(tmp_path / "other"))
    with pytest.raises(UserError, match=f"^s3://b/exact/{copy.name}: record 0 is damaged"):
        other[0]


def test_a_lasting_error_names_the_file_of_the_bucket(in_bucket, tmp_path):
    bucket, source = in_bucket  # noqa: F811
    bucket.faults["00001-of-00002"] = [ConnectionResetError("reset")] * 99
    with pytest.raises(UserError) as error:
        source.fetch(range(len(source)))
    assert str(error.value) == (
        f"s3://b/exact/{shard_name(1, 2)}: cannot be read after 6 tries (reset); run again when it "
        "can be reached"
    )
    bucket.rm_file(f"s3://b/exact/{shard_name(0, 2)}")
    with pytest.raises(UserError, match=f"{shard_name(0, 2)}: missing; run ugc-jax extract again"):
        RecordSource("s3://b/exact", cache=str(tmp_path / "cache"))


def test_copies_of_an_earlier_state_go(in_bucket, tmp_path):
    """Records that were removed leave no copies."""
    _, source = in_bucket
    source.fetch([0])
    (folder,) = (tmp_path / "cache").glob("*")  # noqa: F811
    (folder / "00000000").mkdir()
    (folder / "00000000" / shard_name(0, 2)).write_bytes(b"earlier")
    RecordSource("s3://b/exact", cache=str(tmp_path / "cache"))
    assert [one.name for one in folder.iterdir()] == [source._copies.name]
