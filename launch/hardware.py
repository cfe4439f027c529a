"""What fits on which hardware, as a Markdown table: python launch/hardware.py

Estimates of ugc_jax/plan/fits.py, in bfloat16, for a clip of 32 frames and 24 s of sound at a time
and for the configs of configs/ with one row a device at a time. README.md has the table, and the
suite compares them. `ugc-jax doctor` makes the same estimates for the devices that it finds.
"""

import os

DEVICES = 16
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402

from ugc_jax.models.qwen2_5_omni.config import SIZES  # noqa: E402
from ugc_jax.plan import fits  # noqa: E402

GIB = 2**30
# Jobs take nine tenths of a GPU's memory (cli.py). A v5e chip has 15.75 GiB for programs.
HARDWARE = {
    "16 GB": (1, 0.9 * 16 * GIB),
    "24 GB": (1, 0.9 * 24 * GIB),
    "80 GB": (1, 0.9 * 80 * GIB),
    "v5e-1": (1, 15.75 * GIB),
    "v5e-4": (4, 15.75 * GIB),
    "v5e-16": (16, 15.75 * GIB),
}
WORK = {
    "captions": None,
    "SFT, LoRA": ("sft", ":lora"),
    "SFT, full": ("sft", ""),
    "GRPO, LoRA": ("grpo", ":lora"),
    "GRPO, full": ("grpo", ""),
}
WORDS = {fits.FITS: "yes", fits.TIGHT: "tight", fits.NO: "no"}


def verdict(work: str, size: str, count: int, memory: float) -> str:
    """One cell: yes, tight or no, and the GiB of each device that are needed."""
    devices = jax.devices()[:count]
    if WORK[work] is None:
        needs = min(
            fits.caption_bytes(SIZES[size](), devices[:tensor], "bfloat16")
            for tensor in (1, 2, 4)
            if tensor <= count and not SIZES[size]().text.num_key_value_heads % tensor
        )
    else:
        needs = fits.training_needs(*WORK[work], size, devices, dtype="bfloat16")
    return f"{WORDS[fits.verdict(needs, int(memory))]}, {needs / GIB:.0f}"


def table() -> str:
    """The table, a row for each work and size."""
    lines = [f"| | {' | '.join(HARDWARE)} |", f"|---|{'---|' * len(HARDWARE)}"]
    for work in WORK:
        for size in fits.PLANNED:
            cells = [verdict(work, size, *facts) for facts in HARDWARE.values()]
            lines.append(f"| {work}, {size.upper()} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
