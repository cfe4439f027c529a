"""generate/live.py: each request gets what it gets alone, whatever joins, leaves or breaks."""

import contextlib
import dataclasses
import math
import queue
import threading
import time

import cases
import jax
import numpy as np
import pytest

from ugc_jax.data.batching import bucket_of, collate
from ugc_jax.data.example import build_example
from ugc_jax.data.reading import Prompt, read_prompts
from ugc_jax.data.workers import ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.generate.captioner import BUCKETS, Captioner
from ugc_jax.generate.engine import Engine
from ugc_jax.generate.live import Busy, Closed, Failure, GenerationOptions, Live, Piece
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.qwen2_5_omni import thinker

CLIP = dict(frames=4, min_pixels=28 * 28, max_pixels=16 * 28 * 28, question="What is it?")
NEW = 16
WAIT = 120  # seconds; a test that hangs fails


class Told:
    """Receives what is told of a request."""

    def __init__(self):
        self.pieces: list[Piece] = []
        self.failure: str | None = None
        self.first, self.over = threading.Event(), threading.Event()
        self.samples = 1

    def __call__(self, what):
        assert not self.over.is_set()
        if isinstance(what, Failure):
            self.failure = what.reason
            self.over.set()
        else:
            self.pieces.append(what)
            self.first.set()
            ends = [piece for piece in self.pieces if piece.finish_reason is not None]
            if len(ends) == self.samples:
                self.over.set()

    def wait(self):
        assert self.over.wait(WAIT), "nothing told"
        return self

    def of(self, sample: int = 0) -> tuple[list[int], str, str]:
        """(token ids, text, finish reason) of a sample."""
        own = [piece for piece in self.wait().pieces if piece.sample == sample]
        assert [piece.finish_reason for piece in own[:-1]] == [None] * (len(own) - 1)
        tokens = [token.id for piece in own for token in piece.tokens]
        return tokens, "".join(piece.text for piece in own), own[-1].finish_reason


def asked(
    samples: int = 1, top_logprobs: int = 0, stop=(), schema=None, **options
) -> GenerationOptions:
    options = dict(max_new_tokens=NEW) | options
    return GenerationOptions(
        SamplingConfig(**options).resolve(), samples, top_logprobs, stop, schema
    )


def submit(live: Live, prompt: Prompt, what: GenerationOptions = None, told: Told | None = None):
    told, what = told or Told(), what or asked()
    told.samples = what.samples
    return live.submit(prompt, what, told), told


@pytest.fixture(scope="module")
def captioner(tiny_captioner):
    return tiny_captioner


@pytest.fixture(scope="module")
def paths(clips):
    return [str(clips / name) for name in ("a.mp4", "b.mp4", "silent.mp4")]


@pytest.fixture(scope="module")
def prompts(captioner, paths):
    how = captioner.tokenizer, captioner.config, BUCKETS, ReadingConfig(workers=1)
    return [prompt for _, prompt in read_prompts(paths, ClipSettings(**CLIP), *how)]


@pytest.fixture(scope="module")
def texts(captioner):
    """Prompts without media, of several lengths."""

    def prompt(text: str) -> Prompt:
        messages = [{"role": "user", "content": text}]
        example = build_example(messages, [], captioner.tokenizer, captioner.config)
        return Prompt(example, None, bucket_of(example, BUCKETS, captioner.config), 0.0, ())

    return [prompt("word " * length) for length in (1, 5, 150, 2, 30, 200)]


@contextlib.contextmanager
def running(captioner, places=2, new_tokens=NEW, waiting=100):
    live = Live(captioner, places=places, new_tokens=new_tokens, waiting=waiting)
    try:
        yield live
    finally:
        live.close(WAIT)
        assert not live._thread.is_alive()


def alone(captioner, prompt: Prompt, what: GenerationOptions, sample: int = 0) -> list[int]:
    """The tokens of a sample by the engine's other way: one batch."""
    batch = collate([prompt.example], prompt.bucket, 1, captioner.config)
    made = captioner.engine.generate(captioner.params, batch, what.sampling, [sample])
    return made.tokens[0, : made.lengths[0]].tolist()


def test_greedy_captions_are_those_of_the_captioner(captioner, prompts, paths):
    expected = captioner.caption(paths, max_new_tokens=NEW, **CLIP)
    with running(captioner) as live:
        several = [submit(live, prompt)[1] for prompt in prompts]
        for told, caption in zip(several, expected, strict=True):
            assert told.of() == (list(caption.token_ids), caption.caption, caption.finish_reason)
    stats = live.stats()
    assert (stats.completed, stats.prompts, stats.running, stats.waiting) == (3, 3, 0, 0)
    assert stats.tokens == sum(len(caption.token_ids) for caption in expected)
    assert stats.prompt_tokens == sum(caption.prompt_tokens for caption in expected)


