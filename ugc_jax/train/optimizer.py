"""The optimizer: its settings, learning-rate schedule, and the chain of optax transformations.

gradient -> clip by global norm -> AdamW or Adafactor -> decay -> rate of its group -> update
"""

import dataclasses
from typing import Literal

import jax
import optax

from ugc_jax.errors import UserError
from ugc_jax.models import lora
from ugc_jax.models.params import get_leaf
from ugc_jax.models.qwen2_5_omni import names
from ugc_jax.settings import check_minimum
from ugc_jax.sharding import Axes

GROUPS = (*names.GROUPS, "lora")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and schedule."""

    name: Literal["adamw", "adafactor"] = "adamw"  # adafactor keeps less than half the state
    learning_rate: float = 1e-5  # at its peak
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # after the warm-up
    warmup: float = 0.05  # share of the steps in which the rate rises from 0
    final: float = 0.0  # share of the peak rate that is left at the last step
    weight_decay: float = 0.0  # of matrices; never of norms and biases
    clip_norm: float = 1.0  # global norm that a gradient is cut to; 0: never
    b1: float = 0.9  # Adam's decay of the gradient's mean
    b2: float = 0.999  # Adam's decay of the gradient's square
    eps: float = 1e-8  # Adam's, beside the root of that square
    # of Adam's mean as it is kept: bfloat16 takes half the memory (default: float32)
    mu_dtype: Literal["float32", "bfloat16"] | None = None
    vision: float = 1.0  # rate of the vision encoder, as a share of learning_rate
    audio: float = 1.0  # the same of the audio encoder
    projector: float = 1.0  # of the merger and the audio projection
    decoder: float = 1.0  # of the decoder's layers
    embeddings: float = 1.0  # of the token embeddings and the head
    lora: float = 1.0  # of an adapter

    def __post_init__(self):
        if self.mu_dtype is not None and self.name != "adamw":
            raise UserError(
                f"mu_dtype is {self.mu_dtype}, and name={self.name} keeps no mean of gradients; "
                "leave mu_dtype out, or use name=adamw"
            )
        nonnegative = ("learning_rate", "weight_decay", "clip_norm", *GROUPS)
        check_minimum(self, **dict.fromkeys(nonnegative, 0))
        for field, valid, allowed in (
            ("warmup", 0 <= self.warmup <= 1, "0 to 1"),
            ("final", 0 <= self.final <= 1, "0 to 1"),
            ("b1", 0 <= self.b1 < 1, "0 or more, below 1"),
            ("b2", 0 <= self.b2 < 1, "0 or more, below 1"),
            ("eps", self.eps > 0, "a positive number"),
        ):
            if not valid:
                raise UserError(f"{field} is {getattr(self, field)}; use {allowed}")


def learning_rates(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the function from a step's number (from 0) to its rate, over `steps` steps."""
    warmup = round(config.warmup * steps)
    peak, end = config.learning_rate, config.learning_rate * config.final
    rest = max(steps - warmup, 1)
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest, config.final),
        "linear": optax.linear_schedule(peak, end, rest),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    # The first step already has a rate above 0.
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup) if warmup else after
    return optax.join_schedules([rise, after], [warmup])


def group_of(path) -> str:
    """Return the group (of GROUPS) of a leaf; path: as of `path_keys`."""
    keys = path_keys(path)
    return "lora" if keys[-1] in lora.LEAVES else names.parameter_group(keys)


def is_matrix(axes: Axes) -> bool:
    """Return whether a leaf with these axes holds matrices: neither biases nor norm weights."""
    return sum(name != "layers" for name in axes) >= 2


def path_keys(path) -> tuple[str, ...]:
    """Return the keys of a leaf. path: these keys, or a path of jax.tree_util."""
    return tuple(getattr(key, "key", key) for key in path)


def make_optimizer(config: OptimizerConfig, steps: int, axes: dict) -> optax.GradientTransformation:
    """Return the chain for trees as in train/state.py; its schedule ends after `steps` updates.

    axes: the logical axes of all leaves, a tree (`state.model_axes`).
    """
    if config.name == "adamw":
        scale = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.mu_dtype)
    else:
        scale = optax.scale_by_factored_rms()
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        scale,
        optax.clip_by_block_rms(1.0) if config.name == "adafactor" else optax.identity(),
        # These have no state, so that a run may be resumed with other values of their settings.
        optax.stateless(lambda updates, params: _decay(updates, params, axes, config.weight_decay)),
        optax.stateless(lambda updates, _: _scale_groups(updates, config)),
        optax.scale_by_learning_rate(learning_rates(config, steps)),
    )


def _decay(updates, params, axes: dict, decay: float):
    """Add AdamW's decay, to matrices only."""
    if decay == 0:
        return updates

    def decayed(path, leaf, param):
        return leaf + decay * param if is_matrix(get_leaf(axes, path_keys(path))) else leaf

    return jax.tree_util.tree_map_with_path(decayed, updates, params)


def _scale_groups(updates, config: OptimizerConfig):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * getattr(config, group_of(path)), updates
    )
