"""ugc_jax.report.published: the rows agree with themselves, and protocols are told apart."""

import pytest

from ugc_jax.evals.scores import RELEASED
from ugc_jax.report import published

ROWS = {row.model: row for row in published.ROWS}


@pytest.mark.parametrize("row", published.ROWS, ids=lambda row: row.model)
def test_means_are_those_of_their_columns(row):
    """Columns are rounded to 0.1, and one mean is cut off instead of rounded."""
    scores = {name: float(text) for name, text in row.scores.items()}
    columns = [scores.get(f"final_caption.{name}") for name in ("audio", "visual", "details")]
    if None in columns:
        assert list(scores) == ["final_caption"]
    else:
        assert sum(columns) / 3 == pytest.approx(scores["final_caption"], abs=0.09)
    if "average" in scores:
        single = [scores[name] for name in ("voice_source", "tone", "background", "objects")]
        mean = sum([*single, 100 * scores["ocr"], *columns]) / 8
        assert mean == pytest.approx(scores["average"], abs=0.09)


def test_the_paper():
    assert ROWS["Qwen2.5-Omni-3B"].scores["final_caption"] == "52.18"
    assert ROWS["Gemma-3n-E2B"].scores["ocr"] == ".095"
    assert ROWS["UGC-VideoCaptioner-3B (1k SFT + 1k RL)"].scores["final_caption"] == "60.01"
    assert ROWS["Qwen2.5-Omni-3B + 1k SFT"].protocol == "32 frames"
    assert ROWS["Gemma-3n-E2B"].protocol == ""
    assert ROWS["Gemma-3n-E2B"].normalisation == "cleaned"
    assert ROWS["AVoCaDO-7B"].protocol == "arXiv 2510.10395"


def test_differences():
    assert published.differences("final_caption", RELEASED) == []
    assert published.differences("final_caption", RELEASED | {"temperature": 0.0}) == [
        "temperature 0 instead of 1"
    ]
    assert published.differences("final_caption", {}) == [
        "judge unknown instead of gpt-4o-2024-08-06",
        "prompt unknown instead of released",
        "temperature unknown instead of 1",
    ]
    assert published.differences("objects", RELEASED) == ["temperature 1 instead of 0"]
    assert published.differences("tone", {}) == []
