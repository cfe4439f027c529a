"""docs/notebooks: committed without outputs, and executed on the tiny world."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "docs/notebooks").glob("*.ipynb"))

CAPTION = """
CLIPS, CHECKPOINT, QA = "world/test", "tiny", "world/test.jsonl"
OPTIONS = {"max_new_tokens": 8, "fps": 2}
"""
TUNE = """
TRAIN, EVAL, CHECKPOINT = "world/train.jsonl", "world/test.jsonl", "tiny"
trainable = {"vision": True, "audio": True, "projector": True}
small = {"trainable": trainable, "batch_size": 2, "tokens": 512, "loop": {"log_every": 1}}
SFT = small | {"steps": 4, "max_new_tokens": 8}
GRPO = small | {"steps": 2, "samples": 2, "max_new_tokens": 8, "grpo": {"mask_truncated": False}}
EXTRACT, CLIP, OUTPUT = {"config": "world"}, "world/test/000000.mp4", "runs/notebook"
"""
PARAMETERS = {"caption_and_evaluate": CAPTION, "fine_tune": TUNE}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in code] == [[]] * len(code)
    assert [cell["metadata"]["tags"] for cell in code[:2]] == [["install"], ["parameters"]]
    assert "tpu" in "".join(code[0]["source"])


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, tiny_checkpoint, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    from ugc_jax import cli

    world = ["--output", str(tmp_path / "world"), "--train", "4", "--test", "3"]
    assert cli.run(["world", *world, "--workers", "1"]) == 0
    (tmp_path / "tiny").symlink_to(tiny_checkpoint)
    notebook = nbformat.read(path, as_version=4)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source = PARAMETERS[path.stem]
    monkeypatch.setenv("XLA_FLAGS", "")
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    text = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    expected = {
        "caption_and_evaluate": "first sentence",
        "fine_tune": "to use it:  ugc-jax caption --checkpoint runs/notebook/grpo/model",
    }
    assert expected[path.stem] in text
