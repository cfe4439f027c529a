"""Memory bandwidth of accelerators, beside their peak: what decoding is measured against."""

from typing import NamedTuple

from ugc_jax.plan.chips import chip_of


class Card(NamedTuple):
    """One device of jax.

    bandwidth: bytes a second of its memory. flops: bfloat16 matrix operations a second, dense, with
    sums in float32. Both by its maker's data sheet.
    """

    name: str
    bandwidth: float
    flops: float


# GPUs by the beginning of jax.Device.device_kind or its end, as an RTX 4090 Laptop GPU is another
# card: name, bandwidth, and the peak where chips.py lacks it or has another variant's. TPUs are in
# chips.py.
_CARDS: dict[str, tuple[str, float, float | None]] = {
    "A100-SXM4-40GB": ("A100 SXM 40 GB", 1.555e12, None),
    "A100-PCIE-40GB": ("A100 PCIe 40 GB", 1.555e12, None),
    "A100-SXM4-80GB": ("A100 SXM 80 GB", 2.039e12, None),
    "A100 80GB PCIe": ("A100 PCIe 80 GB", 1.935e12, None),
    "H100 80GB HBM3": ("H100 SXM", 3.35e12, None),
    "H100 PCIe": ("H100 PCIe", 2.0e12, 756e12),
    "H100 NVL": ("H100 NVL", 3.9e12, 835e12),
    "H200": ("H200", 4.8e12, None),
    "H200 NVL": ("H200 NVL", 4.8e12, 835e12),
    "B200": ("B200", 8.0e12, None),
    "A10G": ("A10G", 0.6e12, 70e12),
    "L4": ("L4", 0.3e12, 121e12),
    "L40S": ("L40S", 0.864e12, 362e12),
    "RTX 3090": ("RTX 3090", 0.936e12, 71e12),
    "RTX 4090": ("RTX 4090", 1.008e12, 165e12),
    "RTX 5090": ("RTX 5090", 1.792e12, 209e12),
}


def card_of(device_kind: str) -> Card | None:
    """Return the card of a jax.Device.device_kind; None if not in the table, such as a CPU."""
    matches = [
        name for name in _CARDS
        if device_kind.startswith(name) or f" {device_kind}".endswith(f" {name}")
    ]  # fmt: skip
    if not matches:
        chip = chip_of(device_kind) if device_kind.startswith("TPU") else None
        return chip and Card(chip.name, chip.bandwidth, chip.flops)
    name, bandwidth, flops = _CARDS[max(matches, key=len)]
    return Card(name, bandwidth, flops or chip_of(device_kind).flops)
