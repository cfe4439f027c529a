"""ugc_jax.evals.ocr: both normalisations as published, whatever a model says."""

import json
from statistics import fmean

import pytest

from ugc_jax.evals.ocr import bleu_1, scores


def score(prediction, normalisation, reference=("Hello World", "it's on")):
    found = scores(list(reference), prediction, normalisation)
    return None if found is None else found["score"]


@pytest.mark.parametrize(
    ("file", "normalisation", "count", "expected"),
    [
        ("ocr_omni3b.jsonl", "raw", 826, {"score": 0.56084, "bleu_1": 0.58872, "rouge_l": 0.56623}),
        ("gemma_e2b_ocr_output_cleaned.jsonl", "cleaned", 825, {"score": 0.09501}),
    ],
)
def test_published_figures(shared_data, file, normalisation, count, expected):
    """.561 of Qwen2.5-Omni-3B and .095 of Gemma-3n-E2B."""
    lines = (shared_data / "ugc_videocap/results/ocr" / file).read_text("utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    said = [
        row["predict_ocr"]
        if isinstance(row["predict_ocr"], str)
        else json.dumps(row["predict_ocr"], ensure_ascii=False)
        for row in rows
    ]
    found = [scores(row["ocr"], text, normalisation) for row, text in zip(rows, said, strict=True)]
    found = [one for one in found if one is not None]
    assert len(found) == count
    for name, value in expected.items():
        assert fmean(one[name] for one in found) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    "prediction",
    [
        '{"ocr": ["Hello World", "it\'s on"]}',
        '["Hello World", "it\'s on"]',
        '```json\n{"ocr": ["hello world", "IT\'S ON"]}\n```',
        '```\n["Hello, World!", "it\'s on..."]```  ',
        '{"ocr": ["Hello\\nWorld", "it\'s on"], "language": "en"}',
        '{"ocr": ["Hello\\\\nWorld", "it\'s on"]}',  # a line end that is written out
        '"Hello World" "it\'s on"',
    ],
)
@pytest.mark.parametrize("normalisation", ["raw", "cleaned"])
def test_all_right(prediction, normalisation):
    assert score(prediction, normalisation) == 1


@pytest.mark.parametrize(
    ("prediction", "raw", "cleaned"),
    [
        ("hello world it's on", 1, None),  # "cleaned" needs JSON or quotes
        ("", 0, None),
        ("  ", 0, None),
        ("[]", 0, None),
        ('{"ocr": []}', 0, None),
        ("null", 0, None),
        ("```json\n```", 0, None),
        ('{"ocr": [""]}', 0, 0),
        ('{"ocr": "Hello World it\'s on"}', 1, 1),
        ('"Hello World it\'s on"', 1, 1),
        ("5", 0, 0),
    ],
)
def test_other_predictions(prediction, raw, cleaned):
    assert score(prediction, "raw") == raw
    assert score(prediction, "cleaned") == cleaned


def test_broken_json():
    """Cut off at the limit of tokens: "raw" takes all, "cleaned" what stands between quotes."""
    cut = '```json\n{"ocr": ["Hello World", "it\'s on", "and on'
    raw, cleaned = (scores(["Hello World", "it's on"], cut, n) for n in ("raw", "cleaned"))
    assert raw["bleu_1"] == pytest.approx(4 / 6)  # hello world it's on | and on
    assert cleaned["bleu_1"] == pytest.approx(4 / 5)  # ocr | hello world it's on
    assert score('{"ocr": ["I\\\'m"]}', "cleaned", ["I'm"]) > 0.5  # no valid escape in JSON
    assert score("[" * 100_000, "raw") == 0
    assert score("[" * 100_000, "cleaned") is None


def test_lists_of_other_things():
    assert score('["Hello World", 5, null]', "raw", ["hello world 5 null"]) == 1
    assert score('["Hello World", 5, null]', "cleaned", ["hello world"]) == 1


def test_references():
    assert score('["a b"]', "raw", []) is None
    assert score('["a b"]', "cleaned", []) is None
    # "raw" leaves the reference's marks; they are no part of a token
    assert score('["sale up to 50"]', "raw", ["SALE: up to", "50%!"]) == 1


def test_bleu_1_is_clipped():
    assert bleu_1("a b c", "a a a b") == pytest.approx(2 / 4)
    assert bleu_1("it's", "it's") == 1
    assert bleu_1("it's", "it s") == 0
    assert bleu_1("a b c d", "a") == 1  # no brevity penalty
    assert bleu_1("a", "猫 ?") == bleu_1("", "") == 0


def test_the_words_ocr_in_a_text():
    assert score('{"ocr": ["ocr app"]}', "raw", ["ocr app"]) == 1
    assert score("ocr: sign", "raw", ["sign"]) == pytest.approx(3 / 4)  # ROUGE-2 of one word is 0


def test_stems_count():
    assert score('["running dogs today"]', "raw", ["run dog today"]) > 0.8
