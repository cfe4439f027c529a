"""ugc_jax.jobs.select: from labels to rows to train on, and the page."""

import json
import re
import shutil

import pytest
from clips import random_scene, write_clip

from ugc_jax import cli
from ugc_jax.errors import UserError
from ugc_jax.generate.captioner import Captioner

SIZES = ("--fps", "2", "--max_pixels", "12544", "--workers", "1", "--batch_size", "2")
TONES = ("Positive", "Positive", "Positive", "Neutral", "Negative", "Positive")


def label(tone):
    sound = {
        "voice_source": "None",
        "tone": tone,
        "music": True,
        "sounds": [],
        "caption": "A bell.",
    }
    return {"sound": sound}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six clips, a copy of the second, one that is broken, and their labels."""
    folder = tmp_path_factory.mktemp("select")
    (folder / "clips").mkdir()
    rows = []
    for number, tone in enumerate(TONES):
        write_clip(folder / f"clips/{number}.mp4", scene=random_scene(number), seconds=2.0)
        rows.append(_row(f"clips/{number}.mp4", tone))
    shutil.copy(folder / "clips/1.mp4", folder / "clips/copy.mp4")
    (folder / "clips/broken.mp4").write_bytes(b"no video")
    rows += [_row("clips/copy.mp4", "Positive"), _row("clips/broken.mp4", "Neutral")]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _row(path, tone):
    messages = [
        {"role": "user", "content": "<video>What?"},
        {"role": "assistant", "content": f"<b>{tone}</b> clip."},
    ]
    return {"videos": [path], "messages": messages, "label": label(tone), "cost": 0.1}


@pytest.fixture
def select(folder, tiny_checkpoint, tiny_captioner, monkeypatch):
    """Run the job with the captioner that is compiled already; counts how often it is loaded."""
    loaded = []

    def load(*_, **__):
        loaded.append(1)
        return tiny_captioner

    monkeypatch.setattr(Captioner, "from_pretrained", load)
    monkeypatch.setattr(cli, "set_up_logging", lambda *_: None)

    def run(*words) -> int:
        model = ["--checkpoint", str(tiny_checkpoint), *SIZES]
        return cli.run(["select", str(folder / "labels.jsonl"), *model, *map(str, words)])

    run.loaded = loaded
    return run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_chosen_rows_are_the_labels_own(select, folder, capsys):
    output = folder / "train.jsonl"
    assert select("--count", 4, "--output", output) == 0
    rows, labels = lines(output), lines(folder / "labels.jsonl")
    assert len(rows) == 4
    assert all(row in labels for row in rows)
    paths = [row["videos"][0] for row in rows]
    assert len(set(paths)) == 4
    assert not {"clips/copy.mp4", "clips/broken.mp4"} & set(paths)
    said = capsys.readouterr()
    assert "4 of 8 rows, 1 near-duplicates left out, 1 clips not readable" in said.out
    assert "broken.mp4" in said.err
    page = (folder / "train.html").read_text()
    assert "&lt;b&gt;Positive&lt;/b&gt; clip." in page
    assert "<b>" not in page
    assert "script" not in page
    assert "broken.mp4" in page
    duplicates = page[page.index('id="duplicates-title"') : page.index('id="others-title"')]
    assert re.search(r"copy.*?1 <span class=\"muted\">1\.00", duplicates, re.DOTALL)
    assert page.count('<img class="strip"') == 4 + 2  # of the duplicate and what it repeats


def test_another_count_needs_no_model(select, folder):
    shutil.rmtree(folder / "again", ignore_errors=True)
    output, stored = folder / "again/train.jsonl", folder / "again/e.jsonl"
    words = ("--embeddings", stored, "--output", output, "--pictures", 0)
    (folder / "clips/broken.mp4").rename(folder / "broken")
    try:
        select("--count", 3, *words)
        assert len(select.loaded) == 1
        first = lines(output)
        # a killed run: two clips are known, and a line is half written
        text = stored.read_text()
        stored.write_text("".join(text.splitlines(keepends=True)[:3]) + '{"clip": "x')
        select("--count", 3, *words)
        assert len(select.loaded) == 2
        assert lines(output) == first
        assert sorted(stored.read_text().splitlines()) == sorted(text.splitlines())
    finally:
        (folder / "broken").rename(folder / "clips/broken.mp4")
    # in another folder the rows name their clips from there
    assert [row["videos"][0][:3] for row in first] == ["../"] * 3


def test_quotas(select, folder, capsys):
    output = folder / "quotas.jsonl"
    words = ("--output", output, "--pictures", 0, "--embeddings", folder / "e.jsonl")
    assert select("--count", 3, *words, "--quota", "tone=Negative:1,tone=Neutral:2-") == 0
    tones = [row["label"]["sound"]["tone"] for row in lines(output)]
    assert sorted(tones) == ["Negative", "Neutral", "Positive"]
    assert "quota tone=Neutral: 1 rows instead of 2; 1 clips have it\n" in capsys.readouterr().err
    page = (folder / "quotas.html").read_text()
    assert "quota tone=Neutral: 1 rows instead of 2" in page
    (row,) = re.findall(r"<tr><td>tone=Neutral</td>.*?</tr>", page)
    assert re.findall(r">([^<]+)<", row) == ["tone=Neutral", "1", "1", "at least 2"]


def test_mistakes_are_said_in_one_line(select, folder, tmp_path):
    with pytest.raises(UserError, match="mood is no field of a label"):
        select("--count", 3, "--output", tmp_path / "x.jsonl", "--quota", "mood=Good:1")
    with pytest.raises(UserError, match="is another one's; choose another"):
        select("--count", 3, "--output", folder / "labels.jsonl")
    with pytest.raises(UserError, match="count is 0; use 1 or more"):
        select("--count", 0, "--output", tmp_path / "x.jsonl")
    other = tmp_path / "other.jsonl"
    other.write_text("{}\n")
    with pytest.raises(UserError, match="has no embeddings; name another file"):
        select("--count", 3, "--output", tmp_path / "x.jsonl", "--embeddings", other)


def test_rows_without_a_label(select, folder, tmp_path):
    rows = [
        {key: row[key] for key in ("videos", "messages")} for row in lines(folder / "labels.jsonl")
    ]
    path = folder / "plain.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = ["select", str(path), "--count", "2", "--output", str(tmp_path / "x.jsonl")]
    with pytest.raises(UserError, match="row 1: has no label, which quotas are about"):
        cli.run([*run, "--quota", "tone=Neutral:1"])
    rows[1]["label"] = {"sound": {"tone": None}}
    rows[0]["label"] = label("Neutral")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="row 2: label: sound.tone is None, of which no quota"):
        cli.run([*run, "--quota", "tone=Neutral:1"])
    path.write_text(json.dumps({"path": "a.mp4", "caption": "A."}) + "\n")
    with pytest.raises(UserError, match="row 1: videos is not a list of one path"):
        cli.run(run)
