"""Evidence in the jobs: lines of caption, and captions of any model in evaluate."""

import json

import pytest

from ugc_jax import cli
from ugc_jax.errors import UserError
from ugc_jax.generate.evidence import VERDICTS

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
    assert "words heard" in capsys.readouterr().out
    result = json.loads(out.read_text())
    told = result["tasks"]["world"]["evidence"]
    assert (told["n"], told["missing"]) == (2, 1)
    assert sum(told[verdict] for verdict in VERDICTS) == pytest.approx(100, abs=0.1)
    clip = result["clips"]["world"][0]
    assert [word["word"] for word in clip["evidence"]["words"]] == ["A", "red", "circle", "moves"]
    with pytest.raises(UserError, match=r"explain.videos: .* is not a folder"):
        cli.run([*command[:-1], str(tmp_path / "none")])
