"""Convert a checkpoint: thinker-only, full or merged, another dtype, to Orbax and back.

A LoRA adapter, ours or PEFT's, may be merged into the weights on the way.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Literal

import jax

from ugc_jax.errors import UserError
from ugc_jax.generate.defaults import Defaults
from ugc_jax.hf.adapter import ADAPTER_CONFIG, load_adapter
from ugc_jax.hf.card import CARD, is_ours, own_text, write_card
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.hf.config import load_config
from ugc_jax.hf.export import check_directory, copy_files, save_merged, save_orbax, save_thinker
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.trained import read_trained
from ugc_jax.models import lora
from ugc_jax.settings import Schema

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Settings of convert."""

    checkpoint: str  # directory or hub id: Hugging Face (full or thinker-only) or Orbax
    output: str  # directory to write
    # thinker: on its own; full: in the form of a full checkpoint but without the talker, for vLLM;
    # merged: a full checkpoint, `base` with this thinker; orbax: for ugc-jax
    to: Literal["thinker", "full", "merged", "orbax"] = "thinker"
    base: str | None = None  # full checkpoint, directory or hub id, for to="merged"
    # of the stored weights; none keeps their own
    dtype: Literal["float32", "bfloat16"] | None = None
    adapter: str | None = None  # folder of a LoRA adapter to merge into the weights
    revision: str | None = None  # branch, tag or commit of a hub id
    overwrite: bool = False  # replace a checkpoint at `output`


SETTINGS = Schema(ConvertConfig)


def main(config: ConvertConfig, args: list[str]) -> int:
    """Load a checkpoint and write it in another form."""
    if config.to == "merged" and config.base is None:
        raise UserError(
            "to=merged needs base, the full checkpoint that has the talker and token2wav"
        )
    if config.to == "merged" and config.dtype is not None:
        raise UserError("to=merged keeps the dtypes of base; leave dtype out")
    if config.to != "merged" and config.base is not None:
        raise UserError(f"base is for to=merged, not for to={config.to}; leave it out")
    output = check_directory(config.output, config.overwrite)
    own = own_text(output)
    source = resolve_checkpoint(config.checkpoint, config.revision)
    model = load_config(source)
    is_adapted, dtype = config.adapter is not None, config.dtype
    # An adapter is added to the weights as they are stored, and the sums are rounded once.
    params = load_params(source, model, "float32" if is_adapted and dtype else dtype)
    trained = Defaults.of(config.checkpoint, source).as_trained()
    if is_adapted:
        trained = read_trained(Path(config.adapter)) or trained
        sums = "float32" if config.to == "merged" else None  # whose dtypes are those of `base`
        params = lora.merge(params, *load_adapter(config.adapter, model), sums)
        if dtype is not None:
            params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    if config.to == "merged":
        save_merged(params, model, config.base, config.output, config.overwrite, trained)
    elif config.to == "orbax":
        save_orbax(params, model, config.output, source, config.overwrite, trained)
    else:
        save_thinker(
            params, model, config.output, source,
            overwrite=config.overwrite, trained=trained, full=config.to == "full",
        )  # fmt: skip
    _write_card(output, Path(config.adapter) if is_adapted else source, own)
    logger.info("%s: %s checkpoint written", config.output, config.to)
    return 0


def _write_card(output: Path, origin: Path, own: str):
    """Write the model card of a converted checkpoint, which `push` and people look for.

    origin: the folder of the checkpoint or the adapter. A README.md that is no card of ours is
    copied, unless it is of an adapter: that is about other weights. own: the user's text of a card
    that is replaced.
    """
    is_adapter = (origin / ADAPTER_CONFIG).exists()
    if (origin / CARD).exists() and not is_ours(origin):
        if not is_adapter:
            copy_files(origin, output, [CARD])
            return
    else:
        own = own or own_text(origin)
    write_card(output, own=own)
