"""Reading config.json of a checkpoint."""

from pathlib import Path

from ugc_jax.errors import UserError
from ugc_jax.files import read_json
from ugc_jax.models.qwen2_5_omni import hf_config as qwen2_5_omni
from ugc_jax.models.qwen2_5_omni.config import OmniConfig

# model_type -> the module whose `from_hf` reads such a config.json.
FAMILIES = {
    qwen2_5_omni.FULL_MODEL_TYPE: qwen2_5_omni,
    qwen2_5_omni.THINKER_MODEL_TYPE: qwen2_5_omni,
}
REMEDY = "a checkpoint holds config.json beside its *.safetensors; copy it again"


def load_config(checkpoint: str | Path) -> OmniConfig:
    """Return the config of a checkpoint directory; UserError names the file and the field."""
    path = Path(checkpoint) / "config.json"
    raw = read_json(path, REMEDY)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(map(repr, FAMILIES))
        raise UserError(f"{path}: model_type is {kind!r}; give a checkpoint of one of {known}")
    return FAMILIES[kind].from_hf(raw, str(path))
