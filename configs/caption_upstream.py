"""Caption as the published UGC-VideoCaptioner does.

32 frames a clip, its system prompt and question, temperature 0.2, at most 1024 new tokens:

    ugc-jax caption --config caption_upstream --checkpoint DIR clips/
    ugc-jax caption --config caption_upstream:greedy --checkpoint DIR clip.mp4

For the published checkpoint, this preset is the default. The released code swapped red and blue of
its frames; --bgr does the same.
"""

from ml_collections import ConfigDict

from ugc_jax.settings import check_config_argument


def get_config(arg: str | None = None) -> ConfigDict:
    """arg: "greedy" for the most likely token at every step instead of sampling."""
    check_config_argument(arg, "greedy")
    config = ConfigDict()
    config.clip = ConfigDict()
    config.clip.preset = "upstream"  # sets the temperature and max_new_tokens, too
    if arg == "greedy":
        config.sampling = ConfigDict()
        config.sampling.temperature = 0.0
    return config
