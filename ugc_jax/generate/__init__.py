"""Captions from a model: encode, prefill and decode batches, sample tokens, write results.

engine.py      the jitted programs of one model, compiled once a bucket
sampling.py    the choice of the next token
captioner.py   clips -> captions, batched by bucket while threads read ahead
results.py     captions as JSON Lines that a later run goes on with
asking.py      a benchmark's questions, asked of a model
benchmark.py   timings beside the reference
settings.py    what a user may choose; imports no jax

Imports hf, data, media, models and what lies below them.
"""
