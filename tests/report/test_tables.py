"""ugc_jax.report.tables: columns, cells and differences of results."""

import pytest
from fake_results import DISPLAYS, add, captions, options, result, world

from ugc_jax.evals.compare import compare_results
from ugc_jax.report import tables


@pytest.fixture
def members() -> list[tuple[int, str, dict]]:
    one = captions("One", [(4, 4, 4), (2, 2, 2), None], average=51.234)
    options(one, "tone", ["Yes", "Yes", "No"], ["Yes", "No", None])
    clips = [{"id": "clip-0", "score": 0.5, "bleu_1": 0.25}]
    add(one, "ocr", clips, columns=("bleu_1",), unit="fraction")
    two = captions("Two", [(5, 4, 3), (3, 3, 3), (1, 1, 1)], unscored={"tone": "needs answers"})
    return [(0, "One", one), (2, "Two", two)]


def difference_table(members, displays):
    against = compare_results([result for *_, result in members])["against"]
    return tables.difference_table(members, against, displays)


def labels(result: dict) -> list[str]:
    return tables.labels(tables.score_columns([result], DISPLAYS), DISPLAYS)


def test_columns(members):
    table = tables.score_table(members, DISPLAYS)
    assert table["groups"] == [("Tone", 1), ("OCR", 1), ("Caption", 4)]
    assert table["fields"] == ["", "", "audio", "visual", "details", "average"]
    assert labels(members[0][2]) == [
        "Tone", "OCR × 100", "Caption: audio", "Caption: visual", "Caption: details",
        "Caption: average",
    ]  # fmt: skip
    assert labels(world("W", [[]])) == ["F1", "visual", "all right"]


def test_cells(members):
    (_, _, one), (number, name, two) = tables.score_table(members, DISPLAYS)["rows"]
    assert (number, name) == (2, "Two")
    tone, ocr, audio, *_, average, mean = one
    assert (tone.text, tone.lines, tone.failed) == ("50.0", ("49.0–51.0", "n 2"), 1)
    assert tone.href == "#task=tone&result=0"
    assert (ocr.text, ocr.lines[0]) == ("0.500", "-0.500–1.500")
    assert (audio.text, audio.lines) == ("60.0", ("59.0–61.0",))
    assert audio.href == "#task=final_caption&result=0&by=audio"
    assert (average.text, average.failed) == ("60.00", 1)
    assert mean.text == "51.23"
    assert (two[0].text, two[0].lines) == ("–", ("not scored",))
    assert two[-1].text == "–"


def test_guesses_and_published_rows(members):
    table = tables.score_table(members, DISPLAYS)
    assert table["majority"] == ["66.7", "", "", "", "", ""]
    (_, papers), (_, others) = table["published"]
    rows = {row.model: texts for row, texts in [*papers, *others]}
    assert rows["Qwen2.5-Omni-3B"] == ["46.9", ".561", "48.2", "55.6", "52.6", "52.18", "48.6"]
    assert rows["AVCap-30B"] == ["–"] * 5 + ["85.1", "–"]
    assert [row.model for row, _ in others][0] == "OmniCaptioner-IF-3B"
    world_table = tables.score_table([(0, "W", world("W", [[]]))], DISPLAYS)
    assert world_table["majority"] is None
    assert [rows for _, rows in world_table["published"]] == [[], []]


def test_a_degenerate_task_says_so():
    made = options(result("One"), "bgm", ["No", "No"], ["No", "Yes"])
    made["tasks"]["bgm"]["flags"] = ["degenerate: every answer is No"]
    ((_, _, (cell,)),) = tables.score_table([(0, "One", made)], DISPLAYS)["rows"]
    assert cell.lines[-1] == "degenerate"


def test_nothing_scored():
    made = captions("One", [None, None])
    ((_, _, cells),) = tables.score_table([(0, "One", made)], DISPLAYS)["rows"]
    assert [cell.text for cell in cells] == ["–"] * 4
    assert cells[-1].failed == 2
    assert tables.score_table([(0, "One", result("One"))], DISPLAYS)["rows"] == [(0, "One", [])]


def test_percent_and_published_values(members):
    ocr = tables.Column("ocr", "score")
    assert tables.percent(members[0][2], ocr) == (50.0, [-50.0, 150.0])
    assert tables.percent(members[1][2], ocr) == (None, None)
    assert max(tables.published_values(ocr)) == pytest.approx(69.4)


def test_differences(members):
    ((number, name, cells),) = difference_table(members, DISPLAYS)
    assert (number, name) == (2, "Two")
    assert [cell.text for cell in cells] == ["–", "–", "+10.00", "+20.00", "+0.00", "+10.00"]
    assert cells[-2].weak
    assert cells[2].lines == ("too few", "1 / 1 / 0")  # clips for an interval
    worse = difference_table(members[::-1], DISPLAYS)[0][2]
    assert worse[-1].text == "−10.00"
    assert difference_table([members[0], (1, "W", world("W", [[]]))], DISPLAYS) is None


def test_other_protocols_are_told(members):
    members[1][2]["tasks"]["final_caption"]["protocol"] = {"judge": "another"}
    (*_, cells) = difference_table(members, DISPLAYS)[0]
    assert cells[-1].lines[0] == "does not compare"


def test_names():
    assert tables.column_title("rouge_l") == "ROUGE-L"
    assert tables.column_title("rouge_2") == "ROUGE-2"
    assert tables.column_title("bleu_1") == "BLEU-1"
    assert tables.in_order(["mine", "world", "tone"], DISPLAYS) == ["tone", "world", "mine"]
    assert tables.main_task(captions("One", [None]), DISPLAYS) == "final_caption"
    assert tables.main_task(result("One"), DISPLAYS) is None
