"""Benchmarks by caption through evaluate, compare and report: files in, scores and a page out."""

import json
import re
import typing

import pytest
from fake_judge import FakeJudge

from ugc_jax import cli
from ugc_jax.errors import UserError
from ugc_jax.evals.benchmarks.table import BENCHMARKS, Name
from ugc_jax.evals.compare import compare_results, comparison_table
from ugc_jax.evals.results import read_result
from ugc_jax.evals.summary import result_table
from ugc_jax.report.page import clip_tasks, make_page, worst_first
from ugc_jax.report.tables import DISPLAYS

pytest.importorskip("openai")

QUESTIONS = [
    {"id": f"v{n // 2}", "Question": f"What is {n}?", "Choice": ["A. red", "B. blue"],
     "Answer": "AB"[n % 2], "Type": "colour"}
    for n in range(8)
]  # fmt: skip
EVENTS = [{"clip": f"v{n}", "facts": [f"fact {n}.{i}" for i in range(n + 1)]} for n in range(3)]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(cli, "set_up_logging", lambda level: None)


def answer(question):
    """What the captions below tell: "v1 red" says red; a caption of facts lists them."""
    caption = re.search(r"<caption-\w+>\n(.*?)\n</caption", question, re.DOTALL)[1]
    if '"invented"' in question:
        facts = re.findall(r"^(\d+)\. (.*)$", question, re.MULTILINE)
        told = {n: "told" if fact in caption else "missed" for n, fact in facts}
        return {"events": told, "invented": re.findall("a lie", caption)}
    if "broken" in caption:
        return {"answer": "INCORRECT"}
    return {"answer": {"red": "A", "blue": "B"}.get(caption.split()[-1], "not mentioned")}


@pytest.fixture(scope="module")
def server():
    server = FakeJudge(answer)
    yield server
    server.stop()


@pytest.fixture
def evaluate(server, tmp_path):
    """A function: (benchmark, rows, {video: caption}, name) -> result."""

    def run(benchmark, rows, captions, name="mine", mapping="video=id", **more):
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        (data / (BENCHMARKS[benchmark].file or "test.json")).write_text(json.dumps(rows))
        said = tmp_path / f"{name}.jsonl"
        lines = (json.dumps({"video": f"x/{v}.mp4", "caption": c}) for v, c in captions.items())
        said.write_text("\n".join(lines))
        out = tmp_path / f"{name}.json"
        words = ["--benchmark", benchmark, "--benchmark-data", str(data), "--map", mapping]
        words += ["--predictions", str(said), "--output", str(out), "--judge.model", "fake"]
        words += ["--judge.base_url", server.url, "--judge.backoff", "0.01", "--name", name]
        words += [word for key, value in more.items() for word in (f"--{key}", value)]
        assert cli.run(["evaluate", *words]) == 0
        return read_result(out)

    return run


def test_names():
    assert tuple(BENCHMARKS) == typing.get_args(Name)
    for name, one in BENCHMARKS.items():
        assert one.task == name.replace("-", "_")
        assert set(one.columns) <= set(one.kind.fields)
        for figure in one.figures:  # "score" is the sum of the errors
            scores = {key: float(text) for key, text in figure.scores.items()}
            assert set(scores) == {"score", *one.kind.form.columns}
            if len(scores) > 1:
                assert scores["score"] == pytest.approx(scores["missed"] + scores["hallucinated"])


