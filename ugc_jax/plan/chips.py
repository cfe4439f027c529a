"""Memory and speed of accelerators, for MFU and for `plan`."""

from typing import NamedTuple

import jax

GIB = 1 << 30


class Chip(NamedTuple):
    """One device of jax; of v7x, half a chip.

    flops: bfloat16 matrix operations a second, by its maker's data sheet.
    hbm: bytes of memory; of a TPU, those that its compiler allows a program (libtpu 0.0.42).
    """

    name: str
    flops: float
    hbm: int


# By the beginning of jax.Device.device_kind or, of a GPU, a word in it.
_CHIPS = {
    "TPU v4": Chip("v4", 275e12, int(30.75 * GIB)),
    "TPU v5 lite": Chip("v5e", 197e12, int(15.75 * GIB)),
    "TPU v5": Chip("v5p", 459e12, int(95.74 * GIB)),
    "TPU v6 lite": Chip("v6e", 918e12, int(31.25 * GIB)),
    "TPU7x": Chip("v7x", 1153.5e12, int(94.75 * GIB)),
    "A100-SXM4-40GB": Chip("A100 40 GB", 312e12, 40 * GIB),
    "A100": Chip("A100 80 GB", 312e12, 80 * GIB),
    "H100": Chip("H100", 989e12, 80 * GIB),
    "H200": Chip("H200", 989e12, 141 * GIB),
    "B200": Chip("B200", 2250e12, 180 * GIB),
}


def chip_of(device_kind: str) -> Chip | None:
    """Return the chip of a jax.Device.device_kind; None if not in the table, such as a CPU."""
    matches = [name for name in _CHIPS if device_kind.startswith(name) or f" {name}" in device_kind]
    return _CHIPS[max(matches, key=len)] if matches else None


def peak_flops(mesh: jax.sharding.Mesh) -> float | None:
    """Return bfloat16 operations a second of all devices; None if they are not in the table."""
    chip = chip_of(mesh.devices.flat[0].device_kind)
    return None if chip is None else chip.flops * mesh.size
