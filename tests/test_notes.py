"""ugc_jax.evals.notes: what a page says of results in words."""

from fake_results import PAPER, add, captions, options, result, world

from ugc_jax.evals import notes


def said(*results: dict) -> str:
    members = [(number, made["name"], made) for number, made in enumerate(results)]
    return " ".join(notes.sentences(members))


def test_which_rows_compare():
    one, two = captions("One", [(3, 3, 3)]), captions("Two", [(3, 3, 3)])
    assert "captions of One and Two were scored as the paper's were" in said(one, two)
    other = captions("Other", [(3, 3, 3)], protocol=PAPER | {"judge": "mine"})
    text = said(one, two, other)
    assert "compares with that of Other (judge mine instead of gpt-4o-2024-08-06)" in text
    assert "Caption: One, Two (" not in text
    assert "Caption: One and Two (judge gpt-4o-2024-08-06" in text
    assert "and Other (judge mine, prompt released, temperature 1.0) do not compare" in text


def test_ocr_normalisation_is_named():
    made = result("One")
    clips = [{"id": "a", "score": 0.5}]
    add(made, "ocr", clips, unit="fraction", protocol={"normalisation": "cleaned"})
    text = said(made)
    assert "“cleaned” texts" in text
    assert "Qwen2.5-Omni-3B with “raw” ones" in text
    assert "Gemma-3n-E2B with “cleaned” ones" in text


def test_world():
    text = said(world("One", [[]]), world("Two", [[]]))
    assert "without a model as judge" in text
    assert "published" not in text


def test_tasks():
    made = options(result("One"), "tone", ["Yes", "Yes", "Yes"], ["Yes", "No", None])
    made["tasks"]["tone"] |= {"flags": ["degenerate: x"], "notes": ["a note"], "noise": 0.456}
    (note,) = notes.task_notes([(0, "One", made)])
    assert note["summary"] == "2 clips scored, 1 failed"
    assert note["flags"] == ["degenerate: x"]
    ((_, _, facts),) = note["rows"]
    assert (facts["n"], facts["failed"], facts["reasons"]) == (2, 1, "1 empty")
    assert facts["lines"] == [
        "a note",
        "the score would be 33.33 if failures were zeros",
        "judge noise: standard deviation of the score 0.46",
    ]
    assert facts["warnings"][1] == "below 100.0, the score of always saying Yes"


def test_card():
    judge = {"model": "mine", "temperature": 0.0, "prompt": "ugc_jax", "repeats": 3}
    usage = {"answered": 5, "cached": 2, "failed": 1, "tokens_in": 12345, "tokens_out": 67}
    faults = {"duplicate": 1, "unknown": 0, "broken": 2, "listed": ["FILE:3: not JSON"]}
    made = captions("One", [None], judge=judge | {"usage": usage | {"cost": 1.5}}, faults=faults)
    made["unscored"] = {"background": "needs a judge"}
    card = notes.card("One", made)
    assert dict(card["facts"]) == {
        "evaluated": "2026-11-23 07:30:00 UTC, ugc_jax 0.1.0",
        "qa": "qa",
        "predictions": "said.jsonl",
        "judge": "mine, temperature 0, prompt ugc_jax, 3 times",
        "questions": "5 answered by the judge, 2 cached, 1 failed, 12,345 tokens in, 67 out, "
        "cost 1.50",
        "no background score": "needs a judge",
    }
    assert card["faults"].endswith("1 duplicate, 2 broken")
    assert card["listed"] == ["FILE:3: not JSON"]
    assert notes.card("Two", result("Two"))["faults"] == ""
