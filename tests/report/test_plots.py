"""ugc_jax.report.plots: SVG that holds what it should, in the page's colours and fonts."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from ugc_jax.report import plots

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '))


def texts(svg: str) -> list[str]:
    return ["".join(text.itertext()).strip() for text in parsed(svg).iter(f"{SVG}text")]


@pytest.fixture(scope="module")
def pictures() -> dict[str, str]:
    """One of each plot."""
    rows = [
        plots.Bars("Tone", [40.0, None, 75.5], [[30, 50], None, [75.0, 76.0]], [62.6, 64.1]),
        plots.Bars("OCR × 100", [10.0, 20.0, None], [None, None, None], []),
    ]
    return {
        "bars": plots.score_bars(rows, "Scores of <a> & b"),
        "lengths": plots.length_histogram([[1, 2, 2], None, []], [2, 3], "Words"),
        "confusion": plots.confusion_matrix(
            ["In Video", "$No$"], ["In Video", "$No$", "other"], [[7, 1, 0], [0, 0, 0]], "Table"
        ),
    }


def test_they_stand_among_others_in_a_page(pictures):
    ids = []
    for svg in pictures.values():
        root = parsed(svg)
        assert root.get("role") == "img"
        assert root.get("viewBox")
        assert root.get("width") is None  # as wide as the page lets it be
        assert "<style" not in svg
        assert "<?xml" not in svg
        links = re.findall(r'href="([^"]*)"', svg)
        assert all(link.startswith("#") for link in links)
        ids += re.findall(r' id="([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    assert parsed(pictures["bars"]).get("aria-label") == "Scores of <a> & b"


def test_colours_and_fonts_are_the_pages(pictures):
    for svg in pictures.values():
        assert set(re.findall(r"(?:fill|stroke): ([^;\"]*)", svg)) <= {
            "none", "var(--ink)", "var(--muted)", "var(--line)", "var(--accent)",
            *(f"var(--series-{number})" for number in range(1, plots.SERIES + 1)),
        }  # fmt: skip
        assert set(re.findall(r"font-family: ([^;\"]*)", svg)) == {"inherit"}


def test_bars(pictures):
    """A bar for each score that is known, in its result's colour; a circle for a published one."""
    shown = texts(pictures["bars"])
    assert {"Tone", "OCR × 100", "40.0", "75.5", "10.0", "20.0"} <= set(shown)
    bars = [
        re.search(r"fill: var\(--series-(\d)\)", svg) for svg in pictures["bars"].split("<path")
    ]
    assert [found[1] for found in bars if found] == ["1", "3", "1", "2"]
    assert len(re.findall(r"<use [^>]*stroke: var\(--muted\)", pictures["bars"])) == 2


def test_more_results_than_colours():
    row = plots.Bars("Tone", [50.0] * 7, [None] * 7, [])
    svg = plots.score_bars([row], "many")
    assert svg.count("fill: var(--series-1)") == 2


def test_confusion(pictures):
    shown = texts(pictures["confusion"])
    assert [text for text in shown if text.isdigit()] == ["7", "1", "0", "0", "0", "0"]
    assert "$No$" in shown  # no formula


def test_lengths_fall_into_equal_bins():
    """As many texts of each length are a flat block, also where there are more than 40 lengths."""
    svg = plots.length_histogram([None], range(102), "Words")
    (block,) = re.findall(r'<path d="([^"]*)"[^>]*style="fill: var\(--line\)', svg)
    assert len(set(re.findall(r"[ML] \S+ (\S+)", block))) == 2  # its top and its foot


def test_lengths_of_one_word():
    assert texts(plots.length_histogram([[0, 0]], [], "Words"))
