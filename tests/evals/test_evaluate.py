"""ugc_jax.evals.evaluate and its job: predictions in, a result out; failures are never zeros."""

import json
import shutil

import pytest
from fake_judge import FakeJudge, Reply
from fake_results import DISPLAYS

from ugc_jax import cli
from ugc_jax.errors import UserError
from ugc_jax.evals.compare import compare_results, comparison_table
from ugc_jax.evals.results import read_result
from ugc_jax.generate.captioner import Captioner
from ugc_jax.report.page import make_page
from ugc_jax.toy import world

TONES = ["Positive", "Negative", "Neutral"]
# As long as the OCR task's question: a model that is asked both compiles for one length.
QUESTION = (
    "Which tone do the voices, the music and the pictures of the clip have, all in all, and does "
    "it stay the same from its first picture to the last one? Think of what the people in it say "
    "and do, of how they look, of the music."
)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(cli, "set_up_logging", lambda level: None)


@pytest.fixture
def qa(tmp_path):
    """A benchmark of four clips with three tasks."""
    folder = tmp_path / "qa"
    folder.mkdir()
    answers = ["Positive", "neutral", "Positive", "negative"]

    def write(name, question, texts, **more):
        rows = [
            {"video_id": f"c{i}", "path": f"video/c{i}.mp4", "answer": text} | more
            for i, text in enumerate(texts)
        ]
        content = {"question": question, "valid_count": len(rows), "samples": rows}
        (folder / name).write_text(json.dumps(content))

    write("tone.json", QUESTION, answers, options=TONES)
    write("final_caption_qa.json", "Describe.", [f"reference {i}" for i in range(4)])
    texts = [["Hello", "world"], ["one"], ["two three"], ["four"]]
    lines = (json.dumps({"video_id": f"c{i}", "ocr": text}) for i, text in enumerate(texts))
    (folder / "ocr.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def run(**settings):
    return cli.run(
        ["evaluate", *(f"--config.{k.replace('__', '.')}={v}" for k, v in settings.items())]
    )


def write_lines(path, rows):
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n")
    return path


def by_id(result, task):
    return {clip["id"]: clip for clip in result["clips"][task]}


class TestFiles:
    def test_failures_are_counted_by_kind_and_are_no_zeros(self, qa, tmp_path, capsys, caplog):
        said = write_lines(
            tmp_path / "said.jsonl",
            [
                {"video_id": "c0", "predict": "The tone is POSITIVE."},
                {"video_id": "c1", "predict": ""},
                {"video": "clips/c2.mp4", "error": "c2.mp4: cannot be read"},
                {"video_id": "c9", "predict": "Neutral"},
                '{"video_id": "c3", "pre',
                {"video_id": "c0", "predict": "positive"},
            ],
        )
        out = tmp_path / "out" / "result.json"
        assert run(qa=qa, task="tone", predictions=said, output=out) == 0
        result = read_result(out)
        tone = result["tasks"]["tone"]
        assert (tone["score"], tone["n"], tone["failed"], tone["floor"]) == (100.0, 1, 3, 25.0)
        assert tone["failures"] == {"empty": 1, "error": 1, "missing": 1}
        assert tone["interval"] is None  # of one clip nothing can be told
        assert tone["majority"] == {"answer": "Positive", "score": 100.0}
        faults = result["faults"]
        kinds = {"broken": 1, "unknown": 1, "conflicting": 1, "duplicate": 0}
        assert {kind: faults[kind] for kind in kinds} == kinds
        assert any("said.jsonl:5" in line for line in faults["listed"])
        clips = by_id(result, "tone")
        assert clips["c0"]["said"] == "Positive"
        assert "score" not in clips["c1"]
        assert "c2.mp4: cannot be read" in clips["c2"]["note"]
        assert tone["flags"] == []  # the answers are not all the same, though one clip's are
        assert "said.jsonl:5" in caplog.text
        shown = capsys.readouterr().out
        assert "1 empty, 1 error, 1 missing" in shown
        assert "without regard to case" in shown

    @pytest.mark.parametrize(
        ("prediction", "failure"),
        [
            (float("nan"), "NaN"),
            (False, "boolean"),
            (7, "number"),
            (["Positive"], "list"),
            ({"answer": "Positive"}, "object"),
            (None, "null"),
            ("nan", "NaN"),
            ("None", "null"),
            ("", "empty"),
            ("Error: connection lost", "error"),
            ("<think>Positive", "cut off"),
            ("<think>Positive</think> ", "empty"),
            ("<think>Hm.</think>I'm sorry, I can't assist with that.", "refusal"),
            ("Not positive", "negation"),
            ("Positive/Negative/Neutral", "several"),
            ("A man tells of positive things.", "unclear"),
        ],
    )
    def test_each_failure_is_counted_as_what_it_is(self, qa, tmp_path, capsys, prediction, failure):
        """In the result, the table, the page and the comparison; the other clip is scored."""
        rows = [{"video_id": "c0", "prediction": prediction}]
        rows += [{"video_id": "c1", "prediction": "<think>Positive?</think>\nAnswer: Neutral"}]
        rows += [{"video_id": "c2", "prediction": "Negative"}, {"video_id": "c3"}]
        out = tmp_path / "result.json"
        said = write_lines(tmp_path / "said.jsonl", rows)
        assert run(qa=qa, task="tone", predictions=said, output=out) == 0
        result = read_result(out)
        tone = result["tasks"]["tone"]
        assert tone["failures"] == {failure: 1, "missing": 1}
        assert (tone["n"], tone["score"], tone["floor"]) == (2, 50.0, 25.0)
        clips = by_id(result, "tone")
        assert "said" not in clips["c0"]
        assert (clips["c1"]["said"], clips["c1"]["prediction"]) == ("Neutral", "\nAnswer: Neutral")
        listed = f"1 {failure}, 1 missing"
        assert f"failed, and not in the means: {listed}; 25.00 if" in capsys.readouterr().out
        assert listed in make_page([result], None, DISPLAYS)
        other = result | {"name": "other"}
        text = comparison_table(compare_results([result, other]))
        assert f"tone: failed in said: {listed}" in text
        assert f"tone: failed in other: {listed}" in text

    def test_ocr_counts_what_is_no_text(self, qa, tmp_path):
        rows = ['{"video_id": "c0", "predict_ocr": {"ocr": ["Hello world"], "ocr": []}}']
        rows += [{"video_id": "c1", "predict_ocr": '{"ocr": ["one"], "ocr": ["two"]}'}]
        rows += [{"video_id": "c2", "predict_ocr": '<think>["one"]</think>["two three"]'}]
        rows += [{"video_id": "c3", "predict_ocr": "I'm sorry, I cannot view the video."}]
        out = tmp_path / "result.json"
        said = write_lines(tmp_path / "said.jsonl", rows)
        assert run(qa=qa, task="ocr", predictions=said, output=out) == 0
        task = read_result(out)["tasks"]["ocr"]
        assert task["failures"] == {"key twice": 2, "refusal": 1}
        assert (task["n"], task["score"]) == (1, 1.0)
        assert "1 answers are scored without their thinking" in task["notes"]

    def test_few_predictions_are_told(self, qa, tmp_path, caplog):
        row = {"video_id": "c0", "predict": "neutral", "finish_reason": "length"}
        said, out = write_lines(tmp_path / "said.jsonl", [row]), tmp_path / "result.json"
        assert run(qa=qa, task="tone", predictions=said, output=out) == 0
        assert "has predictions of 1 of the 4 clips of tone" in caplog.text
        tone = read_result(out)["tasks"]["tone"]
        assert tone["failures"] == {"missing": 3}
        assert "1 answers end at the limit of tokens (finish_reason length)" in tone["notes"]

    def test_all_tasks_of_a_folder_and_what_cannot_be_scored_is_told(self, qa, tmp_path, caplog):
        folder = tmp_path / "said"
        folder.mkdir()
        write_lines(folder / "tone.jsonl", [{"video_id": "c1", "predict": "neutral"}])
        write_lines(folder / "caption.jsonl", [{"video_id": "c1", "caption": "A caption."}])
        write_lines(folder / "notes.jsonl", [{"a": 1}])
        out = tmp_path / "result.json"
        assert run(qa=qa, predictions=folder, output=out) == 0
        result = read_result(out)
        assert list(result["tasks"]) == ["tone"]
        assert "judge" in result["unscored"]["final_caption"]
        assert "no predictions" in result["unscored"]["ocr"]
        assert "notes.jsonl" in caplog.text
        assert result["average"] is None

    def test_ocr_counts_an_empty_text_as_the_release_does(self, qa, tmp_path):
        said = write_lines(
            tmp_path / "said.jsonl",
            [
                {"video_id": "c0", "predict_ocr": {"ocr": ["Hello world"]}},
                {"video_id": "c1", "predict_ocr": ""},
            ],
        )
        task = {}
        for normalisation in ("raw", "cleaned"):
            out = tmp_path / f"{normalisation}.json"
            settings = dict(ocr_normalisation=normalisation, output=out)
            assert run(qa=qa, task="ocr", predictions=said, **settings) == 0
            task[normalisation] = read_result(out)["tasks"]["ocr"]
        assert (task["raw"]["n"], task["raw"]["score"]) == (2, 0.5)
        assert "1 empty answers count as 0, as in the release" in task["raw"]["notes"]
        assert (task["cleaned"]["n"], task["cleaned"]["score"]) == (1, 1.0)
        assert task["cleaned"]["protocol"] == {"normalisation": "cleaned"}

    def test_world(self, tmp_path):
        attributes = {name: values[0] for name, values in world.VALUES.items()}
        rows = [
            {"videos": [f"test/{i}.mp4"], "messages": [], "attributes": attributes}
            for i in range(2)
        ]
        manifest = write_lines(tmp_path / "test.jsonl", rows)
        right = world.write_caption(attributes, 0)
        wrong = world.write_caption(attributes | {"colour": world.VALUES["colour"][1]}, 0)
        said = [{"video": "x/0.mp4", "caption": right}, {"video": "x/1.mp4", "caption": wrong}]
        predictions = write_lines(tmp_path / "said.jsonl", said)
        out = tmp_path / "result.json"
        assert run(qa=manifest, predictions=predictions, output=out) == 0
        result = read_result(out)
        task = result["tasks"]["world"]
        assert task["score"] == pytest.approx(95)
        assert (task["all_right"], task["audio"], task["visual"]) == (50, 100, 90)
        assert task["attributes"]["colour"] == 50
        assert "colour" in by_id(result, "world")["1"]["note"]
        assert result["benchmark"] == "world"


class TestAsking:
    def test_a_model_is_asked_and_its_answers_are_scored(
        self, qa, clips, tiny_captioner, tiny_checkpoint, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(Captioner, "from_pretrained", lambda *args, **kwargs: tiny_captioner)
        videos = tmp_path / "videos"
        videos.mkdir()
        shutil.copy(clips / "a.mp4", videos / "c0.mp4")
        shutil.copy(clips / "broken.mp4", videos / "c1.mp4")
        small = dict(frames=4, min_pixels=784, max_pixels=12544, max_new_tokens=4)
        asked = {"ask__checkpoint": tiny_checkpoint, "ask__videos": videos}
        settings = asked | {f"ask__{key}": value for key, value in small.items()}
        out = tmp_path / "result.json"
        assert run(qa=qa, task="tone,ocr", output=out, **settings) == 0
        result = read_result(out)
        for task in ("tone", "ocr"):
            facts = result["tasks"][task]
            assert (facts["n"], facts["failures"]) == (1, {"error": 1, "missing": 2})
        assert result["name"] == str(tiny_checkpoint)
        assert result["asked"]["clip"]["frames"] == 4
        assert "Options: Positive" in result["asked"]["questions"]["tone"]
        with pytest.raises(UserError, match="frames"):
            run(qa=qa, task="tone", output=out, **settings | {"ask__frames": 6})


class TestJudge:
    def settings(self, server, **more):
        return {"judge__base_url": server.url, "judge__model": "m", "judge__backoff": 0.01} | more

    def test_second_run_asks_nothing(self, qa, tmp_path):
        said = write_lines(
            tmp_path / "said.jsonl",
            [{"video_id": f"c{i}", "caption": f"caption {i}"} for i in range(3)],
        )
        server = FakeJudge(lambda question: {"visual": 5, "audio": 4, "details": 3})
        out = tmp_path / "result.json"
        settings = self.settings(server, qa=qa, task="caption", predictions=said, output=out)
        try:
            assert run(**settings) == 0
            first, asked = read_result(out), len(server.requests)
            assert run(**settings) == 0
        finally:
            server.stop()
        assert asked == len(server.requests) == 3
        second = read_result(out)
        assert first["tasks"] == second["tasks"]
        assert second["judge"]["usage"]["cached"] == 3
        task = second["tasks"]["final_caption"]
        assert [task[c] for c in ("score", "visual", "audio", "details")] == [80, 100, 80, 60]
        assert (task["n"], task["failures"]) == (3, {"missing": 1})
        assert (task["protocol"]["judge"], task["protocol"]["temperature"]) == ("m", 0.0)
        assert task["protocol"]["prompt"].startswith("own wording ")

    def test_the_judge_gets_captions_only(self, qa, tmp_path):
        """No thinking, no refusal, nothing that is no text."""
        refusal = "I'm sorry, but I can't assist with that request."
        captions = ["<think>A cat?</think>A dog.", refusal, "<think>A cat. A", float("nan")]
        rows = [{"video_id": f"c{i}", "caption": text} for i, text in enumerate(captions)]
        said, out = write_lines(tmp_path / "said.jsonl", rows), tmp_path / "result.json"
        server = FakeJudge(lambda question: {"visual": 5, "audio": 5, "details": 5})
        settings = self.settings(server, qa=qa, task="caption", predictions=said, output=out)
        try:
            assert run(**settings) == 0
        finally:
            server.stop()
        (question,) = server.questions
        assert "A dog." in question
        assert "cat" not in question
        task = read_result(out)["tasks"]["final_caption"]
        assert task["failures"] == {"refusal": 1, "cut off": 1, "NaN": 1}
        assert (task["n"], task["score"]) == (1, 100)

    def test_a_redirect_to_another_host_ends_the_run(self, qa, tmp_path):
        said = write_lines(tmp_path / "said.jsonl", [{"video_id": "c0", "caption": "A dog."}])
        server, other = FakeJudge(), FakeJudge()
        server.script = [Reply(status=307, headers={"Location": f"{other.url}/chat/completions"})]
        out = tmp_path / "out.json"
        settings = self.settings(server, qa=qa, task="caption", predictions=said, output=out)
        try:
            with pytest.raises(UserError, match="captions are not sent to another host") as caught:
                run(**settings)
        finally:
            server.stop()
            other.stop()
        assert "\n" not in str(caught.value)
        assert not other.requests

    def test_a_clip_without_an_answer_is_no_zero(self, qa, tmp_path):
        said = write_lines(
            tmp_path / "said.jsonl",
            [{"video_id": f"c{i}", "caption": f"caption {i}"} for i in range(2)],
        )

        def answer(question):
            return "no idea" if "caption 1" in question else dict(visual=5, audio=5, details=5)

        server = FakeJudge(answer)
        out = tmp_path / "result.json"
        settings = self.settings(server, qa=qa, task="caption", predictions=said, output=out)
        try:
            assert run(**settings) == 0
        finally:
            server.stop()
        task = read_result(out)["tasks"]["final_caption"]
        assert (task["score"], task["n"]) == (100, 1)
        assert task["failures"] == {"judge": 1, "missing": 2}


class TestScores:
    def test_with_references_and_captions(self, qa, tmp_path):
        ratings = {f"c{i}": {"visual": 5, "audio": 4, "details": 3} for i in (0, 1, 7)}
        scores = tmp_path / "scores.json"
        scores.write_text(json.dumps(ratings))
        said = write_lines(tmp_path / "said.jsonl", [{"video_id": "c0", "caption": "A caption."}])
        out = tmp_path / "result.json"
        assert run(scores=scores, qa=qa, predictions=said, output=out) == 0
        result = read_result(out)
        task = result["tasks"]["final_caption"]
        assert (task["score"], task["n"], task["failed"]) == (80, 3, 2)
        assert any("1 rated" in note for note in task["notes"])
        clip = by_id(result, "final_caption")["c0"]
        assert (clip["reference"], clip["prediction"]) == ("reference 0", "A caption.")

    def test_published_figures(self, shared_data, tmp_path):
        released = shared_data / "ugc_videocap"
        figures = {
            "omni_baseline": (52.18, 55.7, 48.2, 52.6),
            "1k_sft": (58.96, 58.4, 61.4, 57.1),
            "UGC_Videocaptioner": (60.01, 59.4, 62.4, 58.3),
        }
        for name, (score, *columns) in figures.items():
            out = tmp_path / f"{name}.json"
            path = released / f"results/caption_score/{name}_4o.json"
            assert run(scores=path, output=out) == 0
            task = read_result(out)["tasks"]["final_caption"]
            assert task["score"] == pytest.approx(score, abs=0.005)
            said = [task[column] for column in ("visual", "audio", "details")]
            assert said == pytest.approx(columns, abs=0.05)
            assert task["interval"][0] < score < task["interval"][1]


class TestMistakes:
    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({}, "nothing to score"),
            ({"predictions": "p.jsonl"}, "qa=DIR is needed"),
            ({"predictions": "p", "ask__checkpoint": "c", "ask__videos": "v"}, "one or the other"),
            ({"predictions": "p.jsonl", "qa": "QA"}, "is one file for 3 tasks"),
            ({"predictions": "none.jsonl", "qa": "QA", "task": "tone"}, "none.jsonl"),
            ({"predictions": "p.jsonl", "qa": "QA", "task": "tune"}, "tune"),
            ({"scores": "s.json", "task": "caption,tone"}, "one task"),
            ({"scores": "s.json", "judge__model": "m"}, "one or the other"),
            ({"scores": "s.json", "judge__prompt": "p.txt"}, "judging.prompt needs judge.model"),
            ({"ask__checkpoint": "c", "qa": "QA"}, "ask.videos"),
        ],
    )
    def test_one_line(self, qa, tmp_path, monkeypatch, settings, said):
        monkeypatch.chdir(tmp_path)
        write_lines(tmp_path / "p.jsonl", [{"video_id": "c0", "predict": "neutral"}])
        settings = {key: qa if value == "QA" else value for key, value in settings.items()}
        with pytest.raises(UserError, match=said) as caught:
            run(output="out.json", **settings)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out.json").exists()

    def test_inputs_are_not_overwritten(self, qa, tmp_path):
        said = write_lines(tmp_path / "p.json", [{"video_id": "c0", "predict": "neutral"}])
        other = write_lines(tmp_path / "notes.json", ["mine"])
        for output in (said, other):
            before = output.read_text()
            with pytest.raises(UserError, match="choose another output"):
                run(qa=qa, task="tone", predictions=said, output=output)
            assert output.read_text() == before

    def test_judged_task_without_a_judge(self, qa, tmp_path):
        said = write_lines(tmp_path / "p.jsonl", [{"video_id": "c0", "caption": "A caption."}])
        with pytest.raises(UserError, match="judge.model"):
            run(qa=qa, task="caption", predictions=said, output=tmp_path / "out.json")
