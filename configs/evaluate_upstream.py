"""UGC-VideoCap as published: the captioner's input and sampling, and the judge.

    ugc-jax evaluate --config=configs/evaluate_upstream.py --config.qa=qa \\
        --config.task=final_caption --config.predictions=captions.jsonl --config.output=result.json
    ugc-jax evaluate --config=configs/evaluate_upstream.py:answers --config.qa=qa \\
        --config.task=background,objects --config.predictions=answers --config.output=result.json

The prompts of the published judge are not in this repository, and ours are worded differently: to
compare with published figures, give the released ones with judge.prompt=FILE.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """arg: "answers" for the tasks background and objects, which were judged at temperature 0."""
    config = ConfigDict()

    config.judge = ConfigDict()
    config.judge.model = "gpt-4o-2024-08-06"
    config.judge.temperature = 0.0 if arg == "answers" else 1.0

    # used only if a model answers first, with ask.checkpoint=DIR and ask.videos=DIR
    config.ask = ConfigDict()
    config.ask.preset = "upstream"
    config.ask.temperature = 0.2
    config.ask.max_new_tokens = 1024
    return config
