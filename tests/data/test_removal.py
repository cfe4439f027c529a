"""Removal: the record is gone from the disk, stays out, and a kill at any moment is made good."""

import json
import pickle
import shutil

import pytest
from clips import write_clip
from etils import epath

from ugc_jax.data import extract, pipeline, records, removal
from ugc_jax.data.extract import Extraction, run_local
from ugc_jax.data.manifest import read_manifest
from ugc_jax.data.pipeline import training
from ugc_jax.data.planning import DataConfig
from ugc_jax.data.records import RecordSource, Storage
from ugc_jax.data.removal import remove
from ugc_jax.data.workers import ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import tiny

CLIP = resolve(ClipSettings(frames=2, min_pixels=784, max_pixels=4 * 784))
NAMES = ["0", "1", "2", "3", "missing", "1", "0"]  # of the clips of the rows; the last is a copy


def write_manifest(folder, names, name="m.jsonl"):
    lines = []
    for number, clip in enumerate(names):
        turns = [
            {"role": "user", "content": "<video>What?"},
            {"role": "assistant", "content": f"Caption {0 if number == 6 else number}."},
        ]
        lines.append(json.dumps({"videos": [f"{clip}.mp4"], "messages": turns}))
    (folder / name).write_text("\n".join(lines))
    return folder / name


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    for seed in range(4):
        write_clip(folder / f"{seed}.mp4", seconds=0.5, fps=8, size=(64, 64), seed=seed)
    write_manifest(folder, NAMES)
    return folder


def run(manifest, out, **options):
    """Extract what is to do; returns (ids of the rows read, ids left out)."""
    rows = read_manifest(manifest, CLIP)
    extraction = Extraction(epath.Path(out), rows, CLIP, Storage(), 3)
    shards = extraction.prepare(**options)
    list(run_local(shards, ReadingConfig(workers=1)))
    extraction.finish(shards)
    return sum(shard.todo for shard in shards), sorted(extraction.left_out())


@pytest.fixture(scope="module")
def extracted(media, tmp_path_factory):
    out = tmp_path_factory.mktemp("records") / "out"
    run(media / "m.jsonl", out)
    return out


@pytest.fixture
def out(extracted, tmp_path):
    return shutil.copytree(extracted, tmp_path / "out")


def ids(folder):
    """The ids of all records; each can be read."""
    source = RecordSource(folder)
    for number in range(len(source)):
        source[number]
    return [entry.id.removeprefix("m.jsonl:") for entry in source.entries]