@pytest.mark.parametrize("seed", range(2))
def test_each_gets_what_it_gets_alone(seed, captioner, texts):
    """Three places, joined at any time by requests of every kind, of which some are cancelled."""
    kinds = [
        asked(),
        asked(temperature=1.0, top_p=0.9, seed=3),
        asked(max_new_tokens=1),
        asked(samples=3, temperature=1.0, seed=1),
        asked(top_logprobs=5),
        asked(repetition_penalty=1.3, max_new_tokens=5),
    ]
    rng = np.random.default_rng(seed)
    under_way = []
    with running(captioner, places=3) as live:
        for number in range(24):
            prompt, what = texts[rng.integers(5)], kinds[number % len(kinds)]
            ticket, told = submit(live, prompt, what)
            leaves = number % 5 == 2
            if leaves:
                if rng.random() < 0.7:
                    told.first.wait(WAIT)
                live.cancel(ticket)
                live.cancel(ticket)
            under_way.append((prompt, what, told, leaves))
            time.sleep(rng.random() * 0.02)
        for prompt, what, told, leaves in under_way:
            if not leaves:
                for sample in range(what.samples):
                    assert told.of(sample)[0] == alone(captioner, prompt, what, sample)
    stats = live.stats()
    assert stats.completed + stats.cancelled == 24
    assert stats.cancelled >= 4 - 2  # those of one token may have been over
    assert (stats.running, stats.failed) == (0, 0)


def test_tokens_come_before_the_end(captioner, texts):
    with running(captioner, new_tokens=64) as live:
        told = submit(live, texts[0], asked(max_new_tokens=64, temperature=1.0))[1].wait()
        assert len(told.pieces) > 2
        assert max(len(piece.tokens) for piece in told.pieces) <= 9


def test_log_probabilities_are_those_of_the_model(captioner, texts):
    """Of the tokens and of the five most likely, by the uncached forward pass."""
    what = asked(top_logprobs=5, temperature=1.0, seed=4)
    with running(captioner) as live:
        told = submit(live, texts[1], what)[1]
        tokens = [token for piece in told.wait().pieces for token in piece.tokens]
    example, ids = texts[1].example, np.array([token.id for token in tokens], np.int32)
    n, whole = len(ids), cases.followed(example, ids)
    batch = collate([whole], bucket_of(whole, BUCKETS, captioner.config), 1, captioner.config)
    hidden = thinker.hidden_states(
        captioner.params, captioner.config, captioner.engine.compute, batch
    )
    at = len(example.tokens) - 1
    logits = thinker.logits(thinker.head(captioner.params), hidden[0, at : at + n])
    expected = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    given = [token.logprob for token in tokens]
    np.testing.assert_allclose(given, expected[np.arange(n), ids], atol=2e-4)
    for token, row in zip(tokens, expected, strict=True):
        order = np.argsort(-row)[:5]
        assert [one[0] for one in token.top] == order.tolist()
        np.testing.assert_allclose([one[2] for one in token.top], row[order], atol=2e-4)
        for one, text, _ in token.top:
            assert text == captioner.tokenizer.bytes_of(one, special=True)


def test_a_stop_string_ends_its_own_sample_only(captioner, texts):
    what = asked(samples=3, temperature=1.0, seed=1)
    with running(captioner) as live:
        whole = [submit(live, texts[0], what)[1].of(sample)[1] for sample in range(3)]
        stop = next(text for text in whole[1][3:].split() if len(text) > 1)[:2]
        told = submit(live, texts[0], dataclasses.replace(what, stop=(stop,)))[1]
        for sample in range(3):
            _, text, reason = told.of(sample)
            assert text == whole[sample].partition(stop)[0].strip()
            assert (reason == "stop") == (stop in whole[sample])
        # Its place is free: others follow.
        assert submit(live, texts[0], what)[1].of(2)[1] == whole[2]


def test_cancelling_frees_the_place(captioner, texts):
    long = asked(max_new_tokens=512, temperature=1.0)
    with running(captioner, places=1, new_tokens=512) as live:
        ticket, told = submit(live, texts[0], long)
        waits, never = submit(live, texts[0], long)
        assert told.first.wait(WAIT)
        live.cancel(waits)
        live.cancel(ticket)
        after = submit(live, texts[3])[1]
        assert after.of()[0] == alone(captioner, texts[3], asked())
        assert not never.pieces
        assert len(told.pieces) < 512 / 8
        stats = live.stats()
    assert (stats.cancelled, stats.completed) == (2, 1)


def test_busy_tells_when_to_come_back(captioner, texts):
    long = asked(max_new_tokens=512, temperature=1.0)
    with running(captioner, places=1, new_tokens=512, waiting=1) as live:
        tickets = [submit(live, texts[0], long)[0] for _ in range(2)]
        with pytest.raises(Busy) as refused:
            submit(live, texts[0])
        assert 1 <= refused.value.retry_after <= 60
        assert live.stats().refused == 1
        for ticket in tickets:
            live.cancel(ticket)
        deadline = time.monotonic() + WAIT
        while live.stats().running and time.monotonic() < deadline:
            time.sleep(0.01)
        assert submit(live, texts[0])[1].wait().failure is None


