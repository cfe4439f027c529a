"""ugc_jax.evaluate and ugc_jax.compare: what the jobs give, from predictions in memory."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from fake_judge import FakeJudge

import ugc_jax
from ugc_jax import Caption, UserError
from ugc_jax.cli import run
from ugc_jax.toy import world

TONE = {
    "question": "Which tone?",
    "valid_count": 24,
    "samples": [
        {"video_id": f"v{n}", "answer": "positive", "options": ["positive", "negative"]}
        for n in range(24)
    ],
}
OCR = [{"video_id": f"v{n}", "ocr": ["big sale"]} for n in range(24)]


@pytest.fixture
def qa(tmp_path):
    """A folder of two tasks."""
    folder = tmp_path / "qa"
    folder.mkdir()
    (folder / "tone.json").write_text(json.dumps(TONE))
    (folder / "ocr.jsonl").write_text("".join(json.dumps(row) + "\n" for row in OCR))
    return folder


def answers(right: int, word: str = "positive") -> list[dict]:
    """Rows of 24 clips, of which the first ones have the word."""
    return [{"video_id": f"v{n}", "predict": word if n < right else "negative"} for n in range(24)]


def test_evaluate_gives_the_result_of_the_job(qa, tmp_path, capsys):
    rows = answers(18)
    (tmp_path / "tone.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"--qa {qa} --task tone --predictions {tmp_path}/tone.jsonl --name mine"
    assert run(["evaluate", *words.split(), "--output", f"{tmp_path}/job.json"]) == 0
    table = capsys.readouterr().out
    output = tmp_path / "python.json"
    result = ugc_jax.evaluate(rows, qa=qa, task="tone", name="mine", output=output)
    job = json.loads((tmp_path / "job.json").read_text())
    python = json.loads(output.read_text())
    assert python == result.content
    for content in (job, python):
        del content["created"], content["sources"]
    assert python == job
    assert f"{result}\n" == table
    tone = result.tasks["tone"]
    assert (result.name, result.average) == ("mine", None)
    assert (tone.score, tone.n, tone.failed) == (75, 24, 0)
    low, high = tone.interval
    assert 40 < low < 75 < high < 100
    assert [tone.scores["v0"], tone.scores["v23"]] == [100, 0]
    assert tone.clips[23]["prediction"] == "negative"


@pytest.mark.parametrize(
    "predictions",
    [
        {f"v{n}": "positive" for n in range(24)},
        [Caption(f"clips/v{n}.mp4", "positive") for n in range(24)],
        (row for row in answers(24)),
    ],
    ids=["texts", "captions", "iterator"],
)
def test_forms_of_predictions(qa, predictions, monkeypatch):
    result = ugc_jax.evaluate(predictions, qa=qa, task="tone")
    assert (result.tasks["tone"].score, result.tasks["tone"].n) == (100, 24)
    assert result.content["sources"]["predictions"] is None
    assert result.name == "predictions"


def test_several_tasks_and_columns(qa):
    ocr = [{"video_id": f"v{n}", "predict_ocr": ["big sale"]} for n in range(23)]
    result = ugc_jax.evaluate({"tone": answers(12), "ocr": ocr}, qa=qa, task="tone,ocr")
    assert result.tasks["tone"].score == 50
    assert (result.tasks["ocr"].n, result.tasks["ocr"].failed) == (23, 1)
    assert result.tasks["ocr"].score == 1.0
    assert {clip.get("failure") for clip in result.tasks["ocr"].clips} == {None, "missing"}
    result = ugc_jax.evaluate({"tone": answers(12)}, qa=qa, task="tone,ocr")
    assert result.unscored == {"ocr": "it has no predictions"}


def test_a_judge_needs_an_output(qa, tmp_path):
    (qa / "final_caption_qa.json").write_text(
        json.dumps({"question": "?", "samples": [{"video_id": "v0", "answer": "A dog barks."}]})
    )
    predictions = [{"video_id": "v0", "caption": "A dog."}]
    options = dict(qa=qa, task="final_caption")
    with pytest.raises(UserError, match="output=FILE is needed: answers of a judge and a model"):
        ugc_jax.evaluate(predictions, judge={"model": "m"}, **options)
    server = FakeJudge()
    try:
        judge = {"model": "m", "base_url": server.url}
        output = tmp_path / "judged.json"
        result = ugc_jax.evaluate(predictions, judge=judge, output=output, **options)
    finally:
        server.stop()
    final = result.tasks["final_caption"]
    assert set(final.columns) == {"visual", "audio", "details"}
    assert final.n == 1
    assert (tmp_path / "judged.judge.jsonl").exists()


def test_compare_gives_the_comparison_of_the_job(qa, tmp_path, capsys):
    files = []
    for name, right in (("base", 6), ("mine", 20), ("mine", 7)):
        files.append(tmp_path / f"{len(files)}.json")
        ugc_jax.evaluate(answers(right), qa=qa, task="tone", name=name, output=files[-1])
    capsys.readouterr()
    assert run(["compare", *map(str, files), "--output", f"{tmp_path}/job.json"]) == 0
    table = capsys.readouterr().out
    comparison = ugc_jax.compare(*files, output=tmp_path / "python.json")
    assert (tmp_path / "python.json").read_bytes() == (tmp_path / "job.json").read_bytes()
    assert f"{comparison}\n" == table
    assert comparison.base == "base"
    first, second = comparison.against.values()
    assert list(comparison.against) == [f"mine ({file})" for file in files[1:]]
    found = first["tone"]["score"]
    assert (found.n, found.wins, found.losses, found.verdict) == (24, 14, 0, "better")
    assert found.difference == pytest.approx(1400 / 24)
    assert found.interval[0] > 0
    assert second["tone"]["score"].verdict == "noise"


def test_results_in_memory_compare(qa):
    base, mine = (
        ugc_jax.evaluate(answers(right), qa=qa, task="tone", name="x") for right in (6, 20)
    )
    comparison = ugc_jax.compare(base, mine)
    assert comparison.against["x (2)"]["tone"]["score"].wins == 14
    assert base.name == base.content["name"] == "x"  # not renamed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ugc_jax.evaluate(3, qa="q"), "predictions: expected rows or {id: text}, got 3"),
        (lambda: ugc_jax.evaluate([3], qa="q"), r"predictions\[0\]: expected a dict or a Caption"),
        (lambda: ugc_jax.evaluate([{"a": np.zeros(1)}], qa="q"), r"predictions\[0\]: .*JSON"),
        (
            lambda: ugc_jax.evaluate([], qa="q", tsak="tone"),
            "tsak: unknown setting; did you mean task",
        ),
        (lambda: ugc_jax.evaluate([], qa=3), r"qa: expected TEXT\|none, got 3"),
        (lambda: ugc_jax.evaluate([], qa="q", judge={"model": 3}), "judge.model: expected TEXT"),
        (lambda: ugc_jax.compare({}, {}), "results: expected results of evaluate or files, got {}"),
    ],
)
def test_types_and_names_of_options(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_mistakes(qa, tmp_path):
    with pytest.raises(UserError, match="nothing to score; give predictions"):
        ugc_jax.evaluate(qa=qa)
    with pytest.raises(UserError, match="^predictions: has no prediction of the task's clips"):
        ugc_jax.evaluate([{"video_id": "other", "caption": "A."}], qa=qa, task="tone")
    with pytest.raises(UserError, match="no.json: no such file"):
        ugc_jax.compare(tmp_path / "no.json", tmp_path / "no.json")
    result = ugc_jax.evaluate(answers(3), qa=qa, task="tone")
    with pytest.raises(TypeError, match="takes two or more results, got 1"):
        ugc_jax.compare(result)


def test_no_jax_is_imported(tmp_path):
    """Only scores are computed: of a world, which needs no judge."""
    attributes = {name: values[0] for name, values in world.VALUES.items()}
    row = {"videos": ["test/000000.mp4"], "messages": [], "attributes": attributes}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    caption = world.write_caption(attributes, 0)
    code = (
        "import sys, ugc_jax\n"
        f"one = ugc_jax.evaluate({{'000000': {caption!r}}}, qa='test.jsonl')\n"
        "ugc_jax.compare(one, one)\n"
        "print(one.tasks['world'].score, *{'jax', 'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "100.0\n"


@pytest.mark.parametrize("task", ["../outside", "a/b", 3, ""])
def test_the_name_of_a_task_names_no_other_file(tmp_path, monkeypatch, task):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rows = [{"video_id": "a", "caption": "b"}]
    with pytest.raises(UserError, match=rf"^predictions: {re.escape(repr(task))} is not the name"):
        ugc_jax.evaluate({task: rows}, qa="unused.jsonl")
    assert list(tmp_path.iterdir()) == []
