"""ugc-jax push through the hub's real client, to a hub on this machine."""

import json
import shutil

import fake_hub
import fake_results
import pytest
from huggingface_hub import ModelCard, constants

from ugc_jax import cli
from ugc_jax.errors import UserError
from ugc_jax.hf.card import END
from ugc_jax.hf.trained import Trained, write_trained
from ugc_jax.media.presets import ClipSettings, resolve

TRAINING = {
    "ugc_jax": "0.1.0",
    "kind": "grpo",
    "base": {
        "model": "Qwen/Qwen2.5-Omni-3B",
        "name": "Qwen/Qwen2.5-Omni-3B",
        "license": {"license": "other", "license_name": "some-terms"},
    },
    "before": [{"kind": "sft", "data": ["sft_1k"]}],
    "data": [{"name": "grpo_1k", "records": 9, "sources": {"a|b <": 9}, "licenses": {"cc0": 9}}],
    "settings": {"loop.steps": 7},
}


@pytest.fixture(scope="module")
def server():
    with fake_hub.running() as server:
        yield server


@pytest.fixture
def hub(server, monkeypatch):
    """The hub, empty, with a client that knows it and has the right token."""
    server.repos.clear()
    server.objects.clear()
    server.received.clear()
    server.break_after = None
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the LFS protocol
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    return server


