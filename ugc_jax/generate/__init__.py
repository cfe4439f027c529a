"""Captions from a model: encode, prefill and decode batches, sample tokens, write results.

engine.py      the jitted programs of one model, compiled once a bucket; sampling.py: the next token
captioner.py   clips -> captions, batched by bucket; weights.py: shapes, to compile without weights
inputs.py      the arguments of a call -> the clips, and what each is asked; pieces.py: long clips
live.py        an engine in a thread that prompts join and leave: what a server needs
texts.py       the text of a completion while its tokens come; constraints.py: JSON schemas
results.py     captions as JSON Lines that a later run continues; outputs.py: subtitles, Markdown
defaults.py    the settings of a checkpoint where the user names none
asking.py      the questions of a benchmark -> the model's answers
benchmark.py   times of prefill and decoding; mixed.py: of clips of many lengths
peer.py        vLLM beside both, in an environment of its own (vllm_peer.py)
settings.py    the settings of reading, sampling and asking; imports no jax

Imports hf, data, media, models and lower layers.
"""
