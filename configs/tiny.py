"""SFT of a tiny model on the offline world, on a CPU: the recipe of launch/quickstart.sh.

    ugc-jax init    --output runs/tiny/start
    ugc-jax world   --output runs/tiny/world
    ugc-jax extract --config world --output runs/tiny/records/train runs/tiny/world/train.jsonl
    ugc-jax extract --config world --output runs/tiny/records/test runs/tiny/world/test.jsonl
    ugc-jax sft     --config tiny

The model starts from random weights, so all parameters are trained, at a high rate.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """arg: folder of models, records and outputs; default runs/tiny."""
    folder = arg or "runs/tiny"
    config = ConfigDict()
    config.checkpoint = f"{folder}/start"
    config.output = f"{folder}/sft"

    config.data = ConfigDict()
    config.data.train = f"{folder}/records/train"
    config.data.eval = f"{folder}/records/test"
    config.packing = False  # rows this short gain nothing from it
    # Random weights have never seen a prompt without sound or picture, and guess with confidence.
    config.hide_media = 0.15
    config.data.tokens = 152
    config.data.batch_size = 8  # many small steps: best for random weights

    config.trainable = ConfigDict()
    config.trainable.vision = True
    config.trainable.audio = True
    config.trainable.projector = True

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 2e-3
    # High for long, as what is hard to see is learned late, and to 0: else the model is too sure of
    # what it guesses without a medium.
    config.optimizer.schedule = "linear"
    config.optimizer.b2 = 0.99

    config.sampling = ConfigDict()
    config.sampling.max_new_tokens = 64  # of the sample captions

    config.loop = ConfigDict()
    config.loop.epochs = 8.0
    config.loop.log_every = 100
    config.loop.save_every = 400
    config.loop.export_dtype = "float32"
    return config
