"""Programs that are compiled from the weights' shapes alone are those that the weights run in."""

import dataclasses
import threading
from collections import Counter
from concurrent.futures import Future

import jax
import pytest

from ugc_jax import Captioner
from ugc_jax.errors import UserError
from ugc_jax.generate import captioner as module
from ugc_jax.generate.engine import Engine
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
        if event == "/jax/core/compile/backend_compile_duration":
            names["compiled"] += 1
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            names["lowered"] += 1
            names[fun_name.removeprefix("jit(").removesuffix(")")] += 1
            if names.keys() >= PREFILL:
                all_there.set()

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names, all_there
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
    "compute", [dict(), dict(dtype="bfloat16", weights="int8", cache="int8")], ids=str
)
def test_programs_are_compiled_while_weights_are_read(
    tiny_captioner, tiny_checkpoint, clips, monkeypatch, lowered, compute
):
    """As on accelerators: the weights come when all is compiled, and nothing is compiled twice."""
    names, all_there = lowered
    whole = Captioner.from_pretrained(tiny_checkpoint, **compute) if compute else tiny_captioner
    expected = whole.caption(clips / "a.mp4", **SMALL)[0].token_ids
    names.clear(), all_there.clear()
    monkeypatch.setattr(module, "on_cpu", lambda mesh: False)
    captioner = Captioner.from_pretrained(tiny_checkpoint, load=False, **compute)
    load, before = captioner._read_weights, []

    def late():
        assert all_there.wait(60)
        before.extend(names)
        return load()

    captioner._read_weights = late
    with jax.default_matmul_precision("highest"):  # of this thread alone
        assert captioner.caption(clips / "a.mp4", **SMALL)[0].token_ids == expected
    assert set(before) >= PREFILL
    assert {name: names[name] for name in PREFILL} == dict.fromkeys(PREFILL, 1)
    assert names["compiled"] == names["lowered"]


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


def never_read(*_, **__):
    """As `read_questions` of a clip that is still being read."""
    while True:
        yield None


def test_weights_that_cannot_be_read_are_the_error(tiny_checkpoint, clips, monkeypatch):
    """At once: what is read or compiled meanwhile is not waited for. The next call reads again."""
    monkeypatch.setattr(module, "on_cpu", lambda mesh: False)
    captioner = Captioner.from_pretrained(tiny_checkpoint, load=False)
    load, begun = captioner._read_weights, threading.Event()

    def broken():
        assert begun.wait(60)
        raise UserError("model.safetensors: truncated")

    def endless(*_):
        while True:
            yield Future()  # which never ends
            begun.set()

    captioner._read_weights = broken
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "compiling", endless)
        with pytest.raises(UserError, match="truncated"):
            captioner.caption(clips / "a.mp4", **SMALL)
    with monkeypatch.context() as patched:
        patched.setattr(module, "read_questions", never_read)
        with pytest.raises(UserError, match="truncated"):
            captioner.caption(clips / "a.mp4", **SMALL)
    captioner._read_weights = load
    assert captioner.caption(clips / "a.mp4", **SMALL)[0].error is None


def test_an_interrupt_does_not_read_them_twice(tiny_checkpoint, clips, monkeypatch):
    monkeypatch.setattr(module, "on_cpu", lambda mesh: False)
    captioner = Captioner.from_pretrained(tiny_checkpoint, load=False)
    load, reads = captioner._read_weights, []
    captioner._read_weights = lambda: reads.append(1) or load()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "compiling", interrupted)
        with pytest.raises(KeyboardInterrupt):
            captioner.caption(clips / "a.mp4", **SMALL)
    assert captioner.caption(clips / "a.mp4", **SMALL)[0].error is None
    assert reads == [1]


def test_the_first_group_waits_for_its_clips(tiny_checkpoint, clips, monkeypatch):
    """Programs are compiled from the first clip's sizes; it is prefilled with others of them."""
    monkeypatch.setattr(module, "on_cpu", lambda mesh: False)
    monkeypatch.setattr(module, "prefill_tokens", lambda mesh: 2048)  # several a group
    captioner = Captioner.from_pretrained(tiny_checkpoint, load=False)
    groups, compiled = [], threading.Event()
    read, compiling, prefill = module.read_questions, Engine.compiling, Engine.prefill

    def second_later(*args, **how):
        first, second = filter(None, read(*args, **how | dict(waits=lambda: True)))
        yield first
        while not compiled.is_set():
            yield None
        yield second

    def recorded_compiling(self, *args):
        yield from compiling(self, *args)
        compiled.set()

    def recorded_prefill(self, params, batch, *rest):
        groups.append(int((batch.next_position > 0).sum()))
        return prefill(self, params, batch, *rest)

    monkeypatch.setattr(module, "read_questions", second_later)
    monkeypatch.setattr(Engine, "compiling", recorded_compiling)
    monkeypatch.setattr(Engine, "prefill", recorded_prefill)
    silent = SMALL | dict(audio=False)
    results = captioner.caption([clips / name for name in ("a.mp4", "silent.mp4")], **silent)
    assert not any(one.error for one in results)
    assert groups == [2]


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
