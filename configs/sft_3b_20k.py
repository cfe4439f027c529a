"""SFT of Qwen2.5-Omni-3B on 20 000 captioned clips: sft_3b.py with more data and larger batches.

    ugc-jax extract --preset upstream --output records/sft_20k sft_20k.jsonl
    ugc-jax extract --preset upstream --output records/held_out held_out.jsonl
    ugc-jax sft --config sft_3b_20k

The checkpoint with the best metric on held-out data is exported.
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
    config.output = config.output.replace("sft_3b", "sft_3b_20k")

    config.data.train = "records/sft_20k"
    config.data.eval = "records/held_out"
    config.data.batch_size = 64
    config.data.workers = 4

    config.loop.accumulate = 4
    config.loop.epochs = 2.0
    config.loop.save_every = 200
    config.loop.export = "best"
    return config
