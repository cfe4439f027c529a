"""The examples of the public API, in its docstrings and docs/python.md, as they are written.

They run in a folder that has what they name.
"""

import doctest
import re
import textwrap
from pathlib import Path

import jax
import pytest

import ugc_jax
from ugc_jax import files, sharding
from ugc_jax.toy import world

EXAMPLES = {
    "sft": ugc_jax.sft,
    "grpo": ugc_jax.grpo,
    "evaluate": ugc_jax.evaluate,
    "compare": ugc_jax.compare,
    "Clip": ugc_jax.Clip,
    "caption": ugc_jax.Captioner.caption,
    "stream": ugc_jax.Captioner.stream,
    "stream_text": ugc_jax.Captioner.stream_text,
}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda **_: mesh)
        yield


@pytest.fixture(scope="module")
def folder(clips, tiny_checkpoint, tmp_path_factory):
    """clip.mp4 and clips/, the tiny checkpoint as tiny/, a world of one clip."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "clip.mp4").symlink_to(clips / "a.mp4")
    (folder / "clips").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / "clips" / name).symlink_to(clips / name)
    (folder / "tiny").symlink_to(tiny_checkpoint)
    (folder / "world" / "test").mkdir(parents=True)
    row = world.write_example("test", 0, settings=world.WorldSettings(), folder=folder / "world")
    (folder / "world" / "test.jsonl").write_text(f"{files.to_json(row)}\n")
    return folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_docstring(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    finder = doctest.DocTestFinder(recurse=False)
    (test,) = finder.find(EXAMPLES[name], name, globs={"ugc_jax": ugc_jax})
    assert test.examples
    results = doctest.DocTestRunner().run(test)
    assert results.failed == 0


PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


def test_the_examples_of_the_page(folder, monkeypatch, capsys):
    """Its blocks, one after the other, as in a notebook."""
    monkeypatch.chdir(folder)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 7
    names: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(textwrap.dedent(block), f"block {number} of {PAGE.name}", "exec"), names)
    shown = capsys.readouterr().out
    assert "world" in shown
    assert names["run"].metrics["loss"].steps.tolist() == [1, 2]
    assert names["trained"].metrics["rewards/brief/mean"].steps.tolist() == [1]
    assert [result.error for result in names["results"]] == [None] * 3
    assert {piece.video for piece in names["pieces"]} == {"clip.mp4"}
    assert names["comparison"].against["mine"]["world"]["score"].n == 1