@pytest.fixture
def run(tiny_checkpoint, tmp_path):
    """The output of a finished run."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copytree(tiny_checkpoint, run / "model")
    write_trained(run / "model", Trained(resolve(ClipSettings()), {}, TRAINING))
    return run


def push(run, *words) -> int:
    return cli.run(["push", str(run), "--repo", "ann/mine", *words])


def read(folder) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_run_is_there_as_it_is_here_and_private(hub, run, capsys):
    (run / "model" / ".hidden").write_text("no")
    assert push(run) == 0
    repo = hub.repos["ann/mine"]
    assert repo["private"] is True
    (run / "model" / ".hidden").unlink()
    assert repo["files"] == read(run / "model")
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} < repo[
        "files"
    ].keys()
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.url}/ann/mine/commit/{'2' * 40}"


def test_the_card(hub, run):
    result = fake_results.captions("mine", [(4, 3, 5), (2, 2, 2), None])
    (run / "results").mkdir()
    (run / "results" / "old.json").write_text(json.dumps(result))
    (run / "results" / "new.json").write_text(
        json.dumps(result | {"created": "2999-01-01T00:00:00Z"})
    )
    assert push(run, "--private=false") == 0
    assert hub.repos["ann/mine"]["private"] is False
    text = hub.repos["ann/mine"]["files"]["README.md"].decode()
    assert hub.cards[-1] == text  # the hub's own check of it was asked
    data = ModelCard(text).data
    assert data.base_model == "Qwen/Qwen2.5-Omni-3B"
    assert (data.license, data.license_name) == ("other", "some-terms")
    assert (data.library_name, data.pipeline_tag) == ("ugc_jax", "video-text-to-text")
    assert {"sft", "grpo", "video", "audio"} < set(data.tags)
    assert "# mine\n" in text
    assert "ugc-jax caption --checkpoint ann/mine clip.mp4" in text
    assert "trained by supervised fine-tuning (SFT), then by rewards of its own" in text
    assert "| grpo_1k | 9 | a\\|b &lt; (9) | cc0 (9) |" in text
    assert "2999-01-01" in text
    assert "2026-11-23" not in text  # a result of earlier weights
    task = result["tasks"]["final_caption"]
    low, high = task["interval"]
    row = f"| final_caption | {task['score']:.2f} | {low:.2f} to {high:.2f} | 2 | 1 |"
    assert row in text
    assert "| `loop.steps` | 7 |" in text
    assert "under some-terms, as those of [Qwen/Qwen2.5-Omni-3B]" in text
    assert str(run) not in text


def test_scores_that_are_named_and_another_licence(hub, run, tmp_path):
    result = fake_results.captions("mine", [(4, 3, 5), (2, 2, 2)])
    (tmp_path / "a.json").write_text(json.dumps(result))
    push(run, "--scores", str(tmp_path / "a.json"), "--license", "mit")
    text = hub.repos["ann/mine"]["files"]["README.md"].decode()
    assert "2026-11-23" in text
    assert ModelCard(text).data.license == "mit"


def test_own_text_stays_and_a_card_of_others_is_sent_as_it_is(hub, run, capsys):
    push(run)
    path = run / "model" / "README.md"
    path.write_text(path.read_text() + "\nThanks to all.\n")
    push(run, "--license", "mit")
    text = hub.repos["ann/mine"]["files"]["README.md"].decode()
    assert text.endswith(f"{END}\n\nThanks to all.\n")
    assert 'license: "mit"' in text
    path.write_text("# theirs\n")
    capsys.readouterr()
    push(run)
    assert f"{path}: was not written by ugc_jax; it is sent as it is" in capsys.readouterr().err
    assert hub.repos["ann/mine"]["files"]["README.md"] == b"# theirs\n"


def test_what_is_there_is_not_sent_again(hub, run):
    push(run)
    sent = len(hub.received)
    assert sent > 0
    push(run)
    assert len(hub.received) == sent


def test_an_interrupted_push_goes_on_where_it_was(hub, run):
    names = [one for one in (run / "model").iterdir() if one.stat().st_size > fake_hub.LFS_BYTES]
    assert len(names) >= 2
    hub.break_after = 1
    with pytest.raises(UserError, match="^ann/mine: the hub refuses it"):
        push(run)
    assert hub.repos["ann/mine"]["files"] == {}  # nobody sees a half of it
    assert len(hub.received) == 1
    hub.break_after = None
    push(run)
    assert len(hub.received) == len(names)  # each once
    assert hub.repos["ann/mine"]["files"] == read(run / "model")


def test_weights_that_others_replace_are_removed(hub, run):
    push(run)
    files = hub.repos["ann/mine"]["files"]
    files["model-00001-of-00002.safetensors"] = files["other.safetensors"] = b"x"
    push(run, "--message", "again", "--license", "mit")
    assert "model-00001-of-00002.safetensors" not in files
    assert "other.safetensors" in files


def test_a_dry_run_lists_files_and_asks_nobody(hub, run, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert push(run, "--dry_run") == 0
    assert hub.repos == {}
    assert not (run / "model" / "README.md").exists()
    out, err = capsys.readouterr()
    assert "names no licence" not in err  # the card has that of its base
    *lines, total = out.splitlines()
    names = sorted([*read(run / "model"), "README.md"])
    assert sorted(line.split()[2] for line in lines) == names
    size = (run / "model" / "model.safetensors").stat().st_size / 1e6
    assert f"{size:12.3f} MB  model.safetensors" in lines
    assert total.endswith(f"{len(names)} files to ann/mine (private, if new)")


def test_an_adapter_names_its_base(hub, run):
    adapter = run / "adapter"
    adapter.mkdir()
    shutil.copy(run / "model" / "model.safetensors", adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/me/base"}')
    write_trained(adapter, Trained(resolve(ClipSettings()), {}, TRAINING))
    push(run, "--which", "adapter")
    files = hub.repos["ann/mine"]["files"]
    config = json.loads(files["adapter_config.json"])
    assert config == {"base_model_name_or_path": "Qwen/Qwen2.5-Omni-3B"}
    data = ModelCard(files["README.md"].decode()).data
    assert data.base_model_relation == "adapter"
    assert "lora" in data.tags
    assert b"--adapter adapter" in files["README.md"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: shutil.rmtree(run), "no such folder; name a run"),
        (lambda run: shutil.rmtree(run / "model"), "has not come to its end"),
        (lambda run: cut(run / "model/model.safetensors"), "model.safetensors: "),
        (lambda run: (run / "model/model.safetensors").unlink(), "neither model.safetensors nor"),
        (lambda run: (run / "model/tokenizer.json").unlink(), "has no tokenizer.json; copy that"),
        (lambda run: (run / "model/config.json").unlink(), r"config.json: no such file"),
    ],
)
def test_what_nobody_could_load_is_refused(hub, run, spoil, message):
    for name in ("vocab.json", "merges.txt"):
        (run / "model" / name).unlink(missing_ok=True)
    spoil(run)
    with pytest.raises(UserError, match=message) as caught:
        push(run)
    assert "\n" not in str(caught.value)
    assert hub.repos == {}


def test_no_token_a_wrong_one_and_another_owner(hub, run, monkeypatch):
    with pytest.raises(UserError, match="^bob/mine: the token may not write to bob; use a token"):
        push(run, "--repo", "bob/mine")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="^ann/mine: the hub refuses the token; run hf auth login"):
        push(run)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="a token with write access; run hf auth login, or set HF"):
        push(run)
    with pytest.raises(UserError, match="repo: 'mine' is not a name on the hub; write it as USER/"):
        push(run, "--repo", "mine")
    assert hub.repos == {}


def test_a_hub_that_is_not_there(run, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    with pytest.raises(UserError, match="check the network, then push again: what was sent stays"):
        push(run)
