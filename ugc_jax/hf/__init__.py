"""Files of Hugging Face's world: checkpoints both ways, tokenizers, adapters, the hub.

config.py        config.json, by the family that its model_type names
mapping.py       names of tensors in all their forms; a tensor's values out of a parameter tree
tensorfile.py    safetensors, read and written in streams
checkpoint.py    safetensors or Orbax -> parameters; orbax_store.py is the latter's format
export.py        parameters -> checkpoints; adapter.py: a LoRA adapter alone, both ways
tokenizer.py hub.py random_weights.py
reference.py     transformers on torch, for tests and bench

Imports models and data, and what is below them.
"""
