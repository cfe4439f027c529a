"""How exported weights came about: base, data and settings, for captioner.json and the model card.

Names no folder of this machine: of a path only the last part is kept.
"""

import dataclasses
from pathlib import Path

from etils import epath

from ugc_jax import __version__
from ugc_jax.data import card as data_card
from ugc_jax.data.planning import parse_mixture
from ugc_jax.errors import UserError
from ugc_jax.hf.card import license_of
from ugc_jax.hf.hub import is_hub_id
from ugc_jax.hf.trained import read_trained
from ugc_jax.settings import flatten
from ugc_jax.train.settings import TrainConfig

# Settings that say nothing of the weights, and those that `lineage` tells in another way.
_LEFT_OUT = (
    "checkpoint", "output", "revision", "distributed", "data.train", "data.workers",
    "data.read_ahead", "data.cache", "loop.log_every", "loop.save_every", "loop.keep",
    "loop.profile", "loop.wandb", "loop.samples", "loop.hang_seconds",
    "compute.compilation_cache", "rewards.judge.base_url", "rewards.judge.cache",
    "rewards.judge.key",
)  # fmt: skip
_FOLDERS = "data.eval", "rewards.file"


def lineage(config: TrainConfig, weights: Path) -> dict:
    """Return how the weights of a run came about, for JSON.

    {"ugc_jax", "kind": "sft" or "grpo", "base": {"model": hub id or None, "name", "license"},
     "before": [{"kind", "data": [name]}] of earlier trainings on that base,
     "data": [{"name", "records", "sources", "licenses"}], "settings": {name: value}}
    weights: directory of the initial weights.
    """
    known = read_trained(weights)
    earlier = known.training if known else {}
    if earlier:
        names = [one["name"] for one in earlier.get("data", [])]
        before = [*earlier.get("before", []), {"kind": earlier.get("kind", ""), "data": names}]
        base = earlier.get("base", {})
    else:
        name = config.checkpoint.rstrip("/")
        model = name if is_hub_id(name) else None
        base = {"model": model, "name": model or _last(name), "license": license_of(weights)}
        before = []
    return {
        "ugc_jax": __version__,
        "kind": config.KIND,
        "base": base,
        "before": before,
        "data": [_data(folder) for folder, _ in parse_mixture(config.data.train)],
        "settings": _settings(config),
    }


def _data(folder: str) -> dict:
    try:
        return {"name": _last(folder), **data_card.facts(epath.Path(folder))}
    except (UserError, OSError):  # a card is not worth the run
        return {"name": _last(folder)}


def _settings(config: TrainConfig) -> dict:
    """Return the settings that decide what the weights are, if they differ from the class's own."""
    settings = {}
    for name, value in flatten(dataclasses.asdict(config)).items():
        if name in _LEFT_OUT or value is None or value == () or value == "":
            continue
        settings[name] = _last(value) if name in _FOLDERS else value
    return settings


def _last(path: str) -> str:
    """Return the last part of a path or an address."""
    return str(path).rstrip("/").rpartition("/")[2]
