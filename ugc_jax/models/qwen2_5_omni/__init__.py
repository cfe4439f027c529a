"""Qwen2.5-Omni's thinker, and every fact of the family that the rest of the package needs.

config.py       sizes as dataclasses, the released ones, and how pixels and sound are cut
hf_config.py    config.json <-> these dataclasses
tokens.py       special tokens and chat template
names.py        names of parameters in checkpoints and in peft; groups to freeze or to scale
vision.py audio.py decoder.py    the towers
thinker.py      the whole: declared parameters, encoders, splice, head

The first four import no jax, for the data's worker processes.
"""
