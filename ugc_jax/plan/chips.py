"""Memory and speed of accelerators, for MFU and for `plan`."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax

GIB = 1 << 30


class Chip(NamedTuple):
    """One device of jax; of v7x, half a chip.

    flops: bfloat16 matrix operations a second, by its maker's data sheet.
    hbm: bytes of memory; of a TPU, those that its compiler allows a program (libtpu 0.0.42).
    bandwidth: bytes a second of this memory. link: bytes a second, in one direction, of one link
    between chips; of GPUs, of all NVLinks of one. wrap: sizes of a slice's axis that are multiples
    of it are rings.
    """

    name: str
    flops: float
    hbm: int
    bandwidth: float = math.inf
    link: float = math.inf
    wrap: int = 0


# By the beginning of jax.Device.device_kind or, of a GPU, a word in it. Peak and bandwidth of TPUs:
# docs.cloud.google.com/tpu/docs/v5e and its neighbours. Links: "How to Scale Your Model"
# (jax-ml.github.io/scaling-book/tpus), one way; of v7x, 9.6 Tbit/s of a chip both ways over six
# links, of which each half has its share. Rings: v5e and v6e have them along a whole side of a pod
# (16), the others along whole cubes of 4 x 4 x 4. GPUs: data sheets of NVIDIA (NVLink, one way).
_CHIPS = {
    "TPU v4": Chip("v4", 275e12, int(30.75 * GIB), 1.228e12, 45e9, 4),
    "TPU v5 lite": Chip("v5e", 197e12, int(15.75 * GIB), 0.819e12, 45e9, 16),
    "TPU v5": Chip("v5p", 459e12, int(95.74 * GIB), 2.765e12, 90e9, 4),
    "TPU v6 lite": Chip("v6e", 918e12, int(31.25 * GIB), 1.638e12, 90e9, 16),
    "TPU7x": Chip("v7x", 1153.5e12, int(94.75 * GIB), 3.69e12, 50e9, 4),
    "A100-SXM4-40GB": Chip("A100 40 GB", 312e12, 40 * GIB, 1.555e12, 300e9),
    "A100": Chip("A100 80 GB", 312e12, 80 * GIB, 1.935e12, 300e9),
    "H100": Chip("H100", 989e12, 80 * GIB, 3.35e12, 450e9),
    "H200": Chip("H200", 989e12, 141 * GIB, 4.8e12, 450e9),
    "B200": Chip("B200", 2250e12, 180 * GIB, 8.0e12, 900e9),
}


def chip_of(device_kind: str) -> Chip | None:
    """Return the chip of a jax.Device.device_kind; None if not in the table, such as a CPU."""
    matches = [name for name in _CHIPS if device_kind.startswith(name) or f" {name}" in device_kind]
    return _CHIPS[max(matches, key=len)] if matches else None


def peak_flops(mesh: jax.sharding.Mesh) -> float | None:
    """Return bfloat16 operations a second of all devices; None if they are not in the table."""
    chip = chip_of(mesh.devices.flat[0].device_kind)
    return None if chip is None else chip.flops * mesh.size


def links_of(devices: Sequence[jax.Device], chip: Chip) -> int:
    """Return how many links the chip of a slice has that has fewest: those of a corner.

    1 for devices without coordinates: GPUs, whose links Chip.link has all together.
    """
    if getattr(devices[0], "coords", None) is None:
        return 1
    found = 0
    for places in zip(*(device.coords for device in devices), strict=True):
        size = len(set(places))
        ring = chip.wrap and size >= chip.wrap and size % chip.wrap == 0
        found += min(size - 1, 2 if ring else 1)
    return max(found, 1)
