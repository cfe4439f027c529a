"""ugc_jax.generate.captioner: every clip gets its result, whatever becomes of the others."""

import contextlib
import dataclasses
import gc
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from clips import write_clip
from hooks import hooked_workers

from ugc_jax import Captioner
from ugc_jax.data.batching import Buckets, bucket_of
from ugc_jax.data.example import load_example
from ugc_jax.errors import EnvironmentFailure, UserError
from ugc_jax.generate import captioner as module
from ugc_jax.generate.captioner import Caption
from ugc_jax.generate.engine import Finished, prefill_tokens
from ugc_jax.generate.engine import _prompt_tokens as size_of_places
from ugc_jax.generate.results import Results, Totals, record_all
from ugc_jax.generate.settings import leave_room
from ugc_jax.media.presets import ClipSettings
from ugc_jax.sharding import make_mesh

FEW_FRAMES = dict(frames=4, min_pixels=28 * 28, max_pixels=16 * 28 * 28, question="What is it?")
SMALL = FEW_FRAMES | dict(max_new_tokens=8)


def test_results_in_order_with_errors_in_their_places(tiny_captioner, clips, caplog):
    caplog.set_level("INFO", logger="ugc_jax")
    names = ["broken.mp4", "a.mp4", "missing.mp4", "silent.mp4", "a.mp4"]
    results = tiny_captioner.caption([clips / name for name in names], batch_size=2, **SMALL)
    assert [result.video for result in results] == [str(clips / name) for name in names]
    for index in (0, 2):
        assert results[index].caption is None
        assert names[index] in results[index].error
        assert "\n" not in results[index].error
        assert results[index].record(token_ids=True) == {
            "video": results[index].video,
            "error": results[index].error,
        }
    for index in (1, 3, 4):
        assert results[index].error is None
        assert results[index].finish_reason in ("stop", "length")
        assert 1 <= results[index].new_tokens == len(results[index].token_ids) <= 8
        assert (
            results[index].caption
            == tiny_captioner.tokenizer.decode(results[index].token_ids).strip()
        )
    assert results[1] == results[4]
    assert [r.getMessage() for r in caplog.records if r.name == module.__name__] == [
        f"{clips / 'silent.mp4'}: no sound in the file"
    ]
    assert results[3].record()["notes"] == ("no sound in the file",)
    assert results[1].prompt_tokens > results[3].prompt_tokens  # by its sound


@pytest.mark.parametrize(
    "sampling", [dict(), dict(temperature=1.0, top_p=0.9, seed=3)], ids=["greedy", "sampled"]
)
def test_caption_does_not_depend_on_its_batch(tiny_captioner, clips, sampling):
    names = ["a.mp4", "b.mp4", "below/c.mp4"]
    options = SMALL | sampling
    together = tiny_captioner.caption([clips / name for name in names], batch_size=2, **options)
    alone = [
        tiny_captioner.caption([clips / name], batch_size=1, **options)[0]
        for name in reversed(names)
    ]
    assert [caption.token_ids for caption in together] == [
        caption.token_ids for caption in reversed(alone)
    ]
    assert len({caption.token_ids for caption in together}) > 1