def content(folder):
    """{name: bytes} of all files but the list of removals."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "removed.jsonl"
    }


def unchanged(folder, other):
    """The names of the files that are the same in both."""
    one, two = content(folder), content(other)
    return {name for name in one.keys() & two.keys() if one[name] == two[name]}


def test_a_record_is_gone_from_the_disk_and_the_others_are_as_they_were(out, extracted):
    before = {entry.id: entry for entry in RecordSource(out).entries}
    assert remove([str(out)], "m.jsonl:3")[str(out)][:4] == (["m.jsonl:3"], 5, 1, [])
    assert ids(out) == ["1", "2", "4", "6", "7"]
    assert all(entry == before[entry.id] for entry in RecordSource(out).entries)
    for name, data in content(out).items():
        assert b"Caption 2." not in data, name
        assert b"m.jsonl:3" not in data, name
    same = [path.name for path in out.glob("clips-*") if path.name in unchanged(out, extracted)]
    assert sorted(name[-14:] for name in same) == ["00000-of-00003", "00002-of-00003"]
    assert content(out).keys() == content(extracted).keys()
    (line,) = (out / "removed.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "m.jsonl:3"
    assert "Caption" not in line


def test_an_id_takes_its_exact_copies_and_names_other_records_of_the_clip(out, media):
    done = remove([str(out)], "m.jsonl:1, m.jsonl:2")[str(out)]
    assert done.removed == ["m.jsonl:1", "m.jsonl:2", "m.jsonl:7"]
    assert done.also == {str(media / "1.mp4"): ["m.jsonl:6"]}
    assert ids(out) == ["3", "4", "6"]


def test_a_path_takes_all_records_of_the_clip(out, media, monkeypatch):
    monkeypatch.chdir(media)
    assert remove([str(out)], "1.mp4")[str(out)].removed == ["m.jsonl:2", "m.jsonl:6"]
    assert remove([str(out)], str(media / "missing.mp4"))[str(out)].removed == ["m.jsonl:5"]
    assert (out / "failures.jsonl").read_text() == ""
    assert ids(out) == ["1", "3", "4", "7"]
    assert run(media / "m.jsonl", out) == (0, ["m.jsonl:2", "m.jsonl:5", "m.jsonl:6"])


def test_all_records_of_a_shard_may_go(out):
    remove([str(out)], "m.jsonl:1,m.jsonl:2")
    assert remove([str(out)], "m.jsonl:3,m.jsonl:4,m.jsonl:6")[str(out)].records == 0
    assert ids(out) == []


def test_a_further_extraction_does_not_bring_it_back(out, media):
    remove([str(out)], "m.jsonl:3")
    before = content(out)
    assert run(media / "m.jsonl", out) == (1, ["m.jsonl:3"])  # the missing file is tried again
    assert content(out) == before
    assert run(media / "m.jsonl", out, overwrite=True) == (6, ["m.jsonl:3"])
    assert ids(out) == ["1", "2", "4", "6", "7"]
    for name in ("index.jsonl", *(path.name for path in out.glob("clips-*"))):
        assert (out / name).read_bytes() == before[name]
    # In a manifest whose lines have moved, it is found by its clip and texts.
    moved = write_manifest(media, ["3", *NAMES], "moved.jsonl")
    text = moved.read_text().replace("Caption 3.", "x").replace("Caption 2.", "Caption 99.")
    moved.write_text(text)
    run(moved, out, overwrite=True)
    assert len(RecordSource(out)) == 7
    moved.write_text(text.replace("x", "Caption 2."))
    assert run(moved, out, overwrite=True)[1] == ["moved.jsonl:4"]


def test_without_its_line_in_the_list_it_is_extracted_again(out, media, extracted):
    remove([str(out)], "m.jsonl:3")
    remove([str(out)], "m.jsonl:4")
    first, second = (out / "removed.jsonl").read_text().splitlines()
    (out / "removed.jsonl").write_text(second + "\n")
    assert run(media / "m.jsonl", out) == (2, ["m.jsonl:4"])
    assert ids(out) == ["1", "2", "3", "6", "7"]
    (out / "removed.jsonl").unlink()
    run(media / "m.jsonl", out)
    assert content(out) == content(extracted)
    assert json.loads(first)["id"] == "m.jsonl:3"


def test_a_line_added_by_hand_is_heeded(out, media, tmp_path):
    """So is a removal that was killed as soon as it stood in the list."""
    other = shutil.copytree(out, tmp_path / "other")
    remove([str(other)], "m.jsonl:3")
    shutil.copy(other / "removed.jsonl", out)
    run(media / "m.jsonl", out)
    assert content(out) == content(other)


def kill(monkeypatch, place, name, count):
    """Raise KeyboardInterrupt in place of call number `count` of a function; True once it has."""
    original, calls = getattr(place, name), []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(place, name, killed)


@pytest.mark.parametrize("resume", ["remove", "extract"])
@pytest.mark.parametrize(
    ("place", "name", "count"),
    [
        (removal, "write_shards", 1),
        (extract, "_write_report", 1),
        (extract, "_write_report", 2),
        (extract.os, "replace", 3),
        (extract.epath.Path("/").__class__, "replace", 1),
        (extract.epath.Path("/").__class__, "replace", 2),
        (extract.epath.Path("/").__class__, "replace", 3),
        (removal, "write_folder", 1),
        (records, "write_index", 1),
        (removal, "settle", 1),
    ],
)
def test_a_kill_at_any_moment_is_made_good(
    place, name, count, resume, out, media, tmp_path, monkeypatch
):
    wanted = shutil.copytree(out, tmp_path / "wanted")
    remove([str(wanted)], "m.jsonl:1,m.jsonl:4")
    with monkeypatch.context() as patch:
        kill(patch, place, name, count)
        try:
            remove([str(out)], "m.jsonl:1,m.jsonl:4")
        except KeyboardInterrupt:
            (out / "index.jsonl.1.new").write_text("Caption 0.")  # as a kill of a write leaves it
    if (out / "removed.jsonl").exists():
        remove([str(out)], "m.jsonl:1") if resume == "remove" else run(media / "m.jsonl", out)
    remove([str(out)], "m.jsonl:1,m.jsonl:4")
    assert content(out) == content(wanted)
    assert ids(out) == ["2", "3", "6"]


def test_several_folders(out, tmp_path):
    other = shutil.copytree(out, tmp_path / "other")
    remove([str(other)], "m.jsonl:1")
    done = remove([str(out), str(other)], "m.jsonl:1")
    assert [totals.removed for totals in done.values()] == [["m.jsonl:1", "m.jsonl:7"], []]
    assert done[str(other)].before == ["m.jsonl:1"]
    assert ids(out) == ids(other)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ("m.jsonl:11", r"out: has no record or clip 'm.jsonl:11'; did you mean m.jsonl:\d or"),
        ("elsewhere/2.mp4", r"'elsewhere/2.mp4'; did you mean /.*/2.mp4\?"),
        ("", "remove: '' names nothing; give ids of records or paths of clips"),
        (" ,", "names nothing"),
        ("m.jsonl:1,what", "no record or clip 'what'; index.jsonl has the ids and the paths"),
    ],
)
def test_an_unknown_id_changes_nothing(names, line, out):
    before = content(out)
    with pytest.raises(UserError, match=line) as caught:
        remove([str(out)], names)
    assert "\n" not in str(caught.value)
    assert content(out) == before
    assert not (out / "removed.jsonl").exists()


def test_a_folder_that_is_no_extraction_or_an_incomplete_one(out, tmp_path):
    with pytest.raises(UserError, match=r"extraction.json: no such file; name a folder that"):
        remove([str(tmp_path)], "a")
    (out / "shards" / "00001-of-00003.json").unlink()
    with pytest.raises(UserError, match="not a complete extraction; run ugc-jax extract again"):
        remove([str(out)], "m.jsonl:1")
    (out / "removed.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(UserError, match=r"removed.jsonl:1: is no removal; correct it"):
        extract.read_removals(epath.Path(out))


def test_records_of_beam_are_removed_as_others(media, tmp_path):
    pytest.importorskip("apache_beam")
    rows = read_manifest(media / "m.jsonl", CLIP)
    for name in ("beam", "local"):
        extraction = Extraction(epath.Path(tmp_path / name), rows, CLIP, Storage(), 3)
        shards = extraction.prepare()
        if name == "beam":
            options = "--direct_num_workers=1"
            extract.run_beam(shards, "DirectRunner", options, ReadingConfig())
        else:
            list(run_local(shards, ReadingConfig(workers=1)))
        extraction.finish()
        remove([str(tmp_path / name)], "m.jsonl:3")
    assert content(tmp_path / "beam") == content(tmp_path / "local")


def test_a_run_on_other_records_is_refused_with_the_reason(out, tokenizer):
    def batches():
        data = DataConfig(train=str(out), batch_size=2, tokens=600, workers=0)
        return iter(training(data, tokenizer, tiny(), range(2)))

    state = batches().get_state()
    batches().set_state(state)
    remove([str(out)], "m.jsonl:3")
    with pytest.raises(UserError, match=f"of other data: records were removed from {out}; begin"):
        batches().set_state(state)
    batches().set_state(batches().get_state())
    assert pipeline.REMOVED == "removed.jsonl"


def test_a_worker_of_a_run_takes_no_records_of_other_numbers(out):
    """A source travels to workers by name, and a removal has moved the records since."""
    source = pickle.dumps(RecordSource(str(out)))
    assert len(pickle.loads(source)) == len(ids(out))
    remove([str(out)], "m.jsonl:3")
    with pytest.raises(UserError, match="removed or written again while they were used"):
        pickle.loads(source)
