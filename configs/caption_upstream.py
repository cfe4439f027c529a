"""Caption as the published UGC-VideoCaptioner does.

32 frames a clip, its system prompt and question, temperature 0.2, at most 1024 new tokens:

    ugc-jax caption --config=configs/caption_upstream.py --config.checkpoint=DIR clips/
    ugc-jax caption --config=configs/caption_upstream.py:greedy --config.checkpoint=DIR clip.mp4

The released code swapped red and blue of its frames; --config.bgr=true does the same.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """arg: "greedy" for the most likely token at every step instead of sampling."""
    config = ConfigDict()
    config.preset = "upstream"
    config.temperature = 0.0 if arg == "greedy" else 0.2
    config.max_new_tokens = 1024
    return config
