"""Clip settings of the tiny model for the offline world: 4 frames of 112x112, all of the sound.

ugc-jax extract --config=configs/world.py --config.output=records world/train.jsonl
ugc-jax caption --config=configs/world.py:caption --config.checkpoint=DIR world/test
"""

from ml_collections import ConfigDict

from ugc_jax.toy.world import QUESTION


def get_config(arg: str | None = None) -> ConfigDict:
    """arg: "caption" to add what only captioning needs."""
    config = ConfigDict()
    config.fps = 2.0
    config.min_pixels = 112 * 112  # so that frames are not enlarged
    config.question = QUESTION
    if arg == "caption":
        config.max_new_tokens = 64
        config.batch_size = 50
    return config