def test_seed_decides_samples(tiny_captioner, clips):
    options = SMALL | dict(temperature=1.0, top_p=0.9)
    first, again, other = (
        tiny_captioner.caption(clips / "a.mp4", **options, seed=seed)[0].token_ids
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_thirty_clips_compile_one_program_a_bucket(tiny_checkpoint, tmp_path):
    """30 clips of 30 shapes and lengths, with and without sound, through one captioner."""
    captioner = Captioner.from_pretrained(tiny_checkpoint)
    options = dict(question="What is it?", fps=2, min_pixels=28 * 28, max_pixels=16 * 28 * 28)
    clip = ClipSettings(**options)
    paths, keys, shapes = [], set(), set()
    for i in range(30):
        paths.append(tmp_path / f"{i}.mp4")
        size = (64 + 8 * (i % 7), 64 + 8 * (i % 11))
        seconds = 0.3 + 3.7 * i / 29
        write_clip(paths[-1], seed=i, seconds=seconds, fps=10, size=size, audio=i % 3 != 0)
        example, info = load_example(paths[-1], clip, captioner.tokenizer, captioner.config)
        keys.add(bucket_of(example, module.BUCKETS, captioner.config))
        shapes.add((info.grid, len(example.tokens), size, seconds))
    results = list(captioner.stream(paths, **options, max_new_tokens=4, batch_size=2))
    assert [result.error for result in results] == [None] * 30
    assert len(shapes) == 30
    programs = captioner.engine.programs()
    rows = {key: prefill_tokens(None) // key.tokens for key in keys}
    assert programs == {
        "vision": len({(rows[key], key.grids, key.windows) for key in keys}),
        "audio": len({(rows[key], key.chunks) for key in keys}),
        "embed": len({(key.tokens, key.grids * key.windows, key.chunks) for key in keys}),
        "prefill": len({key.tokens for key in keys}),
        "first": len(set(rows.values())),
        "insert": programs["insert"],  # also by the size of the places when a prompt came
        "decode": len({size_of_places(key.tokens) for key in keys}),
        "score": programs["score"],  # of evidence, which another test may have asked for
    }
    print("programs", programs)
    assert max(programs.values()) <= 12
    # Thirty more of the same shapes compile nothing.
    again = captioner.stream(paths, **options, max_new_tokens=3, seed=7, batch_size=2)
    assert len(list(again)) == 30
    assert captioner.engine.programs() == programs


def test_prompt_leaves_room_for_the_caption(tiny_captioner, clips):
    config = tiny_captioner.config
    positions = config.text.max_position_embeddings
    assert leave_room(ClipSettings(), 100, config).max_tokens == positions - 100
    assert leave_room(ClipSettings(max_tokens=50), 100, config).max_tokens == 50
    for new_tokens in (0, positions):
        with pytest.raises(UserError, match=f"max_new_tokens is {new_tokens}; the model has"):
            leave_room(ClipSettings(), new_tokens, config)
    with pytest.raises(UserError, match="max_new_tokens is 10000; use 1 to 9216"):
        tiny_captioner.caption([clips / "a.mp4"], max_new_tokens=10000)


def test_a_clip_that_no_bucket_holds_is_told_by_its_name(tiny_captioner, clips, monkeypatch):
    monkeypatch.setattr(module, "BUCKETS", Buckets(tokens=(16,)))
    (made,) = tiny_captioner.caption([clips / "a.mp4"])
    assert re.match(rf"{clips}/a.mp4: prompt needs \d+ tokens, the largest .* has 16", made.error)


def test_end_of_text_is_stop(tiny_captioner, clips, monkeypatch):
    eos = tiny_captioner.config.tokens.eos_token_id

    def run(params, source, *_, **__):
        answers = iter(([65, eos], [65, 66, 67]))
        while (group := source.take(True, 8)) is not None:
            for request in filter(None, group.requests):
                tokens = np.array(next(answers), np.int32)
                yield Finished(request.tag, 0, tokens, np.zeros(len(tokens)), tokens[-1] == eos)

    monkeypatch.setattr(tiny_captioner.engine, "run", run)
    results = tiny_captioner.caption([clips / "a.mp4", clips / "b.mp4"], workers=1, **SMALL)
    a, b = sorted(results, key=lambda one: one.video)
    assert (a.token_ids, a.new_tokens, a.finish_reason) == ((65, eos), 2, "stop")
    assert (b.token_ids, b.new_tokens, b.finish_reason) == ((65, 66, 67), 3, "length")
    assert a.caption == tiny_captioner.tokenizer.decode([65]).strip()


def test_a_clip_that_exceeds_the_memory_alone_has_an_error(tiny_captioner, clips, monkeypatch):
    def prefill(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(tiny_captioner.engine, "prefill", prefill)
    a, b = tiny_captioner.caption([clips / "a.mp4", clips / "b.mp4"], **SMALL)
    for result in (a, b):
        assert re.match(
            r".*/[ab].mp4: a prompt of 128 tokens exceeds the device's memory; lower max_pixels",
            result.error,
        )


def test_unforeseen_failure_is_its_clips_error(tiny_captioner, clips, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(hooked_workers(tmp_path / "hook", {"a.mp4": "1 / 0"}))
    a, b = tiny_captioner.caption([clips / "a.mp4", clips / "b.mp4"], batch_size=2, **SMALL)
    assert a.error == f"{clips / 'a.mp4'}: unexpected ZeroDivisionError: division by zero"
    assert b.error is None


def test_wrong_options_are_told(tiny_captioner, tiny_checkpoint):
    with pytest.raises(TypeError, match="no option 'max_tokns'; options are question, .*, fps"):
        tiny_captioner.caption(["a.mp4"], max_tokns=3)
    with pytest.raises(UserError, match="preset"):
        tiny_captioner.caption(["a.mp4"], preset="no such preset")
    with pytest.raises(UserError, match="temperature is -1"):
        tiny_captioner.caption(["a.mp4"], temperature=-1)
    with pytest.raises(UserError, match="batch_size is 0"):
        tiny_captioner.stream(["a.mp4"], batch_size=0)
    with pytest.raises(UserError, match="dtype: expected auto"):
        Captioner.from_pretrained(tiny_checkpoint, dtype="half")
    with pytest.raises(UserError, match="no/such/folder: no such directory"):
        Captioner.from_pretrained("no/such/folder")


def test_no_clips(tiny_captioner):
    assert tiny_captioner.caption([]) == []


def test_record():
    caption = Caption("a.mp4", "A cat.", (1, 2), 10, 2, "stop", 0.5)
    record = dict(
        video="a.mp4",
        caption="A cat.",
        prompt_tokens=10,
        new_tokens=2,
        finish_reason="stop",
        seconds=0.5,
    )
    assert caption.record() == record
    noted = dataclasses.replace(caption, notes=("mirrored",))
    assert noted.record() == record | {"notes": ("mirrored",)}
    assert list(caption.record(token_ids=True)) == [
        "video", "caption", "token_ids", "prompt_tokens", "new_tokens", "finish_reason", "seconds",
    ]  # fmt: skip


def test_a_missing_library_blames_no_clip(tiny_captioner, clips, tmp_path, monkeypatch):
    (tmp_path / "stub").mkdir()
    stub = "raise ModuleNotFoundError(\"No module named 'soxr'\", name='soxr')"
    (tmp_path / "stub/soxr.py").write_text(stub)
    monkeypatch.syspath_prepend(tmp_path / "stub")
    names = [str(clips / name) for name in ("a.mp4", "b.mp4", "broken.mp4")]
    out, totals = tmp_path / "out.jsonl", Totals()
    line = r"^the library soxr does not load \(No module named 'soxr'\); install it, or"
    with Results(out, names) as results, pytest.raises(EnvironmentFailure, match=line):
        record_all(tiny_captioner.stream(names), 3, results, totals)
    assert out.read_text() == ""
    assert totals.failed == 0


def test_no_handles_blame_no_clip(tiny_captioner, clips, no_handles):
    captions = tiny_captioner.stream([clips / "a.mp4", clips / "b.mp4"])
    with no_handles(), pytest.raises(EnvironmentFailure, match="^too many open files; raise"):
        next(captions)


def readers() -> set[int]:
    """The processes of this one that read clips."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if (
                int(parent) == os.getpid()
                and b"ugc_jax.data.workers" in (process / "cmdline").read_bytes()
            ):
                found.add(int(process.name))
    return found


@pytest.mark.parametrize("end", ["close", "drop"])
def test_readers_end_with_the_stream(tiny_captioner, clips, end):
    names = [clips / name for name in ("a.mp4", "b.mp4", "below/c.mp4")] * 4
    stream = tiny_captioner.stream(names, batch_size=1, workers=2, **SMALL)
    assert readers() == set()
    next(stream)
    assert len(readers()) == 2
    if end == "close":
        stream.close()
    del stream
    gc.collect()
    assert readers() == set()


def test_two_streams_at_once_and_one_in_a_thread(tiny_captioner, clips):
    names = [clips / name for name in ("a.mp4", "b.mp4", "below/c.mp4")]
    expected = {one.video: one.caption for one in tiny_captioner.caption(names, **SMALL)}
    streams = [tiny_captioner.stream(names, batch_size=1, workers=1, **SMALL) for _ in range(2)]
    for pair in zip(*streams, strict=True):
        assert [one.caption for one in pair] == [expected[one.video] for one in pair]
    with ThreadPoolExecutor(1) as pool:
        threaded = pool.submit(tiny_captioner.caption, names, **SMALL).result()
    assert {one.video: one.caption for one in threaded} == expected
    assert readers() == set()


def test_an_unguarded_script_runs_once(tiny_checkpoint, clips, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "print('script')\n"
        "from ugc_jax import Captioner\n"
        f"captioner = Captioner.from_pretrained({str(tiny_checkpoint)!r})\n"
        f"for one in captioner.stream({str(clips / 'a.mp4')!r}, **{SMALL!r}):\n"
        "    print(one.new_tokens, one.error)\n"
    )
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.stdout.splitlines() == ["script", "8 None"]


@pytest.mark.parametrize(("data", "tensor"), [(2, 2), (3, 1)])
def test_several_devices_give_the_same_captions(
    tiny_captioner, tiny_checkpoint, clips, data, tensor
):
    mesh = make_mesh(data, 1, tensor, jax.devices()[: data * tensor])
    names = [clips / "a.mp4", clips / "b.mp4"]
    one, several = (
        captioner.caption(names, batch_size=2, **SMALL)
        for captioner in (tiny_captioner, Captioner.from_pretrained(tiny_checkpoint, mesh=mesh))
    )
    assert [caption.token_ids for caption in one] == [caption.token_ids for caption in several]
