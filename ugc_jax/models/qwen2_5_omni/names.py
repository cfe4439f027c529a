"""What this family's parameters are called: in checkpoints, in peft, and by group."""

# Prefixes of a full checkpoint's tensors outside the thinker, and of the thinker's (which may lack
# it).
OUTSIDE_THINKER = ("talker.", "token2wav.")
THINKER = "thinker."
# Module names of transformers 5 -> those on the hub, which are ours and what 5 itself saves.
MODULES = {
    "model.language_model.": "model.",
    "model.visual.": "visual.",
    "model.audio_tower.": "audio_tower.",
}
# Weights that are looked up by row, not multiplied.
LOOKED_UP = ("model.embed_tokens.weight", "audio_tower.audio_bos_eos_token.weight")

# The stack whose linears may have an adapter, and a pattern of these modules for peft. (Linears of
# the encoders have the same names.)
ADAPTABLE = ("model", "layers")
PEFT_MODULES = r"(.*\.)?(model|language_model)\.layers\.\d+\.\w+"

# Groups that may be frozen or have their own learning rate: group -> subtrees. A subtree belongs to
# the group that names it, or else to that of its tower.
GROUPS = {
    "vision": ("visual",),
    "audio": ("audio_tower",),
    "projector": (
        "visual.merger",
        # The last layers of the audio encoder.
        "audio_tower.ln_post",
        "audio_tower.proj",
        "audio_tower.audio_bos_eos_token",
    ),
    "decoder": ("model.layers", "model.norm"),
    "embeddings": ("model.embed_tokens", "lm_head"),
}
_GROUP_OF = {part: group for group, parts in GROUPS.items() for part in parts}


def parameter_group(path: tuple[str, ...]) -> str:
    """Return the group (of GROUPS) of the leaf at `path`."""
    tower, part = path[0], ".".join(path[:2])
    return _GROUP_OF.get(part) or _GROUP_OF[tower]
