"""compute.remat=auto: the least recomputation that fits, and the memory of real programs."""

import jax
import pytest

from ugc_jax import sharding
from ugc_jax.data.batching import BucketKey
from ugc_jax.models.compute import ComputeConfig
from ugc_jax.models.qwen2_5_omni.config import tiny
from ugc_jax.plan.remat import LEAST_FIRST, least_remat, sft_peak, with_remat
from ugc_jax.plan.shapes import batch_shapes
from ugc_jax.train.state import Setup


@pytest.mark.parametrize(
    ("has", "chosen", "tried"),
    [(30, "none", ["none"]), (20, "dots", ["none", "dots"]), (5, "full", ["none", "dots"])],
)
def test_the_least_that_fits(has, chosen, tried, caplog):
    needs, asked = {"none": 30, "dots": 20, "full": 10}, []

    def peak(setup):
        asked.append(setup.compute.remat)
        return needs[setup.compute.remat]

    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with caplog.at_level("INFO", logger="ugc_jax"):
        found = least_remat(Setup(tiny(), mesh), peak, has)
    assert (found.compute.remat, asked) == (chosen, tried)
    assert "compute.remat=auto: none needs" in caplog.records[0].message


def test_what_is_recomputed_takes_no_memory():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    setup = Setup(tiny(), mesh)
    batch = batch_shapes(BucketKey(512, 2, 4, 1), 4, tiny(), mesh)
    peaks = {remat: sft_peak(with_remat(setup, remat), batch) for remat in LEAST_FIRST}
    assert peaks["none"] > peaks["full"]


def test_without_a_plan_it_is_what_takes_least_memory():
    assert ComputeConfig(remat="auto").resolve(jax.devices()[0], 64).remat == "full"
