"""GRPO of the captioner that configs/sft_3b.py trained, on the prompts of the released grpo_1k.

The second stage of the paper (arXiv 2507.11336): encoders frozen, the whole decoder is trained, 8
captions of each clip. Needs a TPU slice of at least 16 chips of 16 GB; `ugc-jax plan` compiles it
without one:

    ugc-jax plan --config grpo_3b --topology v5e:4x4
    ugc-jax extract --preset upstream --output records/grpo_1k grpo_1k.jsonl
    ugc-jax grpo --config grpo_3b
    ugc-jax grpo --config grpo_3b:lora     # an adapter on runs/sft_3b/model

On one GPU of 24 or 80 GB (docs/planning.md has the plans):

    ugc-jax grpo --config grpo_3b:lora-24gb
    ugc-jax grpo --config grpo_3b:lora-80gb
    ugc-jax grpo --config grpo_3b:full-80gb

launch/ has the scripts that start it on every host.
"""

from ml_collections import ConfigDict

from ugc_jax.settings import check_config_argument


def get_config(arg: str | None = None) -> ConfigDict:
    """arg: "lora" to freeze the decoder and train an adapter; "lora-24gb", "lora-80gb" and
    "full-80gb" for one GPU with so much memory.
    """
    check_config_argument(arg, "lora", "lora-24gb", "lora-80gb", "full-80gb")
    way = (arg or "full").partition("-")[0]
    config = ConfigDict()
    config.checkpoint = "runs/sft_3b/model"
    config.output = "runs/grpo_3b_lora" if way == "lora" else "runs/grpo_3b"

    config.data = ConfigDict()
    config.data.train = "records/grpo_1k"
    config.data.tokens = 3072  # of a prompt; 32 frames and 24 s of sound take about 2600
    config.data.batch_size = 16  # prompts of a step

    config.compute = ConfigDict()
    config.compute.dtype = "bfloat16"
    config.compute.remat = "full"

    config.rollout = ConfigDict()
    config.rollout.samples = 8
    config.rollout.sampling = ConfigDict()
    config.rollout.sampling.max_new_tokens = 512
    # Training splits the weights over all chips and gathers each layer when it is needed. Doing so
    # for every generated token would dominate the time, so pairs of chips hold all the weights
    # while captions are sampled, 5 GiB a chip. Two, as there are two key/value heads.
    config.rollout.mesh = ConfigDict()
    config.rollout.mesh.data = -1
    config.rollout.mesh.fsdp = 1
    config.rollout.mesh.tensor = 2

    # ROUGE-L to the reference answer, and a length within a range. For a reward by a judge model,
    # too, serve one by any OpenAI-compatible server and add, for example:
    #   config.rewards.functions = "rouge=1,length=0.5,holistic=1"
    #   config.rewards.judge = ConfigDict({"base_url": "http://host:8000/v1", "model": "..."})
    config.rewards = ConfigDict()
    config.rewards.functions = "rouge=1,length=0.5"

    config.grpo = ConfigDict()
    config.grpo.beta = 0.01
    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-6

    if way == "lora":
        config.trainable = ConfigDict()
        config.trainable.decoder = False
        config.trainable.embeddings = False
        config.lora = ConfigDict()
        config.lora.rank = 64
        config.lora.alpha = 128.0
        config.optimizer.learning_rate = 1e-5

    config.loop = ConfigDict()
    config.loop.epochs = 1.0

    if arg != way and arg is not None:  # one card
        config.rollout.mesh.tensor = 1
    if arg == "lora-24gb":
        config.data.batch_size = 4
        config.loop.accumulate = 4  # a prompt with its captions at a time
        config.rollout.parts = 2
        config.rollout.sampling.max_new_tokens = 256
    elif arg == "lora-80gb":
        config.loop.accumulate = 4
        config.compute.remat = "auto"
    elif arg == "full-80gb":
        # Further microbatches would need a second gradient, of 13 GB.
        config.data.batch_size = 2
        config.optimizer.mu_dtype = "bfloat16"
        config.optimizer.learning_rate = 5e-7
    return config
