"""Evidence in the jobs: lines of caption, and captions of any model in evaluate."""

import json

import numpy as np
import pytest
from fake_judge import FakeJudge, fair

from ugc_jax import cli
from ugc_jax.errors import UserError
from ugc_jax.evals.compare import compare_results, comparison_table
from ugc_jax.evals.summary import result_table
from ugc_jax.generate import captioner
from ugc_jax.generate.evidence import VERDICTS
from ugc_jax.report.tables import score_table

FEW = ("--fps=1", "--max_pixels=12544", "--min_pixels=784", "--workers=1")


def test_lines_of_caption_have_evidence(tiny_checkpoint, clips, tmp_path):
    out = tmp_path / "out.jsonl"
    command = ["caption", "--checkpoint", str(tiny_checkpoint), "--output", str(out)]
    command += [*FEW, "--max_new_tokens=8"]
    names = [str(clips / "a.mp4"), str(clips / "broken.mp4")]
    assert cli.run([*command, "--evidence", *names]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    told = {"error" in line: line for line in lines}
    evidence = told[False]["evidence"]
    text = told[False]["caption"]
    assert [text[word["start"] : word["end"]] for word in evidence["words"]] == [
        word["word"] for word in evidence["words"]
    ]
    assert {word["verdict"] for word in evidence["words"]} <= {*VERDICTS}
    assert sum(evidence["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert "evidence" not in told[True]
    # lines with and without do not mix
    with pytest.raises(UserError, match="was made with evidence.words True, not False"):
        cli.run([*command, names[0]])


def test_evaluate_explains_captions_of_any_model(tiny_checkpoint, clips, tmp_path, capsys):
    from ugc_jax.toy import world

    attributes = {name: values[0] for name, values in world.VALUES.items()}
    rows = [{"videos": [f"{name}.mp4"], "messages": [], "attributes": attributes} for name in "abz"]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = [{"video_id": name, "caption": "A red circle moves."} for name in "abz"]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    out = tmp_path / "result.json"
    command = ["evaluate", "--qa", str(tmp_path / "test.jsonl"), "--output", str(out)]
    command += ["--predictions", str(tmp_path / "said.jsonl"), "--engine.workers=1"]
    command += ["--explain.checkpoint", str(tiny_checkpoint), "--explain.videos", str(clips)]
    assert cli.run(command) == 0
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    told = result["tasks"]["world"]["evidence"]
    figures = f"{told['heard']:.1f} / {told['seen']:.1f} / {told['unsupported']:.1f}"
    lines = printed.splitlines()
    place = next(n for n, line in enumerate(lines) if line.endswith("seen / unsupported, %"))
    head, line = lines[place : place + 2]
    assert line.index(figures) == head.index("heard / seen")
    assert f"evidence by {tiny_checkpoint} in 2 captions, 1 without a clip" in printed
    # in a comparison, and in the table of the page
    result["name"], other = "ours", json.loads(out.read_text()) | {"name": "theirs"}
    shares = other["clips"]["world"][0]["evidence"]["shares"]
    shares["unsupported"] += 0.25
    compared = compare_results([result, other])["against"][0]["tasks"]["world"]
    assert compared["unsupported"]["difference"] == pytest.approx(12.5)
    assert (compared["unsupported"]["losses"], compared["unsupported"]["ties"]) == (1, 1)
    assert f"heard / seen / unsupported, %: {figures} in ours" in comparison_table(
        compare_results([result, other])
    )
    table = score_table([(0, "ours", result)], {})
    assert table["fields"][-1] == "words heard / seen / unsupported, %"
    assert table["rows"][0][2][-1].text == figures
    assert (told["n"], told["missing"]) == (2, 1)
    assert sum(told[verdict] for verdict in VERDICTS) == pytest.approx(100, abs=0.1)
    clip = result["clips"]["world"][0]
    assert [word["word"] for word in clip["evidence"]["words"]] == ["A", "red", "circle", "moves"]
    with pytest.raises(UserError, match=r"explain.videos: .* is not a folder"):
        cli.run([*command[:-1], str(tmp_path / "none")])


CAPTION = "A red circle moves."


def said_of(folder, ids):
    """A file of predictions: the same caption of each clip."""
    said = folder / "said.jsonl"
    said.write_text("".join(json.dumps({"video_id": i, "caption": CAPTION}) + "\n" for i in ids))
    return str(said)


@pytest.fixture
def judged(tiny_checkpoint, clips, tmp_path):
    """A function: (further words, answer of the judge, folder of the clips) -> result."""
    pytest.importorskip("openai")
    servers = []

    def run(words, answer, videos=clips):
        servers.append(server := FakeJudge(answer))
        out = tmp_path / "judged.json"
        out.unlink(missing_ok=True)
        words = ["evaluate", "--output", str(out), *words, "--engine.workers=1"]
        words += ["--judge.model=one", "--judge.base_url", server.url, "--judge.backoff=0.01"]
        words += ["--judge.cache", str(tmp_path / f"cache{len(servers)}.jsonl")]
        words += ["--explain.checkpoint", str(tiny_checkpoint), "--explain.videos", str(videos)]
        assert cli.run(words) == 0
        return json.loads(out.read_text())

    run.servers = servers
    yield run
    for server in servers:
        server.stop()


def test_evidence_of_captions_that_are_scored_by_units(judged, tmp_path):
    """Beside the ratings of the same captions, and a clip that cannot be read is named."""
    samples = [{"video_id": name, "answer": "A dog runs."} for name in ("a", "b", "broken")]
    qa = tmp_path / "final_caption_qa.json"
    qa.write_text(json.dumps({"question": "Describe.", "valid_count": 3, "samples": samples}))
    said = said_of(tmp_path, ("a", "b", "broken"))
    words = ["--qa", str(qa), "--task=final_caption", "--predictions", said, "--judge.form=both"]

    def answer(question):
        if '"units"' in question:
            return {"units": [{"text": "A dog runs", "kind": "visual"}]}
        ratings = {"visual": 5, "audio": 4, "details": 3}
        return ratings if '"details"' in question else {"1": "missed"}

    result = judged(words, answer)
    for task in ("final_caption", "final_caption_units"):
        told = result["tasks"][task]["evidence"]
        assert (told["n"], told["missing"], told["failed"]) == (2, 0, 1)
        assert "broken.mp4: " in told["error"]
        first, _, broken = result["clips"][task]
        assert [word["word"] for word in first["evidence"]["words"]] == CAPTION[:-1].split()
        assert "evidence" not in broken
    assert "in 2 captions, 1 not explained (" in result_table(result)


def test_evidence_of_captions_of_a_benchmark(judged, tmp_path):
    """A caption with two questions is explained once and shown at both."""
    asked = [("a", "Which?"), ("a", "Why?"), ("z", "Who?")]
    choices = {"Choice": ["red", "blue"], "Answer": "A"}
    rows = [{"id": video, "Question": question, **choices} for video, question in asked]
    (tmp_path / "qa.json").write_text(json.dumps(rows))
    words = ["--benchmark=daily-omni", "--benchmark_data", str(tmp_path), "--map=video=id"]
    words += ["--predictions", said_of(tmp_path, ("a", "z"))]
    result = judged(words, lambda question: {"answer": "A"})
    told = result["tasks"]["daily_omni"]["evidence"]
    assert (told["n"], told["missing"], told["failed"]) == (1, 1, 0)
    first, second, other = result["clips"]["daily_omni"]
    assert first["evidence"] == second["evidence"]
    assert "evidence" not in other


def test_clips_to_explain_are_looked_for_before_the_judge_is_asked(judged, tmp_path, clips):
    samples = [{"video_id": "nowhere", "answer": "A dog runs."}]
    qa = tmp_path / "final_caption_qa.json"
    qa.write_text(json.dumps({"question": "Describe.", "valid_count": 1, "samples": samples}))
    words = ["--qa", str(qa), "--task=final_caption"]
    words += ["--predictions", said_of(tmp_path, ["nowhere"])]
    with pytest.raises(UserError, match="has none of the 1 clips whose captions are to be"):
        judged(words, fair)
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("nowhere.mp4", "nowhere.mov"):
        (twice / name).write_bytes((clips / "a.mp4").read_bytes())
    with pytest.raises(UserError, match="has the same id as"):
        judged(words, fair, twice)
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"nowhere": {"visual": 4, "audio": 3, "details": 4}}))
    assert not any(server.requests for server in judged.servers)
    command = ["evaluate", "--output", str(tmp_path / "o.json"), "--scores", str(scores)]
    with pytest.raises(UserError, match="there are no captions to explain"):
        cli.run([*command, "--explain.checkpoint=x", "--explain.videos", str(clips)])


