"""SFT of Qwen2.5-Omni-7B on the released 1k captions: sft_3b.py with the larger model.

For a TPU slice of at least 16 chips of 16 GB, or 8 of 32 GB; docs/paper.md has the plans:

    ugc-jax plan --config sft_7b --topology v5e:4x4
    ugc-jax sft --config sft_7b
    ugc-jax sft --config sft_7b:lora     # an adapter: half the slice is enough
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from ugc_jax.settings import check_config_argument

_SFT_3B = runpy.run_path(str(Path(__file__).with_name("sft_3b.py")))


def get_config(arg: str | None = None) -> ConfigDict:
    """arg: "lora", as in sft_3b.py."""
    check_config_argument(arg, "lora")
    config = _SFT_3B["get_config"](arg)
    config.checkpoint = "Qwen/Qwen2.5-Omni-7B"
    config.output = config.output.replace("sft_3b", "sft_7b")
    return config
