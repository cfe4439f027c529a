"""launch/summary.py: the scores of captions of the world, and their table."""

import runpy
from pathlib import Path

import pytest

from ugc_jax.toy import world

SUMMARY = runpy.run_path(str(Path(__file__).resolve().parents[1] / "launch" / "summary.py"))


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