def test_captions_are_explained_with_what_they_were_asked_with(
    tiny_checkpoint, tiny_captioner, clips, tmp_path, monkeypatch
):
    """Without sound, with the task's own question; and each caption as `Captioner` explains it."""
    rows = [{"video_id": name, "ground_truth": "A", "answer": "A dog runs."} for name in ("a", "b")]
    qa = tmp_path / "final_caption_qa.json"
    qa.write_text(json.dumps({"question": "Say it.", "valid_count": 2, "samples": rows}))
    calls, explain = [], captioner.Captioner.explain

    def listen(self, videos, texts, **options):
        calls.append(options)
        return explain(self, videos, texts, **options)

    monkeypatch.setattr(captioner.Captioner, "explain", listen)
    out = tmp_path / "out.json"
    server = FakeJudge(lambda question: {"visual": 5, "audio": 4, "details": 3})
    words = ["evaluate", "--qa", str(qa), "--task=final_caption", "--output", str(out), *FEW]
    words += ["--judge.model=one", "--judge.base_url", server.url, "--max_new_tokens=6"]
    words += ["--audio=false", "--end=1"]
    for job in ("ask", "explain"):
        words += [f"--{job}.checkpoint", str(tiny_checkpoint), f"--{job}.videos", str(clips)]
    try:
        assert cli.run(words) == 0
    finally:
        server.stop()
    (options,) = calls
    assert options["question"] == ["Say it.", "Say it."]
    assert (options["audio"], options["end"], options["fps"]) == (False, 1, 1)
    for clip in json.loads(out.read_text())["clips"]["final_caption"]:
        words = clip["evidence"]["words"]
        for word in words:  # without sound, to hide it changes nothing
            full, no_sound, no_picture, neither = word["logprobs"]
            assert full == pytest.approx(no_sound, abs=2e-3)
            assert no_picture == pytest.approx(neither, abs=2e-3)
        video = str(clips / f"{clip['id']}.mp4")
        few = dict(fps=1, max_pixels=12544, min_pixels=784, audio=False, end=1, question="Say it.")
        (one,) = explain(tiny_captioner, [video], [clip["prediction"]], **few)
        for word, same in zip(words, one.words, strict=True):
            np.testing.assert_allclose(word["logprobs"], same.logprobs, atol=2e-3)


