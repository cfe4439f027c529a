"""Evidence in the jobs: lines of caption, and captions of any model in evaluate."""

import json

import numpy as np
import pytest

from ugc_jax import cli
from ugc_jax.errors import UserError
from ugc_jax.evals.compare import compare_results, comparison_table
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