def test_questions(evaluate, capsys, caplog):
    """v0 right once in two, v1 not mentioned, v2 without a usable answer, v3 without a caption."""
    said = {"v0": "It is red", "v1": "A dog.", "v2": "broken"}
    result = evaluate("daily-omni", QUESTIONS, said)
    task = result["tasks"]["daily_omni"]
    assert (task["score"], task["n"], task["floor"]) == (25, 4, 12.5)
    assert task["failures"] == {"judge": 2, "missing": 2}
    assert '2 answers are "not mentioned"; they count as wrong' in task["notes"]
    assert "AVoCaDO-7B score 50.1 (arXiv 2510.10395)" in task["notes"][-1]
    assert (result["benchmark"], result["average"]) == ("Daily-Omni by caption", None)
    clip = result["clips"]["daily_omni"][1]
    assert clip == {
        "id": "v0#2", "clip": "v0", "score": 0, "said": "A", "answer": "B",
        "reference": "question: What is 1?, A: red, B: blue, answer: B", "prediction": "It is red",
    }  # fmt: skip
    assert "qa.json: 4 videos, not the published 684" in caplog.text
    assert "failed, and not in the means: 2 judge, 2 missing; 12.50 if they were zeros" in (
        capsys.readouterr().out
    )
    other = evaluate("daily-omni", QUESTIONS, dict.fromkeys(said, "It is blue"), "other")
    comparison = compare_results([result, other])
    facts = comparison["against"][0]["tasks"]["daily_omni"]
    assert (facts["score"]["difference"], facts["score"]["n"]) == (25, 4)
    assert (facts["score"]["wins"], facts["score"]["losses"]) == (2, 1)
    assert "failed in mine: 2 judge, 2 missing" in comparison_table(comparison)
    page = make_page([result, other], None, DISPLAYS)
    assert "Daily-Omni by caption" in page
    assert "judged by Gemini-2.5-Pro at temperature 0" in page
    (shown,) = clip_tasks([result, other], DISPLAYS)
    assert (shown["clips"][1]["id"], shown["clips"][1]["video"]) == ("v0#2", "v0")
    assert "50.1" in page  # the published row
    assert "81.2" not in page  # UGC-VideoCap's
    assert sorted(worst_first([result], DISPLAYS)) == ["v0", "v1", "v2", "v3"]


def test_events(evaluate):
    said = {"v0": "fact 0.0", "v1": "fact 1.0 and a lie", "v2": ""}
    result = evaluate("video-salmonn-2", EVENTS, said, mapping="video=clip,events=facts")
    task = result["tasks"]["video_salmonn_2"]
    # of 3 events 1 is missed, and 1 invented
    assert task["missed"] == task["hallucinated"] == pytest.approx(100 / 3)
    assert task["score"] == pytest.approx(200 / 3)
    assert task["failures"] == {"empty": 1}
    assert task["floor"] == pytest.approx((200 + 3 * 100) / 6)
    assert "if they counted as 100" in result_table(result)
    better = evaluate(
        "video-salmonn-2", EVENTS, {"v1": "fact 1.0, fact 1.1", "v0": "fact 0.0"}, "better",
        mapping="video=clip,events=facts",
    )  # fmt: skip
    facts = compare_results([result, better])["against"][0]["tasks"]["video_salmonn_2"]
    assert facts["score"]["difference"] == pytest.approx(-200 / 3)
    assert (facts["score"]["wins"], facts["score"]["ties"]) == (1, 1)  # less is better
    assert worst_first([result], DISPLAYS) == ["v1", "v0", "v2"]
    page = make_page([result, better], None, DISPLAYS)
    assert "failures counted as 100" in page
    assert "AVoCaDO-7B" in page
    assert '"lower":["score","missed","hallucinated"]' in page


def test_a_second_judge_is_calibrated(evaluate, tmp_path, capsys):
    said = {"v0": "It is red", "v1": "It is blue"}
    evaluate("worldsense", QUESTIONS, said, **{"mapping": WORLDSENSE})
    second = read_result(tmp_path / "mine.json")
    second["tasks"]["worldsense"]["protocol"]["judge"] = "other"
    (tmp_path / "second.json").write_text(json.dumps(second))
    assert cli.run(["calibrate", str(tmp_path / "mine.json"), str(tmp_path / "second.json")]) == 0
    assert (
        "worldsense: other (B) against fake (A), 4 clips of each model" in capsys.readouterr().out
    )


WORLDSENSE = "video=id,question=Question,choices=Choice,answer=Answer"


