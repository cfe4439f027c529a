"""Rewards of sampled captions.

runner.py    Rewards: several functions at once on a thread of its own, with limits, retries, cache
local.py     rewards that are computed in place (dialogue.py: who says what)
judged.py    rewards that an LLM judge gives
scoring.py   the rewards of a batch, shared among processes; the only module with jax

A user's functions come from a file (`rewards.file`), the world's from jobs/grpo.py. Imports errors,
settings, judge, data and generate; no evals.
"""
