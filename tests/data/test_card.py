"""The data card: what it says, what stays of it, and that only its date may differ."""

import json
import re

import pytest
from clips import write_clip
from etils import epath

from ugc_jax.data import card
from ugc_jax.data.card import CARD, END, write_card
from ugc_jax.data.extract import Extraction, run_local
from ugc_jax.data.manifest import read_manifest
from ugc_jax.data.records import Storage
from ugc_jax.data.removal import remove
from ugc_jax.data.workers import ReadingConfig
from ugc_jax.media.presets import ClipSettings, resolve

CLIP = resolve(ClipSettings(frames=2, min_pixels=784, max_pixels=4 * 784))


@pytest.fixture
def folder(tmp_path):
    """Records of two clips with sound and a silent one; two failed; origins of some."""
    columns = [
        {"path": "a.mp4", "caption": "A", "source": "https://x.org/1", "license": "CC-BY-4.0"},
        {"path": "b.mp4", "caption": "B", "source": "https://x.org/2", "license": "My | own"},
        {"path": "c.mp4", "solution": "C", "source": None},
        {"path": "missing.mp4"},
    ]
    for seed, name in enumerate("abc"):
        write_clip(
            tmp_path / f"{name}.mp4", seconds=2, fps=8, size=(64, 64), seed=seed, audio=seed < 2
        )
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, columns)))
    folder = epath.Path(tmp_path / "mine")
    extraction = Extraction(folder, read_manifest(tmp_path / "m.jsonl", CLIP), CLIP, Storage(), 3)
    list(run_local(extraction.prepare(), ReadingConfig(workers=1)))
    extraction.finish()
    return folder


def test_what_it_says(folder):
    yaml = pytest.importorskip("yaml")
    write_card(folder)
    text = (folder / CARD).read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == ["cc-by-4.0", "other"]
    assert head["size_categories"] == ["n<1K"]
    for row in (
        "| records | 3 in 2 files, ",
        "| with an answer | 2 (67%) |",
        "| with a solution | 1 (33%) |",
        "| files | 3, used 3 times |",
        "| with picture | 3 (100%) |",
        "| with sound | 2 (67%) |",
        "| rows that could not be read | 1 (`failures.jsonl`) |",
        "| removals | none |",
        "| x.org | 2 |\n| not given | 1 |",
        "| CC-BY-4.0 | 1 |\n| My \\| own | 1 |\n| not given | 1 |",
        "| `clip.frames` | 2 |",
    ):
        assert row in text
    assert re.search(r"\| sound \| 0.00 h; median 2.\d s, longest 2.\d s \|", text)


def test_settings_fill_gaps_and_are_kept(folder):
    write_card(folder, license="cc0-1.0", source="our studio")
    first = (folder / CARD).read_text()
    assert "| cc0-1.0 | 1 |" in first
    assert "| our studio | 1 |" in first
    remove([str(folder)], "m.jsonl:2")
    write_card(folder)
    second = (folder / CARD).read_text()
    assert "| our studio | 1 |" in second
    assert "My" not in second
    assert re.search(
        r"\| removed on \| what \|\n\|---\|---\|\n\| \d{4}-\d\d-\d\d \| 1 record \|", second
    )


def test_only_a_change_is_written_and_own_text_stays(folder, monkeypatch):
    write_card(folder)
    path = folder / CARD
    text = path.read_text().replace("card of 2", "card of 1")  # of a thousand years ago
    path.write_text(text + "Collected in spring.\n")
    write_card(folder)
    assert path.read_text() == text + "Collected in spring.\n"
    write_card(folder, license="mit")
    assert path.read_text().partition(END)[2].strip() == "Collected in spring."
    assert "card of 2" in path.read_text()
    path.write_text("# My own card")
    write_card(folder, license="apache-2.0")
    assert path.read_text() == "# My own card"
    assert card.BEGIN in text


def test_origins_are_cells_without_secrets_or_marks(folder):
    for source, cell in (
        ("https://me:secret@z.org:80/a?token=t", "z.org"),
        ("s3://bucket/a", "bucket"),
        ("http://[::1", "http://[::1"),  # no URL
        ("a\n| b", "a \\| b"),
        (END, END.replace("<", "&lt;")),
    ):
        write_card(folder, source=source)
        write_card(folder)
        text = (folder / CARD).read_text()
        assert f"| {cell} | 1 |" in text
        assert "secret" not in text
        assert text.endswith(f"{END}\n")
        assert text.count(END) == 1