def test_a_wording_of_the_users(evaluate, server, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("<caption-x>\n{caption}\n</caption-x>\nAnd {question}?")
    evaluate("daily-omni", QUESTIONS[:1], {"v0": "red"}, **{"judging.prompt": str(own)})
    assert server.questions[-1] == (
        "<caption-x>\nred\n</caption-x>\nAnd What is 0?\nA. red\nB. blue?"
    )
    own.write_text("{caption} {reference}")
    with pytest.raises(UserError, match=r"own\.txt: has no \{question\}"):
        evaluate("daily-omni", QUESTIONS[:1], {"v0": "red"}, **{"judging.prompt": str(own)})


def test_a_model_is_asked_first(evaluate, server, tmp_path, monkeypatch):
    """Each clip once, however many questions there are about it."""
    from ugc_jax.generate import asking

    def ask(config, questions, folder, *how):
        ((name, question),) = questions.items()
        assert question.ids == ("v0", "v1", "v2", "v3")
        assert question.question.startswith("You are given a short video with both audio")
        folder.mkdir()
        lines = (json.dumps({"video": f"{one}.mp4", "caption": "red"}) for one in question.ids)
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
        return {"clip": {}, "sampling": {}}

    monkeypatch.setattr(asking, "ask", ask)
    (tmp_path / "qa.json").write_text(json.dumps(QUESTIONS))
    out = tmp_path / "out.json"
    words = ["--benchmark", "daily-omni", "--benchmark_data", str(tmp_path), "--map", "video=id"]
    words += ["--ask.checkpoint", "c", "--ask.videos", "v", "--output", str(out)]
    words += ["--judge.model", "fake", "--judge.base_url", server.url]
    assert cli.run(["evaluate", *words]) == 0
    assert read_result(out)["tasks"]["daily_omni"]["score"] == 50


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--benchmark daily-omni", "benchmark=daily-omni needs benchmark_data=DIR"),
        ("--map video=id --qa q", "map needs benchmark=NAME"),
        ("--benchmark_data d --qa q", "benchmark_data needs benchmark=NAME"),
        ("--benchmark daily-omni --benchmark_data d --qa q", "qa is of UGC-VideoCap, not of"),
        ("--benchmark daily-omni --benchmark_data d --task ocr", "task is of UGC-VideoCap"),
        ("--benchmark daily-omni --benchmark_data d --scores s", "scores is of UGC-VideoCap"),
        (
            "--benchmark daily-omni --benchmark_data d --ocr_normalisation cleaned",
            "ocr_normalisation is of UGC-VideoCap, not of benchmark=daily-omni",
        ),
        (
            "--benchmark daily-omni --benchmark_data d --map video=id --map answer=Type",
            "--map is given twice; give it once, its values separated by commas",
        ),
        ("--benchmark daily --benchmark_data d", r"--benchmark: expected video-salmonn-2\|daily"),
        ("--benchmark daily-omni --benchmark_data DATA", "column of video is not published for"),
        (
            "--benchmark daily-omni --benchmark_data DATA --map video=Video",
            "has no column 'Video', which video is read from",
        ),
        (
            "--benchmark daily-omni --benchmark_data DATA --map video=id,frames=Type",
            "Daily-Omni by caption has no field 'frames'",
        ),
        (
            "--benchmark daily-omni --benchmark_data DATA --map video=id,answer=Type",
            "row 1: the answer 'colour' is none of the choices",
        ),
        (
            "--benchmark daily-omni --benchmark_data DATA --map video=id",
            "task daily_omni: it needs a judge: judge.model=NAME$",
        ),
    ],
)
def test_mistakes(tmp_path, words, message):
    (tmp_path / "qa.json").write_text(json.dumps(QUESTIONS))
    (tmp_path / "p.jsonl").write_text('{"video": "v0", "caption": "red"}')
    words = words.replace("DATA", str(tmp_path)).split()
    words += ["--predictions", str(tmp_path / "p.jsonl"), "--output", str(tmp_path / "o.json")]
    with pytest.raises(UserError, match=message) as caught:
        cli.run(["evaluate", *words])
    assert "\n" not in str(caught.value)
