"""The table of cards, asked with the names that jax gives them."""

import pytest

from ugc_jax.plan import cards, chips
from ugc_jax.plan.cards import card_of


@pytest.mark.parametrize(
    ("kind", "name", "gigabytes", "teraflops"),
    [
        ("TPU v5 lite", "v5e", 819, 197),
        ("TPU v5p", "v5p", 2765, 459),
        ("TPU v6 lite", "v6e", 1638, 918),
        ("NVIDIA H100 80GB HBM3", "H100 SXM", 3350, 989),
        ("NVIDIA H100 PCIe", "H100 PCIe", 2000, 756),
        ("NVIDIA H200", "H200", 4800, 989),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40 GB", 1555, 312),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80 GB", 2039, 312),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80 GB", 1935, 312),
        ("NVIDIA B200", "B200", 8000, 2250),
        ("NVIDIA L4", "L4", 300, 121),
        ("NVIDIA L40S", "L40S", 864, 362),
        ("NVIDIA A10G", "A10G", 600, 70),
        ("NVIDIA GeForce RTX 3090", "RTX 3090", 936, 71),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 1008, 165),
    ],
)
def test_device_kinds(kind, name, gigabytes, teraflops):
    card = card_of(kind)
    assert card.name == name
    assert card.bandwidth == pytest.approx(gigabytes * 1e9)
    assert card.flops == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "TPU v3",
        "NVIDIA L40",
        "NVIDIA A10",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    ],
)
def test_unknown(kind):
    assert card_of(kind) is None


def test_every_chip_has_a_bandwidth():
    for name, chip in chips._CHIPS.items():
        assert 1e12 / 8 < chip.bandwidth < 1e13
        if not name.startswith("TPU"):
            assert any(name in own or own in name for own in cards._CARDS), name
    for name in cards._CARDS:
        assert card_of(f"NVIDIA {name}").flops > 0
