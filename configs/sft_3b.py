"""SFT of Qwen2.5-Omni-3B on the released 1k captions: encoders frozen, the decoder is trained.

The first stage of the paper's captioner (arXiv 2507.11336); its training code was not released, so
rates and sizes are ours. For a TPU slice of at least 16 chips of 16 GB, or 8 of 32 GB:

    ugc-jax extract --preset upstream --output records/sft_1k sft_1k.jsonl
    ugc-jax sft --config sft_3b
    ugc-jax sft --config sft_3b:lora     # an adapter: half the slice is enough

On one GPU of 24 or 80 GB (docs/planning.md has the plans):

    ugc-jax sft --config sft_3b:lora-24gb
    ugc-jax sft --config sft_3b:lora-80gb
    ugc-jax sft --config sft_3b:full-80gb

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
    config.checkpoint = "Qwen/Qwen2.5-Omni-3B"
    config.output = "runs/sft_3b_lora" if way == "lora" else "runs/sft_3b"

    config.data = ConfigDict()
    config.data.train = "records/sft_1k"
    config.data.tokens = 4096  # a clip of 32 frames and 24 s of sound takes about 2900
    config.data.batch_size = 16

    config.compute = ConfigDict()
    config.compute.dtype = "bfloat16"
    config.compute.remat = "full"

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-5

    if way == "lora":
        config.trainable = ConfigDict()
        config.trainable.decoder = False
        config.trainable.embeddings = False
        config.lora = ConfigDict()
        config.lora.rank = 64
        config.lora.alpha = 128.0
        config.optimizer.learning_rate = 1e-4

    config.loop = ConfigDict()
    config.loop.epochs = 3.0
    config.loop.save_every = 50

    if arg == "lora-24gb":
        config.loop.accumulate = 16  # a row at a time
    elif arg == "lora-80gb":
        config.loop.accumulate = 4
        config.compute.remat = "auto"
    elif arg == "full-80gb":
        # Further microbatches would need a second gradient, of 13 GB.
        config.data.batch_size = 4
        config.optimizer.mu_dtype = "bfloat16"
        config.optimizer.learning_rate = 5e-6
    return config
