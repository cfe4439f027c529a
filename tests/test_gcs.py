"""gs:// through the real gcsfs, which asks a store on this machine (fake_gcs.py)."""

import json
from types import SimpleNamespace

import pytest
from etils import epath
from fake_gcs import server  # noqa: F401 (fixture)

from ugc_jax import cli, remote
from ugc_jax.data.records import RecordSource
from ugc_jax.errors import EnvironmentFailure, UnreadableFile

CONTENT = bytes(range(250)) * 40


@pytest.fixture
def store(server, monkeypatch):  # noqa: F811
    """The store with d/a.bin in its bucket b; neither gcsfs nor we pause before further tries."""
    retry = pytest.importorskip("gcsfs.retry")

    async def no_pause(seconds):
        pass

    monkeypatch.setattr(retry, "asyncio", SimpleNamespace(sleep=no_pause))
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.0)
    server.objects["b", "d/a.bin"] = CONTENT
    server.objects["b", "d/below/c.bin"] = b"c"
    return server


def test_files_are_found_and_read(store, tmp_path):
    url = "gs://b/d/a.bin"
    assert remote.size(url) == len(CONTENT)
    assert remote.sizes("gs://b/d") == {"a.bin": len(CONTENT)}
    assert remote.read_bytes(url, 5, 9) == CONTENT[5:9]
    remote.fetch(url, tmp_path / "a", 7, 3000)
    assert (tmp_path / "a").read_bytes() == CONTENT[7:3007]


def test_what_passes_is_tried_again_and_what_lasts_is_one_line(store, tmp_path, caplog):
    url = "gs://b/d/a.bin"
    store.faults["a.bin"] = [503, 503]
    assert remote.read_bytes(url) == CONTENT
    with pytest.raises(UnreadableFile, match="^gs://b/none: no such file; check its name"):
        remote.read_bytes("gs://b/none")
    for status, kind, line in (
        (
            403,
            UnreadableFile,
            r"access is refused \(Forbidden: .* ann@example.com does not .*; log",
        ),
        (401, EnvironmentFailure, r"no valid credentials for gs:// \(Anonymous caller .*; log in"),
    ):
        store.faults["a.bin"], before = [status] * 9, len(store.asked)
        with pytest.raises(kind, match=f"^{url}: {line}"):
            remote.read_bytes(url)
        assert len(store.asked) == before + 1
        with pytest.raises(EnvironmentFailure, match=f"^{url}: {line}"):
            remote.check_access([url])
    # a traceback of the client's is not for users
    assert not [one for one in caplog.records if one.exc_info and one.name == "gcsfs"]


def test_folders_as_our_files_are_written(store):
    """What etils makes of a folder in a bucket: it is there with its files, and moves with them."""
    folder = epath.Path("gs://b/run")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.json").write_text("1")
    (folder / "b.bin").write_bytes(CONTENT * 700)  # 7 MB: in parts
    (folder / "a.json").replace(folder / "c.json")
    assert store.names("b", "run") == ["run/b.bin", "run/c.json"]
    assert store.objects["b", "run/b.bin"] == CONTENT * 700
    assert sorted(one.name for one in folder.iterdir()) == ["b.bin", "c.json"]
    assert (folder / "c.json").stat().length == 1
    assert not (folder / "a.json").exists()
    store.objects["b", "run/other"] = b"of another process, since the folder was listed"
    assert (folder / "other").exists()
    assert len([*folder.iterdir()]) == 3
    folder.rmtree()
    assert not folder.exists()
    assert store.names("b", "run") == []


def test_clips_and_records_of_a_bucket(store, clips, tmp_path, capsys):
    """extract reads a manifest and clips at gs://, writes records there; they are read from there.

    Run again over what a killed one left, it keeps what is whole.
    """
    names = ("a.mp4", "b.mp4", "none.mp4")
    for name in names[:2]:
        store.objects["b", f"in/clips/{name}"] = (clips / name).read_bytes()
    rows = [{"video": f"clips/{name}", "caption": name} for name in names]
    store.objects["b", "in/m.jsonl"] = "\n".join(map(json.dumps, rows)).encode()
    words = ["extract", "--output=gs://b/out", "--workers=1", "--frames=2", "--max_pixels=3136"]
    words += ["--max_failures=0.5", "--shard_clips=2", "gs://b/in/m.jsonl"]
    store.faults["a.mp4"] = [503]
    assert cli.run(words) == 0
    assert "gs://b/in/clips/none.mp4: no such file" in capsys.readouterr().err
    source = RecordSource("gs://b/out", cache=str(tmp_path / "cache"))
    assert [entry.id for entry in source.entries] == ["m.jsonl:1", "m.jsonl:2"]
    (media,) = source[1][1]
    assert media.vision.patches.any()
    written = store.names("b", "out")
    for name in ("out/shards.json", "out/index.jsonl"):
        del store.objects["b", name]
    assert cli.run(words) == 0
    assert store.names("b", "out") == written
    assert "2 kept from before" in capsys.readouterr().err
