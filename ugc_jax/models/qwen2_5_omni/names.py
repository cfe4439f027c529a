"""What this family's parameters are called: in checkpoints, in peft, and by group."""

# Tensors of a full checkpoint that belong to other models than the thinker begin with one of these;
# the thinker's may begin with THINKER.
OUTSIDE_THINKER = ("talker.", "token2wav.")
THINKER = "thinker."
# Module names of transformers 5 -> those on the hub, which are ours and what 5 itself saves.
MODULES = {
    "model.language_model.": "model.",
    "model.visual.": "visual.",
    "model.audio_tower.": "audio_tower.",
}
# Weights that are looked up by row, not multiplied with.
LOOKED_UP = ("model.embed_tokens.weight", "audio_tower.audio_bos_eos_token.weight")

# The stack whose linears an adapter may correct; for peft, a pattern of its modules. (The encoders
# have linears of the same names.)
ADAPTABLE = ("model", "layers")
PEFT_MODULES = r"(.*\.)?(model|language_model)\.layers\.\d+\.\w+"

# What may be frozen or have a learning rate of its own: group -> the parts of the tree. A part
# belongs to the group that names it, or else to that of the tower around it.
GROUPS = {
    "vision": ("visual",),
    "audio": ("audio_tower",),
    "projector": (
        "visual.merger",
        # What the audio encoder's output passes through.
        "audio_tower.ln_post",
        "audio_tower.proj",
        "audio_tower.audio_bos_eos_token",
    ),
    "decoder": ("model.layers", "model.norm"),
    "embeddings": ("model.embed_tokens", "lm_head"),
}
_GROUP_OF = {part: group for group, parts in GROUPS.items() for part in parts}


def group_of(path: tuple[str, ...]) -> str:
    """The group (of GROUPS) of the leaf at `path`."""
    tower, part = path[0], ".".join(path[:2])
    return _GROUP_OF.get(part) or _GROUP_OF[tower]
