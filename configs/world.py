"""Clip settings of the tiny model for the offline world: 4 frames of 112x112, all of the sound.

    ugc-jax extract --config world --output records world/train.jsonl
    ugc-jax caption --config world:caption --checkpoint DIR world/test

A model that was trained on these records knows its clip settings: the second command needs its
config for the speed only.
"""

from ml_collections import ConfigDict

from ugc_jax.settings import check_config_argument
from ugc_jax.toy.world import QUESTION


def get_config(arg: str | None = None) -> ConfigDict:
    """arg: "caption" to add what only captioning needs."""
    check_config_argument(arg, "caption")
    config = ConfigDict()
    config.clip = ConfigDict()
    config.clip.fps = 2.0
    config.clip.min_pixels = 112 * 112  # so that frames are not enlarged
    config.clip.question = QUESTION
    if arg == "caption":
        config.sampling = ConfigDict({"max_new_tokens": 64})
        config.engine = ConfigDict({"batch_size": 50})
    return config
