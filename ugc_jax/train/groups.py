"""Which part of the model a parameter belongs to: for freezing and for learning rates by group."""

import dataclasses

GROUPS = ("vision", "audio", "projector", "decoder", "embeddings", "lora")
# What the audio encoder's output passes through; the vision encoder's is its merger.
_AUDIO_PROJECTOR = ("ln_post", "proj", "audio_bos_eos_token")
_LORA = ("lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class Trainable:
    """Which parts learn. The others are frozen: in the compute dtype, without optimizer state."""

    vision: bool = False  # the vision encoder
    audio: bool = False  # the audio encoder
    projector: bool = False  # the vision encoder's merger and the audio encoder's projection
    decoder: bool = True  # the decoder's layers
    embeddings: bool = True  # the token embeddings and the head

    def includes(self, path) -> bool:
        """Whether the leaf at `path` learns; the leaves of an adapter always do."""
        group = group_of(path)
        return group == "lora" or getattr(self, group)


def group_of(path) -> str:
    """The group (of GROUPS) of a leaf; path: its keys, plain or as jax.tree_util gives them."""
    names = _names(path)
    if names[-1] in _LORA:
        return "lora"
    if names[0] == "visual":
        return "projector" if names[1] == "merger" else "vision"
    if names[0] == "audio_tower":
        return "projector" if names[1] in _AUDIO_PROJECTOR else "audio"
    return "decoder" if names[:2] in (["model", "layers"], ["model", "norm"]) else "embeddings"


def is_matrix(path, leaf) -> bool:
    """Whether a (stacked) leaf holds matrices: neither biases nor norm weights."""
    names = _names(path)
    stacked = "layers" in names or "blocks" in names
    return leaf.ndim - stacked >= 2


def _names(path) -> list[str]:
    return [str(getattr(key, "key", key)) for key in path]
