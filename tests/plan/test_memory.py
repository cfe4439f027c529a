"""ugc_jax.plan.memory: what the compiler says. (A real compilation: test_sft.py, test_grpo.py.)"""

import re
from types import SimpleNamespace

import jax
import pytest

from ugc_jax.errors import UserError
from ugc_jax.plan.memory import compiled_memory, required_bytes


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


def test_a_program_that_this_jax_cannot_read():
    """As with libtpu 0.0.52 and jax 0.10, for v6e."""

    def as_text():
        raise jax.errors.JaxRuntimeError("INTERNAL: async-update should have 1 operands\nat: here")

    real = jax.jit(lambda x: x + 1).trace(1.0).lower().compile()
    compiled = SimpleNamespace(memory_analysis=real.memory_analysis, as_text=as_text)
    traced = SimpleNamespace(lower=lambda: SimpleNamespace(compile=lambda: compiled))
    version = re.escape(jax.__version__)
    words = rf"^jax {version} cannot read .* \(INTERNAL: async-update should have 1 operands\); "
    with pytest.raises(UserError, match=rf"{words}.*: pip install 'jax\[tpu\]=={version}'"):
        compiled_memory(traced)
    arguments = real.memory_analysis().argument_size_in_bytes
    assert compiled_memory(traced, counts=False).arguments == arguments
