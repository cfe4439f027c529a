"""GRPO of the captioner that configs/sft_7b.py trained: grpo_3b.py with the larger model.

Both fit on 16 chips of 16 GB, the whole decoder and an adapter; docs/paper.md has the plans:

    ugc-jax plan --config grpo_7b:lora --topology v5e:4x4
    ugc-jax grpo --config grpo_7b:lora     # an adapter on runs/sft_7b/model
    ugc-jax grpo --config grpo_7b
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from ugc_jax.settings import check_config_argument

_GRPO_3B = runpy.run_path(str(Path(__file__).with_name("grpo_3b.py")))


def get_config(arg: str | None = None) -> ConfigDict:
    """arg: "lora", as in grpo_3b.py."""
    check_config_argument(arg, "lora")
    config = _GRPO_3B["get_config"](arg)
    config.checkpoint = "runs/sft_7b/model"
    config.output = config.output.replace("grpo_3b", "grpo_7b")
    # Four chips hold all the weights while captions are sampled: there are four key/value heads.
    config.rollout.mesh.tensor = 4
    return config
