"""ugc_jax.report.notes: what a page says of results in words."""

from fake_results import DISPLAYS, PAPER, add, captions, options, result, world

from ugc_jax.evals.compare import compare_results
from ugc_jax.report import notes


def said(*results: dict) -> str:
    members = [(number, made["name"], made) for number, made in enumerate(results)]
    against = compare_results(results)["against"]
    return " ".join(notes.comparability(members, against, DISPLAYS))


def test_which_rows_compare():
    one, two = captions("One", [(3, 3, 3)]), captions("Two", [(3, 3, 3)])
    text = said(one, two)
    assert "Caption: One and Two were, as far as is known, scored as the paper's rows" in text
    other = captions("Other", [(3, 3, 3)], protocol=PAPER | {"judge": "mine"})
    text = said(one, two, other)
    assert "compares with that of Other (judge mine instead of gpt-4o-2024-08-06)" in text
    assert "Caption: One, Two (" not in text
    assert "Caption: One and Two (judge gpt-4o-2024-08-06" in text
    assert "and Other (judge mine, prompt released, temperature 1.0) do not compare" in text


def test_other_judged_tasks_do_not_compare_in_silence():
    made = result("One")
    protocol = {"judge": "mine", "temperature": 0.0, "prompt": "own wording 12"}
    add(made, "background", [{"id": "a", "score": 100.0}], protocol=protocol)
    text = said(made)
    assert "Background: no published score compares with that of One (judge mine" in text
    unknown = result("Two")
    add(unknown, "background", [{"id": "a", "score": 0.0}], protocol=dict.fromkeys(protocol))
    assert "not known how Two was judged" in said(made, unknown)


def test_how_models_were_asked():
    one, two = captions("One", [(3, 3, 3)]), captions("Two", [(3, 3, 3)])
    for made, frames in ((one, 8), (two, 32)):
        made["asked"] = {"clip": {"frames": frames, "fps": None}, "sampling": {"top_k": 0}}
    text = said(one, two)
    assert "One (given 8 frames) and Two (given 32 frames) were" in text
    assert "saw the clips with different settings (clip.frames: 8 and 32)" in text
    assert dict(notes.card("One", one, DISPLAYS)["facts"])["clips as"] == "frames 8"


def test_two_clips_of_one_id_are_told():
    one, two = captions("One", [(3, 3, 3)]), captions("Two", [(3, 3, 3)])
    two["clips"]["final_caption"][0]["reference"] = "another video"
    assert "Caption: 1 ids of One and Two are two different clips" in said(one, two)


def test_ocr_normalisation_is_named():
    made = result("One")
    clips = [{"id": "a", "score": 0.5}]
    add(made, "ocr", clips, unit="fraction", protocol={"normalisation": "cleaned"})
    text = said(made)
    assert "“cleaned” texts" in text
    assert "released predictions reproduce the published OCR scores of " in text
    assert "Qwen2.5-Omni-3B with “raw” normalisation" in text
    assert "Gemma-3n-E2B with “cleaned” normalisation" in text


def test_world():
    text = said(world("One", [[]]), world("Two", [[]]))
    assert "without a model as judge" in text
    assert "published" not in text


def test_tasks():
    made = options(result("One"), "tone", ["Yes", "Yes", "Yes"], ["Yes", "No", None])
    made["tasks"]["tone"] |= {"flags": ["degenerate: x"], "notes": ["a note"], "noise": 0.456}
    (note,) = notes.task_notes([(0, "One", made)], DISPLAYS)
    assert note["summary"] == "2 clips scored, 1 failed"
    assert note["flags"] == ["degenerate: x"]
    ((_, _, facts),) = note["rows"]
    assert (facts["n"], facts["failed"], facts["reasons"]) == (2, 1, "1 empty")
    assert facts["lines"] == [
        "a note",
        "the score would be 33.33 if failures were zeros",
        "judge noise: standard deviation of the score 0.46",
    ]
    assert facts["warnings"][1] == "below 100.0, the score of always answering Yes"


def test_card():
    judge = {"model": "mine", "temperature": 0.0, "prompt": "ugc_jax", "repeats": 3}
    usage = {"answered": 5, "cached": 2, "failed": 1, "tokens_in": 12345, "tokens_out": 67}
    faults = {"duplicate": 1, "unknown": 0, "broken": 2, "listed": ["FILE:3: not JSON"]}
    made = captions("One", [None], judge=judge | {"usage": usage | {"cost": 1.5}}, faults=faults)
    made["unscored"] = {"background": "needs a judge"}
    card = notes.card("One", made, DISPLAYS)
    assert dict(card["facts"]) == {
        "evaluated": "2026-11-23 07:30:00 UTC, ugc_jax 0.1.0",
        "qa": "qa",
        "predictions": "said.jsonl",
        "judge": "mine, temperature 0, prompt ugc_jax, 3 times",
        "questions": "5 answered by the judge, 2 cached, 1 failed, in all 12,345 tokens in, "
        "67 out, those of cached answers included, cost 1.50",
        "no background score": "needs a judge",
    }
    assert card["faults"].endswith("2 broken, 1 duplicate")
    assert card["listed"] == ["FILE:3: not JSON"]
    assert notes.card("Two", result("Two"), DISPLAYS)["faults"] == ""
