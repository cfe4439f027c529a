"""GRPO of the tiny model on the offline world, on a CPU, after the SFT of configs/tiny.py.

    ugc-jax grpo --config grpo_tiny

A caption's reward is the F1 over the world's attributes (precision: the share of stated attributes
that are right; recall: the share of the clip's that are stated). Length and repetition are logged,
with weight 0.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """arg: folder of models, records and outputs; default runs/tiny."""
    folder = arg or "runs/tiny"
    config = ConfigDict()
    config.checkpoint = f"{folder}/sft"
    config.output = f"{folder}/grpo"

    config.data = ConfigDict()
    config.data.train = f"{folder}/records/train"
    config.data.eval = f"{folder}/records/test"
    config.data.tokens = 128
    config.data.batch_size = 8  # prompts of a step

    config.rollout = ConfigDict()
    config.rollout.samples = 8
    config.rollout.eval_prompts = 200
    config.rollout.sampling = ConfigDict()
    config.rollout.sampling.max_new_tokens = 48  # 1.5 times the length of a caption

    config.rewards = ConfigDict()
    config.rewards.functions = "attributes=1,length=0,repetition=0"
    config.rewards.length_low = 15
    config.rewards.length_high = 40

    config.grpo = ConfigDict()
    config.grpo.beta = 0.0  # an exact reward needs no KL penalty

    config.trainable = ConfigDict()
    config.trainable.vision = True
    config.trainable.audio = True
    config.trainable.projector = True

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 4e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 0.02
    config.optimizer.b2 = 0.99

    config.loop = ConfigDict()
    config.loop.steps = 150
    config.loop.log_every = 20
    config.loop.eval_every = 75
    config.loop.save_every = 75
    config.loop.export_dtype = "float32"
    return config
