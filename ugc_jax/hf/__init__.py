"""Hugging Face's file formats: checkpoints read and written, tokenizers, adapters, the hub.

config.py        config.json, read by the family that its model_type names
mapping.py       names of tensors in all forms; a tensor's values in a parameter tree
tensorfile.py    streaming reader and writer of safetensors
checkpoint.py    safetensors or Orbax -> parameters; orbax_store.py is the latter's format
export.py        parameters -> checkpoints; adapter.py: LoRA adapters, read and written
trained.py       what a model was shown in training, beside its weights; their digest
tokenizer.py hub.py random_weights.py
reference.py     transformers on torch, for tests and bench

Imports models and data, and what is below them.
"""
