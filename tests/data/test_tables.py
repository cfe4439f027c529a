"""Data sets of Hugging Face and Parquet files, and columns with other names."""

import datetime
import os

import pytest
from fake_bucket import bucket  # noqa: F401 (fixture)

from ugc_jax.data import extract, tables, tars
from ugc_jax.data.manifest import Columns, read_manifest, read_rows
from ugc_jax.errors import EnvironmentFailure, UnreadableFile, UserError
from ugc_jax.media.presets import ClipSettings

CLIP = ClipSettings(question="What?")
ROWS = [
    {"clip": "a.mp4", "text": "Rain.", "day": datetime.date(2025, 1, 2), "thumb": b"\x00\x01"},
    {"clip": "b.mp4", "text": "Sun.", "day": None, "thumb": None},
]
NAMES = Columns(video="clip", caption="text")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """datasets, offline, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        yield pytest.importorskip("datasets")


def captions(rows):
    return [row.messages[-1]["content"] for row in rows if row.messages[-1]["role"] == "assistant"]


def test_a_folder_of_datasets(datasets, tmp_path):
    folder = tmp_path / "clips"
    datasets.Dataset.from_list(ROWS[:1] * 2).save_to_disk(folder)
    rows = read_manifest(folder, CLIP, columns=NAMES)
    assert [row.id for row in rows] == ["clips[0]", "clips[1]"]
    assert rows[0].media == [str(folder / "a.mp4")]
    assert captions(rows) == ["Rain."] * 2
    assert rows[0].extra == {"day": "2025-01-02", "thumb": "<2 bytes>"}
    (row, _) = read_manifest(folder, CLIP, media=tmp_path, columns=NAMES)
    assert row.media == [str(tmp_path / "a.mp4")]
    with pytest.raises(UserError, match="^split: .*clips has no splits; leave it out$"):
        read_manifest(folder, CLIP, columns=NAMES, split="train")


def test_splits(datasets, tmp_path):
    folder = tmp_path / "clips"
    parts = {name: datasets.Dataset.from_list([ROWS[0] | {"text": name}]) for name in ("x", "y")}
    datasets.DatasetDict(parts).save_to_disk(folder)
    assert captions(read_manifest(folder, CLIP, columns=NAMES, split="y")) == ["y"]
    with pytest.raises(UserError, match=r"split is not given; .*clips has x, y: choose one"):
        read_manifest(folder, CLIP, columns=NAMES)
    with pytest.raises(UserError, match=r"split is z; .*clips has x, y"):
        read_manifest(folder, CLIP, columns=NAMES, split="z")


def contents(rows, folder):
    """The bytes that are read for each medium of rows."""
    found = []
    for row in rows:
        for path in row.media:
            tars.copy(tars.locate(path), folder / "copy")
            found.append((folder / "copy").read_bytes())
    return found


def test_videos_are_not_decoded_and_embedded_ones_are_read_at_their_places(datasets, tmp_path):
    feature = datasets.Video()
    (tmp_path / "a.mp4").write_bytes(b"no video: nothing decodes it")
    data = datasets.Dataset.from_dict({"video": [str(tmp_path / "a.mp4")], "caption": ["A"]})
    data = data.cast_column("video", feature)
    ((_, row),) = tables._rows(data, "set")
    assert row == {"video": {"path": str(tmp_path / "a.mp4"), "bytes": None}, "caption": "A"}
    data.save_to_disk(tmp_path / "set")  # with their bytes
    rows = read_manifest(tmp_path / "set", CLIP)
    assert rows[0].media[0].startswith(f"{tmp_path}/set/data-00000-of-00001.arrow/")
    assert rows[0].media[0].endswith("/a.mp4")
    assert contents(rows, tmp_path) == [b"no video: nothing decodes it"]
    # as the bytes of a clip that does not decode, and that did not change since
    assert extract._identity(rows[0].media)[0][0] == len(b"no video: nothing decodes it")
    (tmp_path / "set/data-00000-of-00001.arrow").write_bytes(b"")
    with pytest.raises(UnreadableFile, match="arrow: is cut off"):
        contents(rows, tmp_path)


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_lists_of_embedded_files_and_columns_of_bytes(datasets, tmp_path, form):
    """Several batches, nulls, names that are absent or have folders, an order of its own."""
    shown = [
        {"images": [{"path": "x/0.png", "bytes": b"zero"}, {"path": None, "bytes": b"one"}]},
        {"images": [{"path": None, "bytes": b"more"}]},
        {"images": [{"path": "2.png", "bytes": b"t" * 5000}]},
    ]
    rows = [
        {"video": b"clip %d" % number, "thumb": b"\0", "caption": str(number)} | shown[number % 3]
        for number in range(2500)
    ]
    images = datasets.List(datasets.Image(decode=False))
    names = ("video", "thumb", "caption", "images")
    kinds = [*map(datasets.Value, ("binary", "binary", "string")), images]
    features = datasets.Features(dict(zip(names, kinds, strict=True)))
    data = datasets.Dataset.from_list(rows, features=features)
    path = tmp_path / "set"
    if form == "saved":
        data.save_to_disk(path, num_shards=2)
    else:
        path = path.with_suffix(".parquet")
        data.to_parquet(path)
    read = read_manifest(path, CLIP, columns=Columns(drop=("images",)))
    assert [row.extra["thumb"] for row in read[:2]] == ["<1 bytes>"] * 2
    some = [*range(0, 2500, 100), 2499]
    assert contents([read[number] for number in some], tmp_path) == [
        rows[number]["video"] for number in some
    ]
    read = read_manifest(path, CLIP, columns=Columns(drop=("video",)))
    assert [os.path.basename(name) for row in read[:3] for name in row.media] == [
        "0.png", "clip", "clip", "2.png",
    ]  # fmt: skip
    assert contents([*read[:3], read[2499]], tmp_path) == [
        b"zero", b"one", b"more", b"t" * 5000, b"zero", b"one",
    ]  # fmt: skip
    if form == "saved":
        moved = datasets.load_from_disk(path).select([7, 3])
        ((_, first), (_, second)) = tables._rows(moved, "set", {"video"})
        places = [first["video"], second["video"]]
        assert places == [read_manifest(path, CLIP, columns=Columns(drop=("images",)))[n].media[0]
                          for n in (7, 3)]  # fmt: skip


def test_of_the_hub(datasets, monkeypatch):
    asked = []

    def load_dataset(name, subset, revision):
        asked.append((name, subset, revision))
        if name == "ann/none":
            raise FileNotFoundError("Dataset 'ann/none' doesn't exist")
        return datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS[:1]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (row,) = read_manifest("ann/clips", CLIP, columns=NAMES, media="/media", subset="small")
    assert (row.id, row.media) == ("ann/clips[0]", ["/media/a.mp4"])
    read_manifest("hf://datasets/ann/clips@v1.0", CLIP, columns=NAMES, split="train")
    assert asked == [("ann/clips", "small", None), ("ann/clips", None, "v1.0")]
    with pytest.raises(UserError, match="ann/none: datasets cannot read it .*; check the name"):
        read_manifest("ann/none", CLIP)


@pytest.mark.parametrize("path", ["clips/train.jsonl", "a/b/c", "gs://b/a", "train", "/abs/olute"])
def test_names_that_are_none_of_the_hub(path):
    assert tables.hub_id(path) is None


def test_an_existing_path_is_none_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ann/clips").mkdir(parents=True)
    assert tables.hub_id("ann/clips") is None
    assert tables.hub_id("ann/others") == ("ann/others", None)


def test_parquet(datasets, tmp_path, bucket):  # noqa: F811
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(path)
    rows = read_manifest(path, CLIP, columns=NAMES)
    assert [row.id for row in rows] == ["a.parquet[0]", "a.parquet[1]"]
    assert [row.media for row in rows] == [[str(tmp_path / f"{name}.mp4")] for name in "ab"]
    bucket.pipe_file("s3://b/sets/a.parquet", path.read_bytes())
    rows = read_manifest("s3://b/sets/a.parquet", CLIP, columns=NAMES)
    assert rows[0].media == ["s3://b/sets/a.mp4"]
    path.write_bytes(b"no Parquet")
    with pytest.raises(UserError, match="a.parquet: no Parquet file"):
        read_manifest(path, CLIP)


def test_without_datasets_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("ugc_jax.extras._is_there", lambda module: module != "datasets")
    line = r"a.parquet: reading it needs datasets, not installed; pip install 'ugc_jax\[datasets\]'"
    with pytest.raises(EnvironmentFailure, match=line):
        read_manifest(tmp_path / "a.parquet", CLIP)


def test_columns_of_any_manifest(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"clip": "a.mp4", "text": "A", "caption": "old"}\n')
    (row,) = read_manifest(tmp_path / "m.jsonl", CLIP, columns=NAMES)
    assert captions([row]) == ["A"]
    assert row.extra == {"source_caption": "old"}
    (tmp_path / "m.csv").write_text("clip,text\na.mp4,A\nb.mp4,B\n")
    rows = read_manifest(tmp_path / "m.csv", CLIP, columns=NAMES)
    assert captions(rows) == ["A", "B"]
    assert captions(read_rows([{"clip": "a.mp4", "text": "A"}], CLIP, columns=NAMES)) == ["A"]


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (Columns(video="film"), "columns.video: .*m.jsonl has no column film; its columns are cl"),
        (Columns(drop=("x",)), "columns.drop: .*m.jsonl has no column x; its columns are clip, te"),
    ],
)  # fmt: skip
def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path, columns, line):
    (tmp_path / "m.jsonl").write_text('{"clip": "a.mp4"}\n{"clip": "b.mp4", "text": "A"}\n')
    with pytest.raises(UserError, match=line):
        read_manifest(tmp_path / "m.jsonl", CLIP, columns=columns)


def test_subset_and_split_are_of_data_sets(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"video": "a.mp4"}\n')
    with pytest.raises(UserError, match="m.jsonl: is no data set of Hugging Face; leave subset"):
        read_manifest(tmp_path / "m.jsonl", CLIP, split="train")


def test_a_manifest_in_a_bucket(bucket):  # noqa: F811
    bucket.pipe_file("s3://b/sets/m.jsonl", b'{"video": "clips/a.mp4", "caption": "A"}\n')
    bucket.faults["m.jsonl"] = [TimeoutError()]
    (row,) = read_manifest("s3://b/sets/m.jsonl", CLIP)
    assert (row.id, row.media) == ("m.jsonl:1", ["s3://b/sets/clips/a.mp4"])
    (row,) = read_manifest("s3://b/sets/m.jsonl", CLIP, media="gs://c/")
    assert row.media == ["gs://c/clips/a.mp4"]
    with pytest.raises(UserError, match="s3://b/none.csv: no such file"):
        read_manifest("s3://b/none.csv", CLIP)