def test_what_does_not_fit_is_refused(captioner, texts):
    with running(captioner, new_tokens=16) as live:
        with pytest.raises(UserError, match="max_new_tokens is 17; use at most 16"):
            submit(live, texts[0], asked(max_new_tokens=17))
        live._longest = 100
        with pytest.raises(UserError, match="prompt of .* tokens is longer than the 100"):
            submit(live, texts[2])
    with pytest.raises(UserError, match="samples is 0"):
        asked(samples=0)
    with pytest.raises(UserError, match="top_logprobs is 21"):
        asked(top_logprobs=21)
    with pytest.raises(UserError, match="stop has an empty string"):
        asked(stop=("",))


def test_close_finishes_what_is_under_way(captioner, texts):
    live = Live(captioner, places=1, new_tokens=NEW, waiting=9)
    several = [submit(live, texts[0])[1] for _ in range(3)]
    live.close(WAIT)
    assert [told.of()[2] for told in several] == [told.of()[2] for told in several[:1]] * 3
    with pytest.raises(Closed, match="shutting down"):
        submit(live, texts[0])
    live.close(0)


def test_close_fails_the_rest_at_its_limit(captioner, texts):
    live = Live(captioner, places=1, new_tokens=8192, waiting=9)
    long = asked(max_new_tokens=8192)  # greedy: it repeats itself and does not end
    several = [submit(live, texts[0], long)[1] for _ in range(3)]
    assert several[0].first.wait(WAIT)
    start = time.monotonic()
    live.close(0.2)
    assert time.monotonic() - start < 10
    assert {told.wait().failure for told in several} == {
        "the server was shut down before the request was finished"
    }
    live._thread.join(WAIT)
    assert not live._thread.is_alive()


def fresh(captioner) -> Captioner:
    engine = Engine(captioner.config, captioner.engine.compute)
    return Captioner(captioner.params, engine, captioner.tokenizer)


def test_a_failing_engine_fails_all_requests(captioner, texts):
    """Whoever waits is told why, and so are the next ones."""
    broken = fresh(captioner)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    broken.engine._advance = fail
    live = Live(broken, places=1, new_tokens=NEW, waiting=9)
    several = [submit(live, texts[0])[1] for _ in range(3)]
    reason = "the engine failed: the disk is full; free disk space, then run again to resume"
    assert [told.wait().failure for told in several] == [reason] * 3
    with pytest.raises(Closed, match="the disk is full"):
        submit(live, texts[0])
    stats = live.stats()
    assert (stats.error, stats.failed, stats.running, stats.waiting) == (reason, 3, 0, 0)
    live.close(1)


def test_one_prompt_too_large_ends_alone(captioner, texts):
    """The memory of its prefill: the others go on in as many places, and their tokens stand."""
    full = fresh(captioner)
    prefill, refused = full.engine._prefill, []

    def limited(params, x, *arrays):
        if x.shape[1] > 200:
            refused.append(x.shape)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return prefill(params, x, *arrays)

    full.engine._prefill = limited
    long = asked(max_new_tokens=64, temperature=1.0)
    with running(full, places=2, new_tokens=64) as live:
        first = submit(live, texts[0], long)[1]
        assert first.first.wait(WAIT)
        large = submit(live, texts[5])[1]
        after = submit(live, texts[1])[1]
        assert "exceeds the device's memory; lower max_pixels" in large.wait().failure
        assert first.of()[0] == alone(captioner, texts[0], long)
        assert after.of()[0] == alone(captioner, texts[1], asked())
        assert live.stats().failed == 1
    assert len(refused) == 2  # beside others, then alone


def test_a_reader_that_breaks_ends_its_own_request_only(captioner, texts):
    def breaks(_):
        raise RuntimeError("the loop is closed")

    with running(captioner) as live:
        live.submit(texts[0], asked(), breaks)
        assert submit(live, texts[1])[1].of()[0] == alone(captioner, texts[1], asked())
        assert live.stats().cancelled == 1


def test_many_threads_submit_at_once(captioner, texts):
    expected = [alone(captioner, texts[n], asked()) for n in (0, 1, 3)]
    results: queue.Queue = queue.Queue()
    with running(captioner, places=4) as live:

        def client(number: int):
            index = number % 3
            told = submit(live, texts[(0, 1, 3)[index]])[1]
            results.put(told.of()[0] == expected[index])

        threads = [threading.Thread(target=client, args=(n,)) for n in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    assert [results.get_nowait() for _ in range(24)] == [True] * 24
    assert math.isfinite(live.stats().tokens_per_second)
