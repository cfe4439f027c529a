"""ugc_jax.plan.memory: what the compiler says. (A real compilation: test_sft.py, test_grpo.py.)"""

import pytest

from ugc_jax.plan.memory import required_bytes


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. "
            "Exceeded hbm capacity by 4.75G.",
            20.5 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (1.56T) exceeds available HBM (15.75G).",
            1.56 * 2**40,
        ),
        ("INTERNAL: something else", None),
    ],
)
def test_what_the_compiler_says_when_it_is_too_much(message, expected):
    assert required_bytes(message) == pytest.approx(expected)