def test_captions_with_evidence_are_read_and_encoded_once(tiny_captioner, clips, monkeypatch):
    """And the evidence is that of captions that are given, whose clips are read anew."""
    engine, read, encoded = tiny_captioner.engine, [], []
    questions, encode = captioner.read_questions, engine.encode

    def reading(some, *rest, **more):
        read.extend(given.name for given, _ in some)
        return questions(some, *rest, **more)

    def encoding(params, batch):
        encoded.append(int((np.asarray(batch.segment_ids) > 0).any(axis=1).sum()))
        return encode(params, batch)

    monkeypatch.setattr(captioner, "read_questions", reading)
    monkeypatch.setattr(engine, "encode", encoding)
    files = [str(clips / name) for name in ("a.mp4", "b.mp4", "broken.mp4", "silent.mp4")]
    few = dict(fps=1, max_pixels=12544, min_pixels=784, max_new_tokens=6)
    own = tiny_captioner.explain(files, **few)
    assert (read, sum(encoded)) == (files, 3)  # one is broken
    plain = tiny_captioner.caption(files, **few)
    given = tiny_captioner.explain(files, [one.caption or "" for one in plain], **few)
    for one, other in zip(own, given, strict=True):
        assert (one.text, one.error) == (other.text, other.error) or "broken" in one.video
        for word, same in zip(one.words, other.words, strict=True):
            np.testing.assert_allclose(word.logprobs, same.logprobs, atol=1e-4)
    assert "broken.mp4" in own[2].error
