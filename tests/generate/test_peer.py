"""ugc_jax.generate.peer, vllm_peer: the protocol, with a module in vLLM's place, and failures."""

import os
import sys

import cases
import fake_vllm
import numpy as np
import pytest

from ugc_jax.errors import UserError
from ugc_jax.generate import benchmark, mixed, vllm_peer
from ugc_jax.generate.benchmark import Workload, noise
from ugc_jax.generate.mixed import MixedWorkload
from ugc_jax.generate.peer import Answer, Peer, by_peer, write_prompts
from ugc_jax.hf.config import load_config
from ugc_jax.models.qwen2_5_omni.config import tiny

CONFIG = cases.fewer_layers(tiny())
TEXT = Workload(batch_size=3, frames=0, seconds=0, text_tokens=9)
CLIP = Workload(batch_size=2, frames=2, height=56, width=84, seconds=1.5)


@pytest.fixture
def python(tmp_path, monkeypatch):
    """A Python that imports the fake vLLM."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "vllm.py").write_text(fake_vllm.SOURCE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"), prepend=os.pathsep)
    return sys.executable


@pytest.fixture
def script(tmp_path):
    """`script(code)` -> an executable that runs the code in place of vllm_peer.py."""

    def write(code):
        path = tmp_path / "python"
        (tmp_path / "code.py").write_text(f"import sys, json\n{code}\n")
        # by a shell: the path of this Python may have a space
        path.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{tmp_path / 'code.py'}' \"$@\"\n")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def connect(tiny_checkpoint, tmp_path):
    """`connect(python, prompts)` -> Peer."""
    (tmp_path / "files").mkdir()
    return lambda python, prompts: Peer(
        python, tiny_checkpoint, "float32", CONFIG, prompts, 60, tmp_path / "files"
    )


def fake_tokens(prompt, count) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(sum(tokens) % 1000)
    return tokens[len(prompt) :]


def test_a_peer_answers_each_order(python, connect, tmp_path):
    prompts = noise(TEXT, CONFIG)
    with connect(python, prompts) as peer:
        first = peer.run([1, 2, 3], logprobs=True)
        second = peer.run([4, 4, 4])
    assert load_config(tmp_path / "files" / "full") == CONFIG
    assert second.seconds >= 0
    assert second.first_logprobs is None
    np.testing.assert_array_equal(first.first_logprobs, [-1.5, -1.5, -1.5])
    for prompt, three, four in zip(prompts, first.tokens, second.tokens, strict=True):
        ids = prompt.before + prompt.after
        assert four.tolist() == fake_tokens(ids, 4)
        assert three.tolist() == fake_tokens(ids, 3)[: len(three)]
    assert list(map(len, first.tokens)) == [1, 2, 3]


def test_a_clip_is_one_placeholder(tmp_path):
    prompts = noise(CLIP, CONFIG)
    write_prompts(tmp_path / "prompts.npz", prompts, CONFIG)
    ids = CONFIG.tokens
    markers = [ids.vision_start_token_id, ids.video_token_id, ids.vision_end_token_id]
    read = vllm_peer.read_prompts(tmp_path / "prompts.npz")
    assert len(read) == 2
    for prompt, theirs in zip(prompts, read, strict=True):
        assert theirs["prompt_token_ids"] == [*prompt.before, *markers, *prompt.after]
        np.testing.assert_array_equal(theirs["multi_modal_data"]["video"], prompt.frames)
        sound, rate = theirs["multi_modal_data"]["audio"]
        np.testing.assert_array_equal(sound, prompt.sound)
        assert rate == 16_000
        assert theirs["mm_processor_kwargs"]["use_audio_in_video"]


def test_a_side_of_equal_prompts(python, connect):
    prompts = noise(CLIP, CONFIG)
    with connect(python, prompts) as peer:
        side = by_peer(peer, CONFIG, len(prompts), 5)
        first, second = side(), side()
    assert first.tokens.shape == (2, 5)
    assert first.first_logprobs.tolist() == [-1.5, -1.5]
    assert second.first_logprobs is None  # not asked for in timed runs


def test_a_side_of_mixed_clips(python, connect):
    work = MixedWorkload(clips=3, shortest=1, longest=2, fewest=2, most=5)
    clips = mixed.clips(work, CLIP, CONFIG)
    with connect(python, [clip.prompt for clip in clips]) as peer:
        answer = mixed.by_peer(peer, clips)()
    assert list(map(len, answer.tokens)) == [clip.limit for clip in clips]
    ours = Answer(2.0, [tokens.copy() for tokens in answer.tokens], np.full(3, -1.0))
    ours.tokens[0][1:] = -1
    report = mixed.measure({"engine": lambda: ours, "vllm": lambda: answer}, repeats=1)
    assert report["engine"]["seconds"] == 2.0  # its own time
    assert report["vllm"]["agreement"]["first_tokens"] == 1
    assert report["vllm"]["agreement"]["first_logprob_difference"] == 0.5
    count = sum(map(len, answer.tokens))
    assert report["vllm"]["token_agreement"] == 1 - (len(answer.tokens[0]) - 1) / count
    assert "first tokens 100.0%, their log-probs within 0.500" in mixed.summary(report)


def test_log_probs_count_where_the_first_token_is_the_same():
    ours, theirs = [np.array([1, 2]), np.array([3])], [np.array([1, 5, 6]), np.array([4])]
    found = benchmark.agreement(ours, theirs, np.array([-1.0, -9.0]), np.array([-1.25, -1.0]))
    assert found == {"tokens": 0.25, "first_tokens": 0.5, "first_logprob_difference": 0.25}
    assert "first_logprob_difference" not in benchmark.agreement(ours, theirs, None, None)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit('ModuleNotFoundError: vllm')", "ended: ModuleNotFoundError: vllm; give the"),
        ("print('hello')", "answered 'hello', not version in JSON; give the Python"),
        ("print('[1]')", r"answered '\[1\]', not version in JSON; give the Python"),
    ],
)
def test_a_peer_that_does_not_load(script, connect, code, message):
    with (
        pytest.raises(UserError, match=f"vllm_python: .*python: {message}"),
        connect(script(code), noise(TEXT, CONFIG)),
    ):
        pass


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("dict(seconds=1, tokens=[[1]], first_logprobs=None)", "answered 1 of 3 prompts"),
        ("dict(seconds=1)", "not seconds, tokens, first_logprobs in JSON"),
        ("sys.exit('out of memory')", "ended: out of memory; give the Python"),
    ],
)
def test_a_peer_that_stops_answering(script, connect, answer, message):
    code = f"print(json.dumps(dict(version='0')), flush=True)\nprint(json.dumps({answer}))"
    with (
        connect(script(code), noise(TEXT, CONFIG)) as peer,
        pytest.raises(UserError, match=message),
    ):
        peer.run([1, 1, 1])


def test_a_python_that_is_not_there(connect, tmp_path):
    with pytest.raises(UserError, match="nowhere: No such file or directory; give the Python of"):
        connect(tmp_path / "nowhere", noise(TEXT, CONFIG))


@pytest.mark.skipif("VLLM_PYTHON" not in os.environ, reason="VLLM_PYTHON names no Python with vLLM")
def test_vllm_itself(tmp_path, monkeypatch):
    """The mid size: vLLM's attention on a CPU has no heads of the tiny one's size."""
    from ugc_jax.jobs import bench

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = bench.BenchConfig(
        vllm_python=os.environ["VLLM_PYTHON"],
        output=str(tmp_path / "bench.json"), repeats=1, workload=TEXT, reference=False,
    )  # fmt: skip
    assert bench.main(config, []) == 0
    found = bench.files.read_json(tmp_path / "bench.json", "")["vllm_agreement"]
    assert found["tokens"] == 1
    assert found["first_logprob_difference"] < 1e-3
