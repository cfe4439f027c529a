"""SFT of Qwen2.5-Omni-7B on the released 1k captions: sft_3b.py with the larger model."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

_SFT_3B = runpy.run_path(str(Path(__file__).with_name("sft_3b.py")))


def get_config(arg: str | None = None) -> ConfigDict:
    """arg: "lora", as in sft_3b.py."""
    config = _SFT_3B["get_config"](arg)
    config.checkpoint = "Qwen/Qwen2.5-Omni-7B"
    config.output = config.output.replace("sft_3b", "sft_7b")
    return config
