"""Programs that are compiled from the weights' shapes alone are those that the weights run in."""

import dataclasses
import threading
from collections import Counter

import jax
import pytest

from ugc_jax import Captioner
from ugc_jax.errors import UserError
from ugc_jax.generate import captioner as module
from ugc_jax.generate.settings import EngineConfig, SamplingConfig
from ugc_jax.generate.weights import abstract_weights
from ugc_jax.media.presets import ClipSettings

SMALL = dict(
    frames=4, min_pixels=28 * 28, max_pixels=16 * 28 * 28, question="What is it?", max_new_tokens=4
)
PREFILL = {"encode_vision", "encode_audio", "_embed", "_prefill"}


@pytest.fixture
def lowered():
    """(Names of the programs that are lowered in the test, an event: those of PREFILL are)."""
    names, all_there = Counter(), threading.Event()

    def listen(event: str, seconds: float, fun_name: str = "", **_):
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            names[fun_name.removeprefix("jit(").removesuffix(")")] += 1
            if names.keys() >= PREFILL:
                all_there.set()

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names, all_there
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
    "compute", [dict(), dict(dtype="bfloat16"), dict(weights="int8", cache="int8")], ids=str
)
def test_programs_are_compiled_while_weights_are_read(
    tiny_checkpoint, clips, monkeypatch, lowered, compute
):
    """As on accelerators: the weights come when all is compiled, and nothing is compiled twice."""
    names, all_there = lowered
    whole = Captioner.from_pretrained(tiny_checkpoint, **compute)
    expected = whole.caption(clips / "a.mp4", **SMALL)[0].token_ids
    names.clear(), all_there.clear()
    monkeypatch.setattr(module, "on_cpu", lambda mesh: False)
    captioner = Captioner.from_pretrained(tiny_checkpoint, load=False, **compute)
    load, before = captioner._params, []

    def late():
        assert all_there.wait(60)
        before.extend(names)
        return load()

    captioner._params = late
    assert captioner.caption(clips / "a.mp4", **SMALL)[0].token_ids == expected
    assert set(before) >= PREFILL
    assert {name: names[name] for name in PREFILL} == dict.fromkeys(PREFILL, 1)


def test_programs_of_prompts_that_begin_alike(tiny_checkpoint, clips, monkeypatch, lowered):
    monkeypatch.setattr(module, "on_cpu", lambda mesh: False)
    captioner = Captioner.from_pretrained(tiny_checkpoint, load=False)
    clip, sampling = ClipSettings(frames=4, max_pixels=16 * 28 * 28), SamplingConfig().resolve()
    sampling = dataclasses.replace(sampling, max_new_tokens=4)
    clip = captioner.defaults.apply(clip, sampling)[0]
    questions = {str(clips / "a.mp4"): ["What is it?", "What is heard?"]}
    answers = list(captioner.answer(questions, clip, sampling, EngineConfig()))
    assert len(answers) == 2
    assert not any(one.error for _, one in answers)
    names = lowered[0]
    assert names["_prefill"] == 0
    assert names["_prefill_shared"] == names["encode_vision"] == names["_embed"] == 1


def test_weights_that_cannot_be_read_are_the_error(tiny_checkpoint, clips, monkeypatch):
    monkeypatch.setattr(module, "on_cpu", lambda mesh: False)
    captioner = Captioner.from_pretrained(tiny_checkpoint, load=False)

    def broken():
        raise UserError("model.safetensors: truncated")

    captioner._params = broken
    with pytest.raises(UserError, match="truncated"):
        captioner.caption(clips / "a.mp4", **SMALL)


def test_clips_that_cannot_be_read_need_no_program(tiny_checkpoint, clips, monkeypatch, lowered):
    monkeypatch.setattr(module, "on_cpu", lambda mesh: False)
    captioner = Captioner.from_pretrained(tiny_checkpoint, load=False)
    (result,) = captioner.caption(clips / "broken.mp4", **SMALL)
    assert "broken.mp4" in result.error
    assert not PREFILL & lowered[0].keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_shapes_are_those_of_the_weights(tiny_checkpoint, dtype, weights):
    captioner = Captioner.from_pretrained(tiny_checkpoint, dtype=dtype, weights=weights)

    def form(leaf):
        return leaf.shape, leaf.dtype, leaf.sharding

    shapes = abstract_weights(captioner.config, captioner.engine.compute)
    assert jax.tree.map(form, shapes) == jax.tree.map(form, captioner.params)
