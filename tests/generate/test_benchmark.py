"""ugc_jax.generate.benchmark: the workload, the comparison of two sides, and its summary."""

import dataclasses

import numpy as np
import pytest

from ugc_jax.errors import UserError
from ugc_jax.generate.benchmark import (
    Run,
    Workload,
    _forced,
    examples,
    int8_agreement,
    measure,
    ours,
    summary,
)
from ugc_jax.generate.captioner import Captioner
from ugc_jax.models.qwen2_5_omni.config import tiny

WORK = Workload(batch_size=2, frames=2, height=56, width=84, seconds=1.5, new_tokens=4)


def test_examples_are_different_clips_of_one_size():
    first, second = examples(WORK, tiny())
    assert first.vision[0].grid == second.vision[0].grid == (1, 4, 6)
    assert len(first.tokens) == len(second.tokens)
    assert not np.array_equal(first.vision[0].patches, second.vision[0].patches)
    assert len(first.mels[0]) == 150


def test_text_alone(tiny_captioner):
    work = Workload(batch_size=2, frames=0, seconds=0, text_tokens=20, new_tokens=4)
    prompts = examples(work, tiny_captioner.config)
    assert [len(one.tokens) for one in prompts] == [20, 20]
    assert not prompts[0].vision
    assert not prompts[0].mels
    run = ours(tiny_captioner.params, tiny_captioner.engine, prompts, 4)()
    assert run.tokens.shape == (2, 4)
    assert (run.first_logprobs < 0).all()


def test_text_tokens_are_around_the_clip():
    (short,), (long,) = (
        examples(dataclasses.replace(WORK, batch_size=1, text_tokens=n), tiny()) for n in (32, 45)
    )
    assert len(long.tokens) - len(short.tokens) == 13


@pytest.mark.parametrize(
    "name", ["batch_size", "frames", "height", "seconds", "text_tokens", "new_tokens"]
)
def test_sizes_must_be_positive(name):
    with pytest.raises(UserError, match=f"{name} is 0"):
        Workload(**{name: 0})


def test_ours_times_both_phases(tiny_captioner):
    prompts = examples(WORK, tiny_captioner.config)
    run = ours(tiny_captioner.params, tiny_captioner.engine, prompts, WORK.new_tokens)()
    assert run.tokens.shape == (2, 4)
    assert run.prefill > 0
    assert run.decode > 0


def test_compare_takes_medians_without_the_first_round():
    def side(token, *seconds):
        rounds = iter(seconds)

        def run():
            second = next(rounds)
            return Run(second, 2 * second, np.array([[1, 2], [3, token]]))

        return run

    sides = {"jax": side(4, 100.0, 1.0, 3.0, 2.0), "torch": side(5, 100.0, 4.0, 4.0, 9.0)}
    report = measure(sides, repeats=3)
    assert report["jax"] == {"prefill_seconds": 2, "decode_seconds": 4, "total_seconds": 6}
    assert report["torch_over_jax"] == dict.fromkeys(report["jax"], 2)
    assert report["token_agreement"] == 0.75
    assert summary(report, WORK).splitlines() == [
        "  jax    prefill 2.000 s   decode 4.000 s (2 tokens/s)",
        "  torch  prefill 4.000 s   decode 8.000 s (1 tokens/s)",
        "  torch / jax: prefill 2.00, decode 2.00, together 2.00; equal tokens 75.0%",
    ]


def test_int8_beside_the_plain_model(tiny_captioner, tiny_checkpoint):
    """The distributions are those of the sampled log-probs; without int8 they are equal."""
    prompts = examples(WORK, tiny_captioner.config)
    plain = tiny_captioner.params, tiny_captioner.engine
    run = ours(*plain, prompts, WORK.new_tokens)()
    assert int8_agreement(plain, plain, prompts, run.tokens) == dict(greedy=1, kl=0, kl_most=0)
    small = Captioner.from_pretrained(tiny_checkpoint, weights="int8", cache="int8")
    found = int8_agreement(plain, (small.params, small.engine), prompts, run.tokens)
    assert found["greedy"] >= 0.5
    assert 0 < found["kl"] <= found["kl_most"] < 0.01
    forced = list(_forced(*plain, prompts, run.tokens))
    assert len(forced) == WORK.new_tokens
    np.testing.assert_array_equal(np.stack([one.argmax(-1) for one in forced], 1), run.tokens)
