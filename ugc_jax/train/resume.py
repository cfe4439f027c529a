"""Going on with a run: what may differ from the settings that its checkpoint was made with."""

import logging

from ugc_jax.errors import UserError
from ugc_jax.settings import flatten

logger = logging.getLogger(__name__)

# These decide what a checkpoint holds.
FIXED = ("trainable.", "lora.rank", "lora.targets", "optimizer.name", "master")


def check_settings(before: dict, now: dict, folder: str):
    """Tell each setting that differs from the checkpoint's; UserError if training cannot go on.

    before, now: nested settings, as JSON takes them. folder: the run's directory, in messages.
    """
    old, new = flatten(before), flatten(now)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key):
            continue
        change = f"{key} was {old.get(key)} and is {new.get(key)}"
        if key.startswith(FIXED):
            raise UserError(
                f"{folder}: {change}, which its checkpoints do not fit; "
                "set it back, or choose another output"
            )
        logger.info("going on with a change: %s", change)
