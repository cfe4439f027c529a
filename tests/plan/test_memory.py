"""ugc_jax.plan.memory: what the compiler says. (A real compilation: test_sft.py, test_grpo.py.)"""

import re
import sys
from types import SimpleNamespace

import jax
import pytest
from tpu_compiler import needs_compiler, run

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


@needs_compiler
def test_slices_smaller_than_a_host_and_larger_ones():
    """libtpu 0.0.42, which belongs to jax 0.10.2, refuses the small ones by themselves."""
    slices = {"v5e:1x1": 1, "v6e:1x1": 1, "v6e:1x2": 2, "v5p:1x1x1": 1, "v5e:4x4": 16}
    program = (
        "import sys; from ugc_jax.plan.memory import topology_devices; "
        "print([len(topology_devices(name)) for name in sys.argv[1:]])"
    )
    done = run([sys.executable, "-c", program, *slices])
    assert done.stdout == f"{list(slices.values())}\n", done.stderr
