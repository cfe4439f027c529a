"""launch/summary.py and quickstart_seeds.py: scores of captions of the world, and their tables."""

import runpy
import sys
from pathlib import Path

import pytest

from ugc_jax import files
from ugc_jax.toy import world

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
SUMMARY = runpy.run_path(str(LAUNCH / "summary.py"))


@pytest.fixture(scope="module")
def clips():
    """[(scene, attributes, caption)] of the test split."""
    return [world.make_clip("test", number) for number in range(300)]


def test_scores_of_right_wrong_and_constant_captions(clips):
    attributes = [row for _, row, _ in clips]
    captions = [caption for *_, caption in clips]
    assert set(SUMMARY["score"](captions, attributes).values()) == {1.0}
    assert set(SUMMARY["score"]([""] * 300, attributes).values()) == {0.0}
    constant, chance = (
        SUMMARY["score"](captions[:1] * 300, attributes),
        SUMMARY["chance"](attributes),
    )
    for name in world.VALUES:
        assert 0 < constant[name] <= chance[name]
    assert chance["visual"] < 0.3
    assert chance["audio"] < 0.4
    assert chance["text"] < 0.1
    assert chance["cross"] <= 0.51
    half = SUMMARY["score"](captions[:150] + [""] * 150, attributes)
    assert half["visual"] == half["shape"] == half["all"] == 0.5


def test_table_lists_groups_and_attributes(clips):
    attributes = [row for _, row, _ in clips]
    captions = [caption for *_, caption in clips]
    text = SUMMARY["table"](
        {"after": SUMMARY["score"](captions, attributes), "chance": SUMMARY["chance"](attributes)}
    )
    rows = [line.split() for line in text.splitlines()]
    assert rows[0] == ["after", "chance"]
    assert [row[0] for row in rows[1:6]] == ["visual", "shape", "colour", "motion", "background"]
    assert rows[-1] == ["all", "right", "100.0%"]
    assert all(row[1] == "100.0%" for row in rows[1:-1])


def test_table_of_seeds(clips, tmp_path, monkeypatch):
    """Clips without a caption count as wrong, and a seed that is not complete has no row."""
    monkeypatch.setattr(sys, "path", [str(LAUNCH), *sys.path])
    seeds = runpy.run_path(str(LAUNCH / "quickstart_seeds.py"))
    names = [f"{number:06d}.mp4" for number in range(4)]
    attributes = [
        {"videos": [f"test/{name}"], "attributes": clips[n][1]} for n, name in enumerate(names)
    ]
    files.write_text(tmp_path / "test.jsonl", files.to_lines(attributes))
    right = [{"video": name, "caption": clips[n][2]} for n, name in enumerate(names)]
    files.write_text(tmp_path / "seed0/sft.jsonl", files.to_lines(right[:3]))
    files.write_text(tmp_path / "seed0/grpo.jsonl", files.to_lines(right))
    files.write_text(tmp_path / "seed1/sft.jsonl", files.to_lines(right))
    seeds["main"](tmp_path / "test.jsonl", tmp_path)
    head, _, *rows = (tmp_path / "table.md").read_text().splitlines()
    assert head == "|  | visual | audio | text | cross | all | reward | words |"
    assert [row.rpartition(" | ")[0] for row in rows] == [
        "| seed 0" + " | 75.0 → 100.0" * 5 + " | 0.750 → 1.000"
    ]
