"""Settings of GRPO's objective."""

import dataclasses

import pytest

from ugc_jax import settings
from ugc_jax.errors import UserError
from ugc_jax.rl.options import GrpoOptions


@dataclasses.dataclass(frozen=True)
class Job:
    """A job with the section."""

    grpo: GrpoOptions = GrpoOptions()


def test_a_job_reads_them():
    words = ["--config.grpo.kl=k3+", "--config.grpo.scale=none", "--config.grpo.minibatches=4"]
    options = settings.Schema(Job).parse([*words, "--config.grpo.iterations=2"])[0].grpo
    assert options == GrpoOptions(kl="k3+", scale="none", minibatches=4, iterations=2)
    assert options.updates == 8
    assert GrpoOptions().updates == 1


def test_every_knob_has_a_help_text():
    assert all(settings.field_help(GrpoOptions).values())


@pytest.mark.parametrize(
    "field",
    [
        {"iterations": 0},
        {"minibatches": 0},
        {"clip_low": -0.1},
        {"beta": -1.0},
        {"dual_clip": 1.28},
        {"entropy_quantile": 0.0},
        {"entropy_quantile": 1.1},
        {"reference_mix": 1.5},
        {"overlong": -1},
        {"reference_sync": 10, "beta": 0.0},
    ],
)
def test_a_value_that_means_nothing_is_refused(field):
    with pytest.raises(UserError, match=f"^{next(iter(field))} is .*; use"):
        GrpoOptions(**field)
