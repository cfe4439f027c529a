"""ugc_jax.evals.structured: captions by atomic units, by hand; units are extracted once."""

import json
import re

import pytest
from fake_judge import FakeJudge

from ugc_jax import cli
from ugc_jax.errors import UserError
from ugc_jax.evals import structured, tasks
from ugc_jax.evals.compare import compare_results
from ugc_jax.evals.results import read_result
from ugc_jax.report.page import make_page
from ugc_jax.report.tables import DISPLAYS

pytest.importorskip("openai")

REFERENCES = ["A dog runs. It barks. It is fun.", "A man waves. He runs.", "A horn sounds."]
UNITS = [
    {"text": "A dog runs", "kind": "visual"},
    {"text": "It barks", "kind": "audio"},
    {"text": "It howls", "kind": "audio"},
    {"text": "It is fun", "kind": "other"},
]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(cli, "set_up_logging", lambda level: None)


def answer(question):
    """Sentences are units; a caption tells those that it has, and contradicts those with "not"."""
    if '"units"' in question:
        reference = re.search(r"<reference-\w+>\n(.*?)\n</reference", question, re.DOTALL)[1]
        if "horn" in reference:
            return {"units": []}
        kinds = {"barks": "audio", "fun": "other"}
        words = [text.strip(" .") for text in reference.split(". ")]
        return {"units": [{"text": w, "kind": kinds.get(w.split()[-1], "visual")} for w in words]}
    caption = re.search(r"<caption-\w+>\n(.*?)\n</caption", question, re.DOTALL)[1]
    if '"details"' in question:
        return {"visual": 5, "audio": 4, "details": 3}
    units = re.findall(r"^(\d+)\. (.*)$", question, re.MULTILINE)
    return {
        number: "contradicted" if f"not {unit}" in caption else
        "told" if unit in caption else "missed"
        for number, unit in units
    }  # fmt: skip


@pytest.fixture(scope="module")
def server():
    server = FakeJudge(answer)
    yield server
    server.stop()


@pytest.fixture
def run(server, tmp_path):
    """A function: (captions, settings) -> result of the captions of clips c0, c1, ..."""
    qa = tmp_path / "qa"
    qa.mkdir()
    rows = [{"video_id": f"c{n}", "answer": text} for n, text in enumerate(REFERENCES)]
    content = {"question": "Describe.", "valid_count": len(rows), "samples": rows}
    (qa / "final_caption_qa.json").write_text(json.dumps(content))

    def evaluate(captions, name="mine", **settings):
        said = tmp_path / f"{name}.said.jsonl"
        said.write_text(
            "\n".join(json.dumps({"video_id": f"c{n}", "caption": c}) for n, c in captions.items())
        )
        out = tmp_path / f"{name}.json"
        words = {"qa": str(qa), "task": "caption", "predictions": str(said), "output": str(out)}
        words |= {"judge.model": "one", "judge.base_url": server.url, "judge.backoff": "0.01"}
        words |= {"judge.form": "structured", "name": name} | settings
        flags = (word for key, value in words.items() for word in (f"--{key}", value))
        assert cli.run(["evaluate", *flags]) == 0
        return read_result(out)

    return evaluate


def sample(units=UNITS):
    return tasks.Sample("c0", list(units))


def verdicts(*words):
    return {str(number): word for number, word in enumerate(words, 1)}


def test_scores_by_hand():
    found = structured.scores(verdicts("told", "Missed", "told", "contradicted"), sample())
    assert found == {
        "score": 50, "visual": 100, "audio": 50, "contradicted": 25,
        "note": "missed: It barks\ncontradicted: It is fun",
    }  # fmt: skip
    silent = structured.scores(verdicts("missed"), sample(UNITS[:1]))
    assert silent == {"score": 0, "visual": 0, "contradicted": 0, "note": "missed: A dog runs"}
    assert structured.scores(verdicts(*["told"] * 4), sample())["note"] == "all told"


@pytest.mark.parametrize(
    "words",
    [
        ["told"] * 3,
        ["told"] * 5,
        ["told", "told", "told", "not told"],
        ["told", "told", "told", "uncontradicted"],
        ["told", "told", "told", 1],
        ["told", "told", "told", None],
    ],
)
def test_verdicts_that_are_none(words):
    with pytest.raises((ValueError, KeyError)):
        structured.scores(verdicts(*words), sample())


@pytest.mark.parametrize(
    "units",
    [
        [], {}, "x", None, ["x"], [{"text": "x"}], [{"kind": "visual"}],
        [{"text": " ", "kind": "audio"}], [{"text": "x", "kind": "sound"}],
        [{"text": "x", "kind": "audio"}] * 41,
    ],
)  # fmt: skip
def test_units_that_are_none(units):
    with pytest.raises((ValueError, TypeError, KeyError)):
        structured.parse_units({"units": units})


