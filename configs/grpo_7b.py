"""GRPO of the captioner that configs/sft_7b.py trained: grpo_3b.py with the larger model."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

_GRPO_3B = runpy.run_path(str(Path(__file__).with_name("grpo_3b.py")))


def get_config(arg: str | None = None) -> ConfigDict:
    """arg: "lora", as in grpo_3b.py."""
    config = _GRPO_3B["get_config"](arg)
    config.checkpoint = "runs/sft_7b/model"
    config.output = config.output.replace("grpo_3b", "grpo_7b")
    # Four chips hold all the weights while captions are sampled: there are four key/value heads.
    config.rollout.mesh.tensor = 4
    return config
