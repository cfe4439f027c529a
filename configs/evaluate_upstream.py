"""UGC-VideoCap as published: the captioner's input and sampling, and the judge.

    ugc-jax evaluate --config evaluate_upstream --qa qa \\
        --task final_caption --predictions captions.jsonl --output result.json
    ugc-jax evaluate --config evaluate_upstream:answers --qa qa \\
        --task background,objects --predictions answers --output result.json

A model that answers first (--ask.checkpoint DIR --ask.videos DIR) takes the published captioner's
input and sampling with --preset upstream.

The prompts of the published judge are not in this repository, and ours are worded differently: to
compare with published figures, give the released ones with --judging.prompt FILE.
"""

from ml_collections import ConfigDict

from ugc_jax.settings import check_config_argument


def get_config(arg: str | None = None) -> ConfigDict:
    """arg: "answers" for the tasks background and objects, which were judged at temperature 0."""
    check_config_argument(arg, "answers")
    config = ConfigDict()

    config.judge = ConfigDict()
    config.judge.model = "gpt-4o-2024-08-06"
    config.judge.temperature = 0.0 if arg == "answers" else 1.0
    return config
