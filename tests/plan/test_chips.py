"""The table of accelerators, asked with the names that jax gives them."""

from types import SimpleNamespace

import numpy as np
import pytest

from ugc_jax.plan.chips import chip_of, peak_flops
from ugc_jax.sharding import make_mesh


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "v7x"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100 40 GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80 GB"),
    ],
)
def test_device_kinds(kind, name):
    assert chip_of(kind).name == name


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA GeForce RTX 4090", "TPU v3"])
def test_unknown(kind):
    assert chip_of(kind) is None


def test_peak_flops_of_a_mesh():
    assert peak_flops(make_mesh(2, 2, 2)) is None  # CPUs
    chips = np.array([SimpleNamespace(device_kind="TPU v5 lite")] * 4)
    assert peak_flops(SimpleNamespace(devices=chips, size=4)) == 4 * 197e12