def test_a_run(run, server, tmp_path, capsys):
    """c0 tells 2 of 3, c1 none; c2 has a reference of which no units come."""
    server.requests.clear()
    said = {0: "A dog runs and It barks", 1: "not He runs", 2: "A horn."}
    result = run(said)
    assert list(result["tasks"]) == ["final_caption_units"]
    task = result["tasks"]["final_caption_units"]
    assert task["score"] == pytest.approx((200 / 3 + 0) / 2)
    assert (task["visual"], task["audio"], task["contradicted"]) == (50, 100, 25)
    assert (task["n"], task["failures"]) == (2, {"units": 1})
    assert result["average"] is None
    clips = result["clips"]["final_caption_units"]
    assert clips[0]["reference"] == "A dog runs\nIt barks\nIt is fun"
    assert "units is no list of units" in clips[2]["note"]
    assert "prompt own wording" in capsys.readouterr().out
    lines = (tmp_path / "qa/final_caption_qa.units.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["c0", "c1"]
    assert '"lower":["contradicted"]' in make_page([result], None, DISPLAYS)


def test_units_are_extracted_once_for_all_judges(run, server, tmp_path, caplog):
    run({0: "A dog runs"})
    file = tmp_path / "qa/final_caption_qa.units.jsonl"
    before = file.read_text()
    server.requests.clear()
    second = run({0: "A dog runs"}, "second", **{"judge.model": "two"})
    assert file.read_text() == before
    assert [request["model"] for request in server.requests] == ["two"]
    assert '"units"' not in server.questions[0]
    protocol = second["tasks"]["final_caption_units"]["protocol"]
    assert protocol["judge"] == "two"
    assert re.fullmatch(r"by one, wording \w{12}", protocol["units"])
    # a line that a killed run left, and one of another reference, which is not of this one
    file.write_text(before + '{"reference": "00", "wording": "x", "by": "y", "units": []}\n{"re')
    third = run({1: "He runs"}, "third")
    assert third["tasks"]["final_caption_units"]["n"] == 1
    assert "2 lines have no units that can be read" in caplog.text
    assert json.loads(file.read_text().splitlines()[-1])["id"] == "c1"
    facts = compare_results([second, run({0: "It barks"}, "fourth", **{"judge.model": "two"})])
    facts = facts["against"][0]["tasks"]["final_caption_units"]
    assert (facts["protocol"], facts["score"]["n"]) == ([], 1)


def test_beside_the_ratings(run, tmp_path):
    units = tmp_path / "units.jsonl"
    result = run({0: "A dog runs"}, **{"judge.form": "both", "judge.units": str(units)})
    assert list(result["tasks"]) == ["final_caption", "final_caption_units"]
    assert result["tasks"]["final_caption"]["score"] == 80
    assert result["tasks"]["final_caption_units"]["score"] == pytest.approx(100 / 3)
    assert len(units.read_text().splitlines()) == 1
    assert not list((tmp_path / "qa").glob("*.units.jsonl"))
    assert result["faults"]["duplicate"] == 0


@pytest.mark.parametrize(
    "text",
    [
        '{"video_id": "c0", "caption": "A dog."}\n',
        '{"id": "c0", "predict": "A dog."}',
        '{"id": "c0", "predict": "A dog."}\n{"id": "c1", "pre',
        '[\n  {"id": "c0", "answer": "A dog."}\n]\n',
    ],
)
def test_another_file_is_no_file_of_units(run, server, tmp_path, text):
    file = tmp_path / "predictions.jsonl"
    file.write_text(text)
    server.requests.clear()
    with pytest.raises(UserError) as caught:
        run({0: "A dog runs"}, **{"judge.units": str(file)})
    assert str(caught.value) == (
        f"{file}: exists and has no units of references, which would be added to it; name another "
        "file: judging.units"
    )
    assert file.read_text() == text
    assert not server.requests


def test_a_first_line_of_a_killed_run(run, tmp_path):
    file = tmp_path / "units.jsonl"
    for name, left in (("empty", ""), ("cut", '{"id": "c0", "refer')):
        file.write_text(left)
        result = run({0: "A dog runs"}, name, **{"judge.units": str(file)})
        assert result["tasks"]["final_caption_units"]["n"] == 1
        assert json.loads(file.read_text().splitlines()[-1])["id"] == "c0"


def test_mistakes(run, tmp_path):
    blocked = tmp_path / "file" / "units.jsonl"
    blocked.parent.write_text("")
    with pytest.raises(UserError, match="the units of references cannot be kept there"):
        run({0: "A dog runs"}, **{"judge.units": str(blocked)})
    with pytest.raises(UserError, match="units is given, but form is holistic"):
        run({0: "A dog runs"}, **{"judge.units": "x", "judge.form": "holistic"})
    with pytest.raises(UserError, match="form needs judge.model"):
        cli.run(["evaluate", "--judge.form", "both", "--output", "o"])
